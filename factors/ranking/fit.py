"""Fits a ranking head: chooses, then learns from everything. Invariant: what is published is finite."""

from dataclasses import replace

import numpy as np

from factors.errors import FitRefused
from factors.inference.histories import compress_pairs
from factors.model.types import Ratings
from factors.ranking.choices import HoldOut, choices_of
from factors.ranking.head import RankingHead
from factors.ranking.selection import LEAST_EVENTS, choose
from factors.ranking.training import RankingFit, fit_with

# From an earlier head so many sweeps take in what is new, as many as a choice has.
_SWEEPS = 4
# With so many times the events what was chosen is chosen again, as the terms of the ratings' fit are.
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
) -> RankingFit:
    """Return a head fitted to who rated what, with choices made on a part of it that is held out.

    `hold_out`: the latest events of each user, where times tell which they are, or a random part. `start`: an
    earlier head, perhaps of fewer items, to go on from while the events are about as many as it was chosen
    by. BLAS threads are the caller's to pin. Raises `FitRefused` where there is nothing to learn from, and
    `FitDiverged`.
    """
    by_user = compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, n_users)
    events = len(by_user.other)
    if events == 0:
        raise FitRefused("no rating to learn a ranking from")
    if start is not None and LEAST_EVENTS <= events < _AGAIN * start.parameters.decided:
        choices = replace(choices_of(start.parameters), sweeps=_SWEEPS)
        found = fit_with(by_user, n_items, choices, rng=rng, begin=start.items, threads=threads)
    else:
        choices, figures = choose(by_user, n_items, hold_out, rng, threads)
        found = fit_with(by_user, n_items, choices, rng=rng, threads=threads)
        found = replace(found, metrics=figures)
    told = {
        f"ranking_{name}": float(getattr(choices, name))
        for name in ("negatives", "ridge", "sparse_weight", "recency_boost", "gamma")
    }
    return replace(found, metrics={**found.metrics, **told})
