"""Whether a head with new choices may follow the live one. Invariant: it finds the newest events, which
neither has learned, no worse; and where its lists are much unlike, better.
"""

from collections.abc import Callable

import numpy as np

from factors.errors import FactorsError
from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Int64s
from factors.ranking.head import RankingHead
from factors.ranking.selection.held_out import LEAST_WANTED, SHORT, HeldOut, Typed

# Two fits of the same events that began differently share nine of ten.
_ALIKE = 0.5
# Scores that are in memory at once: 8 MB of each head.
_SCORES = 1 << 21


def hold_out_newest(
    by_user: Compressed,
    unlearned: Int64s,
    live: RankingHead,
    n_items: int,
    *,
    rng: np.random.Generator,
    typed: Typed | None,
) -> HeldOut:
    """Hold out the newest of the events (n,), of items that the live head has: the newer half of those that
    it has not learned, whose sources are `unlearned` (m,). Of those of one time, or without, some at random;
    and never more, for what is tried learns the others.
    """
    new = np.flatnonzero(np.isin(by_user.source, unlearned) & (by_user.other < len(live.items)))
    order = np.lexsort((rng.random(len(new)), np.nan_to_num(by_user.time[new])))
    held = np.zeros(len(by_user.other), dtype=np.bool_)
    held[new[order[(len(new) + 1) // 2 :]]] = True
    return HeldOut.of(by_user, n_items, held, rng, typed)


def may_follow(
    found: RankingHead, live: RankingHead, newest: HeldOut, tried: Callable[[], RankingHead]
) -> bool:
    """Return whether lists of `found` are not surely worse than those of the `live` head, and much like them
    or surely better. `tried`: fits a head as `found` is, without the `newest` events.
    """
    if not len(newest.users) or not len(newest.known.other):
        return True
    n_items = len(found.items)
    common, before = _beside(found, live, newest, n_items)
    if len(newest.row) < LEAST_WANTED:
        return common >= _ALIKE
    try:
        _, own = _beside(live, tried(), newest, n_items)
    except FactorsError:
        # It says nothing: of the others too few are left.
        return common >= _ALIKE
    quality, other = newest.gained(own), newest.gained(before)
    return surely_better(quality, other) or (common >= _ALIKE and not surely_better(other, quality))


def _beside(head: RankingHead, other: RankingHead, newest: HeldOut, n_items: int) -> tuple[float, Int64s]:
    """Return which part of the first `SHORT` items of lists by both heads is the same, and how many items
    stand before each wanted one (m,) in those of the `other`. For few users at a time.
    """
    before, common, n_users = list[Int64s](), list[float](), len(newest.users)
    size, both = max(1, _SCORES // n_items), min(len(head.items), len(other.items))
    for start in range(0, n_users, size):
        rows = slice(start, min(start + size, n_users))
        scores = [_scores(each, newest, rows, n_items) for each in (head, other)]
        common.append(_common(*(each[:, :both] for each in scores)) * (rows.stop - rows.start))
        before.append(newest.before(scores[1], rows))
    return sum(common) / n_users, np.concatenate(before)


def surely_better(quality: Float64s, than: Float64s) -> bool:
    """Say whether lists (u,) are better by more than a standard error of the difference."""
    gain = quality - than
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def _scores(head: RankingHead, newest: HeldOut, rows: slice, n_items: int) -> Float32s:
    """Return the relevance (b, n_items) to the users `rows`; what the head has not, or the user has chosen
    before, is in no list.
    """
    histories = newest.histories.part(rows.start, rows.stop)
    found = head.relevance(histories)[:, :n_items]
    scores = np.full((len(found), n_items), -np.inf, dtype=np.float32)
    scores[:, : found.shape[1]] = found
    scores[np.repeat(np.arange(len(found)), np.diff(histories.offsets)), histories.other_row] = -np.inf
    return scores


def _common(scores: Float32s, others: Float32s) -> float:
    """Return which part of the first `SHORT` items of lists by both scores (u, m) is the same."""
    n = min(SHORT, scores.shape[1])
    first = [
        (each >= np.partition(each, -n, axis=1)[:, -n, None]) & np.isfinite(each) for each in (scores, others)
    ]
    return float((first[0] & first[1]).sum() / max(1, first[1].sum()))
