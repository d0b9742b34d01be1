"""Figures of ranked lists against held-out ratings.

Invariant: every figure is a mean over the users who have something to find, one rule for all engines. Lists
are arrays (u, k) of item rows, best first, -1 where there is no item.

Recall@k and NDCG@k as in Liang et al. (2018): hits among the first k over min(k, wanted); gains, discounted
by log2(1 + rank), over the best that is possible. Graded gains as in Burges et al. (2005). Novelty as in Zhou
et al. (2010): the mean self-information of what is recommended.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from evaluation.question import Array, Bools, Rows

if TYPE_CHECKING:  # not loaded in the process of a peer, whose memory is measured
    from factors import Scale

RECALL_AT, NDCG_AT = 20, 100  # as in the literature, Liang et al. (2018)
SHORT = 10  # items of a list that people see at once
# Of the way from the lowest rating to the highest: 4 of 5 stars, with which the literature begins to like.
LIKED = 0.75
GRADES = 4  # relevance runs from 0 to 4, as judges of search results have it: 1 to 5 stars


@dataclass(frozen=True, slots=True)
class Wanted:
    """The held-out ratings (m,) by which lists are judged. `row`: the user's place among the lists."""

    row: npt.NDArray[np.int64]
    item: Rows
    value: Array

    @classmethod
    def of(cls, users: Rows, test_user: Rows, test_item: Rows, value: Array) -> "Wanted":
        """Return the ratings of `users` (u,), ascending, who have a list each."""
        kept = np.isin(test_user, users)
        return cls(np.searchsorted(users, test_user[kept]), test_item[kept], value[kept])


@dataclass(frozen=True, slots=True)
class RankingFigures:
    """Figures of one engine's lists, under the names that a `Line` has; NaN where no user has any.

    `liked_ndcg_100`: of the ratings from `LIKED` on; `graded_ndcg_10`: with `graded_gain`; `coverage_10`:
    share of all items that are in the first ten of any list; `novelty_10`: bits.
    """

    recall_20: float
    ndcg_100: float
    liked_ndcg_100: float
    graded_ndcg_10: float
    coverage_10: float
    novelty_10: float


def ranking_figures(
    top: Rows, wanted: Wanted, scale: "Scale", popularity: npt.NDArray[np.int64], n_users: int
) -> RankingFigures:
    """Return the figures of lists `top` (u, n). `popularity` (n_items,): training ratings of each item, of
    `n_users` users.
    """
    every = np.ones(len(wanted.row))
    liked = (position(wanted.value, scale) >= LIKED).astype(np.float64)
    first = top[:, :SHORT]
    shown = first[first >= 0]
    # An item that is new in the test counts as one that a single user knows.
    bits = -np.log2(np.maximum(popularity[shown], 1) / n_users)
    return RankingFigures(
        recall_20=recall(top, wanted),
        ndcg_100=ndcg(top, wanted, every),
        liked_ndcg_100=ndcg(top, wanted, liked),
        graded_ndcg_10=ndcg(top, wanted, graded_gain(wanted.value, scale), SHORT),
        coverage_10=len(np.unique(shown)) / len(popularity),
        novelty_10=float(bits.mean()) if len(shown) else float("nan"),
    )


def position(value: Array, scale: "Scale") -> Array:
    """Return where ratings are on their scale, 0 at its low end and 1 at its high one."""
    return (value - scale.low) / (scale.high - scale.low)


def graded_gain(value: Array, scale: "Scale") -> Array:
    """Return 2^grade - 1 of ratings: 0, 1, 3, 7, 15 for 1 to 5 stars. The lowest rating is worth nothing."""
    return np.exp2(GRADES * position(value, scale)) - 1.0


def recall(top: Rows, wanted: Wanted, k: int = RECALL_AT) -> float:
    """Return Recall@k."""
    hits = _gains(top[:, :k], wanted, np.ones(len(wanted.row))).sum(axis=1)
    counts = np.bincount(wanted.row, minlength=len(top)).astype(np.float64)
    return _mean_of_users(hits, np.minimum(counts, k))


def ndcg(top: Rows, wanted: Wanted, gain: Array, k: int = NDCG_AT) -> float:
    """Return NDCG@k with these gains (m,) of the wanted items. Users without any gain are left out."""
    got = _gains(top[:, :k], wanted, gain)
    # The best list has the highest gains first.
    order = np.lexsort((-gain, wanted.row))
    row = wanted.row[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    best = np.where(rank < k, gain[order] * _discount(rank), 0.0)
    possible = np.bincount(row, best, len(top)).astype(np.float64)
    return _mean_of_users(got @ _discount(np.arange(got.shape[1])), possible)


def _discount(rank: npt.NDArray[np.int64]) -> Array:
    # Ranks count from 0 here, from 1 in the literature.
    return np.asarray(1.0 / np.log2(2.0 + rank))


def _mean_of_users(got: Array, possible: Array) -> float:
    some: Bools = possible > 0
    return float((got[some] / possible[some]).mean()) if some.any() else float("nan")


def _gains(top: Rows, wanted: Wanted, gain: Array) -> Array:
    """Return the gain of each item of the lists (u, k), 0 for one that is not wanted."""
    if not len(wanted.row):
        return np.zeros(top.shape)
    # A pair as one whole number: a search in a sorted array finds it.
    width = int(max(wanted.item.max(initial=0), top.max(initial=0))) + 1
    pairs = wanted.row * width + wanted.item
    order = np.argsort(pairs)
    ranked = np.arange(len(top))[:, None] * width + top
    places = np.minimum(np.searchsorted(pairs[order], ranked), len(pairs) - 1)
    hit = (pairs[order][places] == ranked) & (top >= 0)
    return np.where(hit, gain[order][places], 0.0)
