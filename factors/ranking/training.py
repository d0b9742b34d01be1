"""Fits a ranking head with given choices. Invariant: the users of a fit are those that folding in gives.

The values of the ratings play no part: a rating says that the user chose the item. Events of other types
count as the choices say (`factors/ranking/type_weights.py`).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from factors.errors import FitDiverged
from factors.inference.backend import MANY_RATINGS
from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Int64s, UInt8s
from factors.ranking.half_steps import Events, Floats, solve_rows
from factors.ranking.head import RankingHead
from factors.ranking.neighbours import Neighbours, no_neighbours
from factors.ranking.parameters import KEPT_CHOICES, Counts, RankingChoices, RankingParameters, SideName
from factors.ranking.regressions import regressions
from factors.ranking.type_weights import TypeTable, event_counts


@dataclass(frozen=True, slots=True)
class RankingFit:
    """A fitted head, the vectors `users` (n_users, r) of the fit, without recency, and figures of the fit.
    `relevance` (1 + c, r): of `SideAttributes`; None without attributes, or where they tell nothing.
    `described` (d,): rows of the items whose factors are those of their attributes.
    """

    head: RankingHead
    users: Float32s
    metrics: dict[str, float]
    relevance: Float64s | None = None
    described: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


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
    compiled = len(by_user.other) >= MANY_RATINGS
    parameters, items = fit_factors(by_user, n_items, choices, compiled=compiled, **how)
    neighbours = no_neighbours(n_items)
    if choices.sparse_weight:
        neighbours = fit_sparse(by_user, n_items, choices, threads=threads, codes=codes, compiled=compiled)
    # As a history is folded in.
    events, counts = events_of_users(by_user.thinned(), choices, codes)
    table = items if compiled else items.astype(np.float64)
    users = solve_rows(events, table, parameters.prior("user", counts), threads, compiled=compiled)
    users = users.astype(np.float32)
    parameters = replace(parameters, noise=_noise(events, counts, users, items, parameters))
    head = RankingHead(parameters, items, neighbours.scaled(choices.sparse_weight))
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
    compiled: bool = False,
) -> tuple[RankingParameters, Float32s]:
    """Return parameters, without the noise, and item factors after the sweeps. `begin` (m, r): factors of the
    first items, in the first dimensions; `codes`: as in `fit_with`; `compiled`: as in `solve_rows`.
    """
    users_of, user_counts = events_of_users(by_user, choices, codes)
    items_of, item_counts = events_of_items(users_of, n_items)
    rank = max(1, min(choices.rank, by_user.rows, n_items))
    parameters = _begin(user_counts, item_counts, rank, choices)
    # Small, so that the first half-step for users is all prior and data, not chance.
    items: Floats = rng.normal(0.0, 0.1 / np.sqrt(rank), (n_items, rank)).astype(np.float32)
    if begin is not None and begin.shape[1] <= rank:
        items[: len(begin), : begin.shape[1]] = begin[:n_items]
    for _ in range(choices.sweeps):
        # In float32, which is half the work.
        parameters = replace(parameters, user_gram=_gram(items, parameters, "item", item_counts))
        prior = parameters.prior("user", user_counts)
        users = solve_rows(users_of, items, prior, threads, compiled=compiled)
        mean = (prior.ridge @ users.astype(np.float64)) / prior.ridge.sum()
        parameters = replace(
            parameters, user_mean=mean, item_gram=_gram(users, parameters, "user", user_counts)
        )
        prior = parameters.prior("item", item_counts)
        items = solve_rows(items_of, users, prior, threads, compiled=compiled)
    parameters = replace(parameters, user_gram=_gram(items, parameters, "item", item_counts))
    return parameters, items.astype(np.float32)


def fit_sparse(
    by_user: Compressed,
    n_items: int,
    choices: RankingChoices,
    *,
    threads: int,
    codes: UInt8s | None,
    compiled: bool,
) -> Neighbours:
    """Return the sparse term of the events `by_user`, before it is weighed; arguments as of `fit_factors`."""
    most, told = choices.neighbours, said(by_user, choices, codes)
    term = regressions(by_user, n_items, told, most=most, threads=threads, compiled=compiled)
    return (term.fit_all if most >= n_items else term.fit)(choices.neighbour_ridge)


def events_of_users(
    by_user: Compressed, choices: RankingChoices, codes: UInt8s | None
) -> tuple[Events, Int64s | Float64s]:
    """Return the events of the users, and how many each has."""
    weight, target = TypeTable.of(choices.types).weights(codes, by_user)
    return Events(by_user.indptr, by_user.other, weight, target), event_counts(by_user, weight, target)


def events_of_items(users_of: Events, n_items: int) -> tuple[Events, Int64s | Float64s]:
    """Return the events of users by item, and how many each has, or the weight of those that were wanted."""
    events = _of_items(users_of, n_items)
    if events.weight is None or events.target is None:
        return events, events.counts
    item = np.repeat(np.arange(n_items), events.counts)
    return events, np.bincount(item, events.weight * events.target, minlength=n_items)


def _of_items(events: Events, n_items: int) -> Events:
    """Return the events of users by item, each with its user."""
    shape = (len(events.indptr) - 1, n_items)
    # The position of each, where it is read.
    place: npt.NDArray[Any] = np.zeros(len(events.other), np.int8)
    if events.weight is not None:
        place = np.arange(len(events.other))
    by_item = sp.csr_array((place, events.other, events.indptr), shape=shape).tocsc()
    weight, target = (None if part is None else part[by_item.data] for part in (events.weight, events.target))
    return Events(by_item.indptr.astype(np.int64), by_item.indices, weight, target)


def said(by_user: Compressed, choices: RankingChoices, codes: UInt8s | None) -> Float64s | None:
    """Return how much each event (n,) says for other items, None where all are ratings."""
    weight, target = TypeTable.of(choices.types).weights(codes, by_user)
    return None if weight is None or target is None else weight * target


def _begin(user_counts: Counts, item_counts: Counts, rank: int, choices: RankingChoices) -> RankingParameters:
    n_users, n_items = len(user_counts), len(item_counts)
    kept: dict[str, Any] = {name: getattr(choices, name) for name in KEPT_CHOICES}
    return RankingParameters(
        background=choices.negatives * float(user_counts.sum()) / (n_users * n_items),
        user_unit=float(np.mean((user_counts + 1.0) ** choices.user_power)),
        item_unit=float(np.mean((item_counts + 1.0) ** choices.item_power)),
        n_users=float(n_users),
        n_items=float(n_items),
        noise=0.0,
        user_mean=np.zeros(rank),
        user_gram=np.eye(rank),
        item_gram=np.eye(rank),
        **{**kept, "neighbours": float(choices.neighbours)},
    )


def _gram(table: Floats, parameters: RankingParameters, side: SideName, counts: Counts) -> Float64s:
    """Return what all rows (n, r) of a side add to the precision of a typical row of the other."""
    weight = parameters.activity(side, counts)
    rows = table.astype(np.float64)
    gram = parameters.background * (rows.T @ (weight[:, None] * rows))
    return np.asarray(0.5 * (gram + gram.T))


def _noise(
    events: Events, counts: Counts, users: Floats, items: Floats, parameters: RankingParameters
) -> float:
    """Return the mean squared error of all pairs' preferences, weighted as they are fitted.

    `users`: the minimisers given the `items`. So the errors of a user's pairs are, with the terms of
    `half_steps`, `sum_S w t^2 + R |m|^2 - x'(sum_S w t y + R m) - R |x - m|^2`, the last two and the second
    together `R x'm - R x'x`.
    """
    weight, target, n = events.weight, events.target, len(events.other)
    if weight is None or target is None:
        said, squares, total = np.ones(n, np.float32), float(n), float(n)
    else:
        said, total = (weight * target).astype(np.float32), float(weight.sum())
        squares = float(weight @ target**2)
    shape = (len(users), len(items))
    wanted = sp.csr_array((said, events.other, events.indptr), shape=shape) @ items.astype(np.float32)
    prior = parameters.prior("user", counts)
    own = squares - float(np.einsum("nk,nk->", users, wanted, dtype=np.float64))
    apart = users @ parameters.user_mean - np.einsum("nk,nk->n", users, users, dtype=np.float64)
    total += parameters.background * parameters.n_items * float(prior.activity.sum())
    return max(own + float(prior.ridge @ apart), 0.0) / total
