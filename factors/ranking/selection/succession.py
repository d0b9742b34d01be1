"""Whether a head with new choices may follow the live one. Invariant: it finds the newest events, which
neither has learned, no worse; and where its lists are much unlike, better.
"""

from collections.abc import Callable

import numpy as np

from factors.inference.histories import Compressed
from factors.model.types import Bools, Float32s, Float64s
from factors.ranking.head import RankingHead
from factors.ranking.selection.held_out import LEAST_WANTED, SHORT, HeldOut, Typed

# Two fits of the same events that began differently share nine of ten.
_ALIKE = 0.5


def hold_out_newest(
    by_user: Compressed,
    unlearned: Bools,
    live: RankingHead,
    n_items: int,
    *,
    rng: np.random.Generator,
    typed: Typed | None,
) -> HeldOut:
    """Hold out the newest of the events (n,), of items that the live head has: the newer half of those that
    it has not learned, as `unlearned` (n,) says, or all of them where they have no times.
    """
    held = unlearned & (by_user.other < len(live.items))
    times = by_user.time[held]
    if len(times) and not np.isnan(times).any():
        held[held] = times >= np.median(times)
    return HeldOut.of(by_user, n_items, held, rng, typed)


def may_follow(
    found: RankingHead, live: RankingHead, newest: HeldOut, tried: Callable[[], RankingHead]
) -> bool:
    """Return whether lists of `found` are not surely worse than those of the `live` head, and much like them
    or surely better. `tried`: fits a head as `found` is, without the `newest` events.
    """
    if not len(newest.users):
        return True
    scores = (_scores(head, newest, len(live.items)) for head in (found, live))
    is_alike = _common(*scores) >= _ALIKE
    if len(newest.row) < LEAST_WANTED:
        return is_alike
    own, other = (newest.quality(_scores(head, newest, len(found.items))) for head in (tried(), live))
    return surely_better(own, other) or (is_alike and not surely_better(other, own))


def surely_better(quality: Float64s, than: Float64s) -> bool:
    """Say whether lists (u,) are better by more than a standard error of the difference."""
    gain = quality - than
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def _scores(head: RankingHead, newest: HeldOut, n_items: int) -> Float32s:
    """Return the relevance (u, n_items) to the users; what the head has not, or the user has chosen before,
    is in no list.
    """
    histories, found = newest.histories, head.relevance(newest.histories)[:, :n_items]
    scores = np.full((len(found), n_items), -np.inf, dtype=np.float32)
    scores[:, : found.shape[1]] = found
    seen, users = histories.other_row, np.repeat(np.arange(len(found)), np.diff(histories.offsets))
    inside = seen < n_items
    scores[users[inside], seen[inside]] = -np.inf
    return scores


def _common(scores: Float32s, others: Float32s) -> float:
    """Return which part of the first `SHORT` items of lists by both scores (u, m) is the same."""
    n = min(SHORT, scores.shape[1])
    first = [
        (each >= np.partition(each, -n, axis=1)[:, -n, None]) & np.isfinite(each) for each in (scores, others)
    ]
    return float((first[0] & first[1]).sum() / max(1, first[1].sum()))
