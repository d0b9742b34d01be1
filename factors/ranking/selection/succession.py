"""Whether a head may follow the live one. Invariant: it finds the newest events, which neither has learned,
no worse; and where its lists are much unlike, better.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from factors.inference.backend import MANY_RATINGS
from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Int64s, UInt8s
from factors.ranking.choices import RankingChoices
from factors.ranking.half_steps import solve_rows
from factors.ranking.head import RankingHead
from factors.ranking.selection.held_out import LEAST_WANTED, SHORT, HeldOut, Typed
from factors.ranking.training import RankingFit, events_of_items, events_of_users

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
) -> HeldOut | None:
    """Hold out the newest of the events (n,), of items that the live head has: the newer half of those that
    it has not learned, whose sources are `unlearned` (m,). Of those of one time, or without, some at random;
    and never more, for what is tried learns the others. Return None where these say nothing of a head.
    """
    new = np.flatnonzero(np.isin(by_user.source, unlearned) & (by_user.other < len(live.items)))
    order = np.lexsort((rng.random(len(new)), np.nan_to_num(by_user.time[new])))
    held = np.zeros(len(by_user.other), dtype=np.bool_)
    held[new[order[(len(new) + 1) // 2 :]]] = True
    newest = HeldOut.of(by_user, n_items, held, rng, typed)
    tells = len(newest.users) and len(newest.known.other) and (typed is None or typed.wants_any(newest.known))
    return newest if tells else None


def may_follow(tried: RankingHead, live: RankingHead, newest: HeldOut) -> bool:
    """Return whether lists by a head that was `tried` without the `newest` events are not surely worse than
    those of the `live` head, and much like them or surely better.
    """
    common, before, own = _beside(tried, live, newest, len(tried.items))
    if len(newest.row) < LEAST_WANTED:
        return common >= _ALIKE
    quality, other = newest.gained(own), newest.gained(before)
    return surely_better(quality, other) or (common >= _ALIKE and not surely_better(other, quality))


def carried_on(
    live: RankingHead,
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    codes: UInt8s | None,
    threads: int,
) -> RankingFit:
    """Return the `live` head with what the events say of the items that it had not; `choices`, `codes`: of
    the fit that may not follow it.
    """
    parameters = replace(live.parameters, decided=choices.decided, types=choices.types)
    known, rank = min(len(live.items), n_items), parameters.rank
    items = np.zeros((n_items, rank), np.float32)
    items[:known] = live.items[:known]
    how: dict[str, Any] = {"threads": threads, "compiled": len(by_user.other) >= MANY_RATINGS}
    users_of, counts = events_of_users(by_user.thinned(), choices, codes)
    users = np.asarray(solve_rows(users_of, items, parameters.prior("user", counts), **how), np.float32)
    items_of, item_counts = events_of_items(events_of_users(by_user, choices, codes)[0], n_items)
    items[known:] = solve_rows(items_of, users, parameters.prior("item", item_counts), **how)[known:]
    term = live.neighbours.of_items(n_items)
    return RankingFit(RankingHead(parameters, items, term), users, {})


def _beside(
    head: RankingHead, other: RankingHead, newest: HeldOut, n_items: int
) -> tuple[float, Int64s, Int64s]:
    """Return which part of the first `SHORT` items of lists by both heads is the same, and how many items
    stand before each wanted one (m,) in those of the `other`, and of the `head`. For few users at a time.
    """
    before: tuple[list[Int64s], list[Int64s]] = [], []
    common, n_users = list[float](), len(newest.users)
    size, both = max(1, _SCORES // n_items), min(len(head.items), len(other.items))
    for start in range(0, n_users, size):
        rows = slice(start, min(start + size, n_users))
        scores = [_scores(each, newest, rows, n_items) for each in (other, head)]
        common.append(_common(*(each[:, :both] for each in scores)) * (rows.stop - rows.start))
        for found, each in zip(before, scores, strict=True):
            found.append(newest.before(each, rows))
    return sum(common) / n_users, np.concatenate(before[0]), np.concatenate(before[1])


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
