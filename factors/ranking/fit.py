"""Fits a ranking head: chooses, then learns from everything. Invariant: what is published is finite."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from factors.errors import FitRefused
from factors.inference.histories import Compressed, compress_pairs
from factors.model.columns import Columns
from factors.model.types import Bools, Choices, Ratings
from factors.ranking.choices import HoldOut, choices_of
from factors.ranking.head import RankingHead
from factors.ranking.held_out import Typed
from factors.ranking.selection import LEAST_EVENTS, choose
from factors.ranking.side_attributes import factors_of, learn_relevance
from factors.ranking.training import RankingFit, fit_with
from factors.ranking.type_weights import TypeTable, TypeWeight, one_of_pairs, resolved

# From an earlier head so many sweeps take in what is new, as many as a choice has.
_SWEEPS = 4
# With so many times the events, of all or of a type, what was chosen is chosen again, as the terms of the
# ratings' fit are.
_AGAIN = 1.5


def fit_ranking(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    *,
    rng: np.random.Generator,
    threads: int = 1,
    hold_out: HoldOut = "latest",
    start: RankingHead | None = None,
    choices: Choices | None = None,
    types: Sequence[TypeWeight] = (),
    attributes: Columns | None = None,
) -> RankingFit:
    """Return a head fitted to who rated what, with settings chosen on a part of it that is held out.

    `hold_out`: the latest events of each user, where times tell which they are, or a random part. `start`: an
    earlier head, perhaps of fewer items, to go on from while the events are about as many as it was chosen
    by. `choices`: where there are events of other types, these and the ratings, which count as `types` say.
    `attributes`: of the items; those without events have the factors that these say. BLAS threads are the
    caller's to pin. Raises `FitRefused` where there is nothing to learn from, and `FitDiverged`.
    """
    by_user, typed = _events(ratings, n_users, start, choices, types)
    codes = None if typed is None else typed.codes
    events = len(by_user.other)
    if events == 0:
        raise FitRefused("no rating to learn a ranking from")
    chosen = typed is None or not typed.grown(by_user, _AGAIN)
    if start is not None and chosen and LEAST_EVENTS <= events < _AGAIN * start.parameters.decided:
        settings = replace(choices_of(start.parameters), sweeps=_SWEEPS)
        settings = replace(settings, types=() if typed is None else typed.types)
        found = fit_with(by_user, n_items, settings, rng=rng, begin=start.items, threads=threads, codes=codes)
    else:
        typed = None if typed is None else typed.counted(by_user)
        settings, figures = choose(by_user, n_items, hold_out, rng, threads, types=typed)
        found = fit_with(by_user, n_items, settings, rng=rng, threads=threads, codes=codes)
        found = replace(found, metrics=figures)
    if attributes is not None:
        found = _described(found, attributes, np.bincount(by_user.other, minlength=n_items) > 0)
    told = {
        f"ranking_{name}": float(getattr(settings, name))
        for name in ("negatives", "ridge", "sparse_weight", "recency_boost", "gamma")
    }
    told |= {f"ranking_weight_{each.code}": float(each.weight or 0.0) for each in settings.types}
    return replace(found, metrics={**found.metrics, **told})


def _events(
    ratings: Ratings,
    n_users: int,
    start: RankingHead | None,
    choices: Choices | None,
    types: Sequence[TypeWeight],
) -> tuple[Compressed, Typed | None]:
    """Return the events by user, and of events of several types what they count."""
    if choices is None:
        return compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, n_users), None
    weights, open_codes = resolved(types, () if start is None else start.parameters.types)
    high = float(ratings.value.max()) if len(ratings.value) else 1.0
    by_user = one_of_pairs(choices, n_users, TypeTable.of(weights), high)
    return by_user, Typed(choices.type_code, weights, open_codes)


def _described(found: RankingFit, attributes: Columns, chosen: Bools) -> RankingFit:
    """Return `found` with the items that are not `chosen` (n_items,) as their attributes have them."""
    # What all users add to the precision of an item is, but for a factor, what relevance is made of.
    user_gram = found.head.parameters.item_gram
    relevance = learn_relevance(attributes, found.head.items, chosen, user_gram)
    if relevance is None:
        return found
    items, others = found.head.items.copy(), np.flatnonzero(~chosen)
    items[others] = factors_of(relevance, attributes.take(others))
    return replace(found, head=replace(found.head, items=items), relevance=relevance)
