"""Fits a ranking head with given choices. Invariant: the users of a fit are those that folding in gives.

The values of the ratings play no part: a rating says that the user chose the item. Events of other types
count as the choices say (`factors/ranking/type_weights.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from factors.errors import FitDiverged
from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, UInt8s
from factors.ranking.choices import RankingChoices
from factors.ranking.half_steps import Events, Floats, solve_rows
from factors.ranking.head import RankingHead
from factors.ranking.neighbours import CoOccurrences
from factors.ranking.parameters import Counts, RankingParameters, SideName
from factors.ranking.type_weights import TypeTable, event_counts


@dataclass(frozen=True, slots=True)
class RankingFit:
    """A fitted head, the vectors `users` (n_users, r) of the fit, without recency, and figures of the fit.
    `relevance` (1 + c, r): of `SideAttributes`; None without attributes, or where they tell nothing.
    """

    head: RankingHead
    users: Float32s
    metrics: dict[str, float]
    relevance: Float64s | None = None


def fit_with(
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    rng: np.random.Generator,
    begin: Float32s | None = None,
    threads: int = 1,
    codes: UInt8s | None = None,
) -> RankingFit:
    """Return a head fitted to the events `by_user` with these `choices`. `codes`: of their types, by
    `by_user.source`; None where all are ratings. Raises `FitDiverged`.
    """
    how: dict[str, Any] = {"rng": rng, "begin": begin, "threads": threads, "codes": codes}
    parameters, items = fit_factors(by_user, n_items, choices, **how)
    together = CoOccurrences.of(by_user, n_items, said(by_user, choices, codes))
    if choices.neighbours >= n_items:
        neighbours = together.fit_all(choices.neighbour_ridge)
    else:
        neighbours = together.fit(together.nearest(choices.neighbours), choices.neighbour_ridge, threads)
    head = RankingHead(parameters, items, neighbours.scaled(choices.sparse_weight))
    histories = by_user.histories()
    if codes is not None:
        histories = replace(histories, type_code=codes[by_user.source])
    users = head.fold_in_users(histories, recency=False, threads=threads).astype(np.float32)
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
    codes: UInt8s | None = None,
) -> tuple[RankingParameters, Float32s]:
    """Return parameters and item factors after the sweeps. `begin` (m, r): factors of the first items;
    `codes`: as in `fit_with`.
    """
    n_users = by_user.rows
    by_item = by_user.by_other(n_items)
    weight, target = TypeTable.of(choices.types).weights(codes, by_user)
    users_of = Events(by_user.indptr, by_user.other, weight, target)
    items_of = Events(by_item.indptr, by_item.other)
    if weight is not None and target is not None:
        items_of = replace(items_of, weight=weight[by_item.source], target=target[by_item.source])
    user_counts = event_counts(by_user, weight, target)
    item_counts = event_counts(by_item, items_of.weight, items_of.target)
    rank = max(1, min(choices.rank, n_users, n_items))
    parameters = _begin(user_counts, item_counts, rank, choices)
    # Small, so that the first half-step for users is all prior and data, not chance.
    items: Floats = rng.normal(0.0, 0.1 / np.sqrt(rank), (n_items, rank)).astype(np.float32)
    if begin is not None and begin.shape[1] == rank:
        items[: len(begin)] = begin[:n_items]
    for _ in range(choices.sweeps):
        # In float32, which is half the work: the last step for users is in float64.
        parameters = replace(parameters, user_gram=_gram(items, parameters, "item", item_counts))
        prior = parameters.prior("user", user_counts)
        users = solve_rows(users_of, items, prior, threads)
        mean = (prior.ridge @ users.astype(np.float64)) / prior.ridge.sum()
        parameters = replace(
            parameters, user_mean=mean, item_gram=_gram(users, parameters, "user", user_counts)
        )
        items = solve_rows(items_of, users, parameters.prior("item", item_counts), threads)
    parameters = replace(parameters, user_gram=_gram(items, parameters, "item", item_counts))
    noise = _noise(by_user, users_of, users, items, parameters)
    return replace(parameters, noise=noise), items.astype(np.float32)


def said(by_user: Compressed, choices: RankingChoices, codes: UInt8s | None) -> Float64s | None:
    """Return how much each event (n,) says for other items, None where all are ratings."""
    weight, target = TypeTable.of(choices.types).weights(codes, by_user)
    return None if weight is None or target is None else weight * target


def _begin(user_counts: Counts, item_counts: Counts, rank: int, choices: RankingChoices) -> RankingParameters:
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
        types=choices.types,
        noise=0.0,
        user_mean=np.zeros(rank),
        user_gram=np.eye(rank),
        item_gram=np.eye(rank),
    )


def _gram(table: Floats, parameters: RankingParameters, side: SideName, counts: Counts) -> Float64s:
    """Return what all rows (n, r) of a side add to the precision of a typical row of the other."""
    weight = parameters.activity(side, counts)
    rows = table.astype(np.float64)
    gram = parameters.background * (rows.T @ (weight[:, None] * rows))
    return np.asarray(0.5 * (gram + gram.T))


def _noise(
    by_user: Compressed, events: Events, users: Floats, items: Floats, parameters: RankingParameters
) -> float:
    """Return the mean squared error of all pairs' preferences, weighted as they are fitted."""
    product = np.einsum("nk,nk->n", users[by_user.row], items[by_user.other]).astype(np.float64)
    # The pairs that are no events: x' (a0 Y'BY) x of each user, weighted by activity.
    counts = event_counts(by_user, events.weight, events.target)
    activity, rows = parameters.activity("user", counts), users.astype(np.float64)
    others = float(activity @ np.einsum("nk,nk->n", rows @ parameters.user_gram, rows))
    total, errors = float(len(product)), (1.0 - product) ** 2
    if events.weight is not None and events.target is not None:
        total, errors = float(events.weight.sum()), events.weight * (events.target - product) ** 2
    weight = total + parameters.background * parameters.n_items * float(activity.sum())
    return (float(np.sum(errors)) + others) / weight
