"""Fits a ranking head to who rated what. Invariant: the users of a fit are those that folding in gives.

The values of the ratings play no part: a rating says that the user chose the item.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from factors.errors import FitDiverged, FitRefused
from factors.inference.histories import Compressed, compress_pairs
from factors.model.types import Float32s, Float64s, Int64s, Ratings
from factors.ranking.half_steps import Events, Floats, Prior, solve_rows
from factors.ranking.head import RankingHead
from factors.ranking.neighbours import fit_neighbours
from factors.ranking.parameters import RankingParameters, SideName

HoldOut = Literal["latest", "random"]


@dataclass(frozen=True, slots=True)
class RankingFit:
    """A fitted head, the vectors `users` (n_users, r) of the fit, without recency, and figures of the fit."""

    head: RankingHead
    users: Float32s
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingChoices:
    """What a fit does not learn but is told.

    `rank`, `sweeps`; `negatives`: weight of all pairs as a 0, for each event; `ridge`, `user_power`,
    `item_power`, `recency_span`, `recency_power`, `gamma`: see `RankingParameters`; `neighbours` an item,
    `neighbour_ridge`, `damping`: of the sparse term, which counts `sparse_weight`.
    """

    # The middle of what several sets of ratings choose.
    rank: int = 64
    sweeps: int = 12
    negatives: float = 8.0
    ridge: float = 0.006
    user_power: float = 0.0
    item_power: float = 0.0
    neighbours: int = 100
    neighbour_ridge: float = 50.0
    damping: float = 0.25
    sparse_weight: float = 0.5
    recency_span: float = 10.0
    recency_power: float = 0.0
    gamma: float = 0.5


def fit_ranking(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    *,
    rng: np.random.Generator,
    threads: int = 1,
    hold_out: HoldOut = "latest",
) -> RankingFit:
    """Return a head fitted to all `ratings`, whatever their values, with choices made on a part of them.

    Raises `FitRefused` where there is nothing to learn from, `FitDiverged`.
    """
    del hold_out
    by_user = compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, n_users)
    if len(by_user.other) == 0:
        raise FitRefused("no rating to learn a ranking from")
    return fit_with(by_user, n_items, RankingChoices(), rng=rng, threads=threads)


def fit_with(
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    rng: np.random.Generator,
    threads: int = 1,
) -> RankingFit:
    """Return a head fitted to the events `by_user` with these `choices`."""
    parameters, items = fit_factors(by_user, n_items, choices, rng=rng, threads=threads)
    neighbours = fit_neighbours(
        by_user,
        n_items,
        most=choices.neighbours,
        ridge=choices.neighbour_ridge,
        damping=choices.damping,
        threads=threads,
    )
    head = RankingHead(parameters, items, neighbours.scaled(choices.sparse_weight))
    users = head.fold_in_users(by_user.histories(), recency=False, threads=threads).astype(np.float32)
    if not np.isfinite(users).all() or not np.isfinite(items).all():
        raise FitDiverged("a ranking head that is not finite")
    return RankingFit(head, users, {"ranking_rank": float(parameters.rank)})


def fit_factors(
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    rng: np.random.Generator,
    threads: int = 1,
) -> tuple[RankingParameters, Float32s]:
    """Return parameters and item factors after the sweeps."""
    n_users = by_user.rows
    by_item = by_user.by_other(n_items)
    rank = max(1, min(choices.rank, n_users, n_items))
    parameters = _begin(by_user.counts, by_item.counts, rank, choices)
    # In float32, which is half the work: the last step for users is in float64.
    # Small, so that the first half-step for users is all prior and data, not chance.
    items: Floats = rng.normal(0.0, 0.1 / np.sqrt(rank), (n_items, rank)).astype(np.float32)
    users_of, items_of = (Events(data.indptr, data.other) for data in (by_user, by_item))
    for _ in range(choices.sweeps):
        parameters = replace(parameters, user_gram=_gram(items, parameters, "item", by_item.counts))
        ridges = parameters.ridges("user", by_user.counts)
        prior = Prior(
            parameters.user_gram, parameters.activity("user", by_user.counts), ridges, parameters.user_mean
        )
        users = solve_rows(users_of, items, prior, threads)
        mean = (ridges @ users.astype(np.float64)) / ridges.sum()
        parameters = replace(
            parameters, user_mean=mean, item_gram=_gram(users, parameters, "user", by_user.counts)
        )
        ridges = parameters.ridges("item", by_item.counts)
        prior = Prior(parameters.item_gram, parameters.activity("item", by_item.counts), ridges)
        items = solve_rows(items_of, users, prior, threads)
    parameters = replace(parameters, user_gram=_gram(items, parameters, "item", by_item.counts))
    return replace(parameters, noise=_noise(by_user, users, items, parameters)), items.astype(np.float32)


def _begin(user_counts: Int64s, item_counts: Int64s, rank: int, choices: RankingChoices) -> RankingParameters:
    n_users, n_items = len(user_counts), len(item_counts)
    return RankingParameters(
        background=choices.negatives * float(user_counts.sum()) / (n_users * n_items),
        user_power=choices.user_power,
        item_power=choices.item_power,
        user_unit=float(np.mean((user_counts + 1.0) ** choices.user_power)),
        item_unit=float(np.mean((item_counts + 1.0) ** choices.item_power)),
        n_users=float(n_users),
        n_items=float(n_items),
        ridge=choices.ridge,
        recency_span=choices.recency_span,
        recency_power=choices.recency_power,
        gamma=choices.gamma,
        noise=0.0,
        user_mean=np.zeros(rank),
        user_gram=np.eye(rank),
        item_gram=np.eye(rank),
    )


def _gram(table: Floats, parameters: RankingParameters, side: SideName, counts: Int64s) -> Float64s:
    """Return what all rows (n, r) of a side add to the precision of a typical row of the other."""
    weight = parameters.activity(side, counts)
    rows = table.astype(np.float64)
    gram = parameters.background * (rows.T @ (weight[:, None] * rows))
    return np.asarray(0.5 * (gram + gram.T))


def _noise(by_user: Compressed, users: Floats, items: Floats, parameters: RankingParameters) -> float:
    """Return the mean squared error of all pairs' preferences, weighted as they are fitted."""
    product = np.einsum("nk,nk->n", users[by_user.row], items[by_user.other]).astype(np.float64)
    # The pairs that are no events: x' (a0 Y'BY) x of each user, weighted by activity.
    activity, rows = parameters.activity("user", by_user.counts), users.astype(np.float64)
    others = float(activity @ np.einsum("nk,nk->n", rows @ parameters.user_gram, rows))
    weight = len(product) + parameters.background * parameters.n_items * float(activity.sum())
    return (float(np.sum((1.0 - product) ** 2)) + others) / weight
