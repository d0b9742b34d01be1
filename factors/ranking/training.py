"""Fits a ranking head with given choices. Invariant: the users of a fit are those that folding in gives.

The values of the ratings play no part: a rating says that the user chose the item.
"""

from dataclasses import dataclass, replace

import numpy as np

from factors.errors import FitDiverged
from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Int64s
from factors.ranking.choices import RankingChoices
from factors.ranking.half_steps import Events, Floats, solve_rows
from factors.ranking.head import RankingHead
from factors.ranking.neighbours import CoOccurrences
from factors.ranking.parameters import RankingParameters, SideName


@dataclass(frozen=True, slots=True)
class RankingFit:
    """A fitted head, the vectors `users` (n_users, r) of the fit, without recency, and figures of the fit."""

    head: RankingHead
    users: Float32s
    metrics: dict[str, float]


def fit_with(
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    rng: np.random.Generator,
    begin: Float32s | None = None,
    threads: int = 1,
) -> RankingFit:
    """Return a head fitted to the events `by_user` with these `choices`. Raises `FitDiverged`."""
    parameters, items = fit_factors(by_user, n_items, choices, rng=rng, begin=begin, threads=threads)
    together = CoOccurrences.of(by_user, n_items)
    if choices.neighbours >= n_items:
        neighbours = together.fit_all(choices.neighbour_ridge)
    else:
        neighbours = together.fit(together.nearest(choices.neighbours), choices.neighbour_ridge, threads)
    head = RankingHead(parameters, items, neighbours.scaled(choices.sparse_weight))
    users = head.fold_in_users(by_user.histories(), recency=False, threads=threads).astype(np.float32)
    if not all(np.isfinite(array).all() for array in (users, items, neighbours.weight)):
        raise FitDiverged("a ranking head that is not finite")
    return RankingFit(head, users, {})


def fit_factors(
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    rng: np.random.Generator,
    begin: Float32s | None = None,
    threads: int = 1,
) -> tuple[RankingParameters, Float32s]:
    """Return parameters and item factors after the sweeps. `begin` (m, r): factors of the first items."""
    n_users = by_user.rows
    by_item = by_user.by_other(n_items)
    rank = max(1, min(choices.rank, n_users, n_items))
    parameters = _begin(by_user.counts, by_item.counts, rank, choices)
    # Small, so that the first half-step for users is all prior and data, not chance.
    items: Floats = rng.normal(0.0, 0.1 / np.sqrt(rank), (n_items, rank)).astype(np.float32)
    if begin is not None and begin.shape[1] == rank:
        items[: len(begin)] = begin[:n_items]
    users_of, items_of = (Events(data.indptr, data.other) for data in (by_user, by_item))
    for _ in range(choices.sweeps):
        # In float32, which is half the work: the last step for users is in float64.
        parameters = replace(parameters, user_gram=_gram(items, parameters, "item", by_item.counts))
        prior = parameters.prior("user", by_user.counts)
        users = solve_rows(users_of, items, prior, threads)
        mean = (prior.ridge @ users.astype(np.float64)) / prior.ridge.sum()
        parameters = replace(
            parameters, user_mean=mean, item_gram=_gram(users, parameters, "user", by_user.counts)
        )
        items = solve_rows(items_of, users, parameters.prior("item", by_item.counts), threads)
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
        recency_boost=choices.recency_boost,
        gamma=choices.gamma,
        negatives=choices.negatives,
        neighbours=float(choices.neighbours),
        neighbour_ridge=choices.neighbour_ridge,
        sparse_weight=choices.sparse_weight,
        decided=choices.decided,
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
