"""The candidates of a list by compiled loops, for large tables with an index.

Invariant: what is found has all that `blended` would find in numpy. Numba is optional, and is imported where
a table is large enough for its memory and its second of import to be little beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from factors.inference.compiled.least_squares import solve_events
from factors.inference.compiled.loading import Kernel, compile_loops
from factors.model.types import Bools, Float32s, Float64s, Int64s
from factors.posterior.posterior_model import PosteriorModel
from factors.ranking.blending import rating_factors
from factors.ranking.half_steps import Events, Floats, Prior
from factors.ranking.neighbours import Neighbours
from factors.serving.list_kernels import choose, look, reach
from factors.serving.mean_table import MeanTable
from factors.serving.rating_bounds import ROUNDED, RatingBounds

# Steps of the table of bounds: a thousandth of a star.
_STEPS = 4096
# So far below the limit of the n-th best a limit may be and be rated at once: bounds are tighter than that.
_SLACK = 0.99
_NO_MASK = np.zeros(0, dtype=np.bool_)
_NO_POSITIONS, _NO_STARTS = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)

_SIGNATURES: dict[Kernel, tuple[str, ...]] = {
    solve_events: (
        *("i8", "i8", "i8[1]", "i8[1]", "f8[1]", "f8[1]", "f8[2]"),
        *("f8[2]", "f8[1]", "f8[1]", "f8[1]", "f8[2]="),
    ),
    reach: ("i8[1]", "f8[1]", "i8[1]", "i4[1]", "f4[1]", "i8[1]", "i8[1]=", "f8[1]="),
    look: (
        *("f4[1]", "f4[2]", "i4[1]", "i8[1]", "i8", "u2[1]", "i8[1]", "i4[1]", "i8[1]"),
        *("b[1]", "b", "i8[1]", "f8[1]", "i8[1]=", "f8[1]="),
    ),
    choose: (
        *("i8[1]", "f8[1]", "i4[1]", "i8", "i8", "f4[1]", "f8", "f4[2]", "i4[1]", "i8", "f8"),
        *("f8[1]", "f8", "f8", "f8", "i8[1]=", "f8[1]="),
    ),
}


@dataclass(frozen=True, slots=True)
class CompiledLists:
    """`loops` by the function that they are made from; `factors` (k,): the highest that the rating counts in
    a score, by steps of `width` of the rating's score from `start` on.
    """

    loops: Mapping[Kernel, Kernel]
    factors: Float64s
    start: float
    width: float

    @classmethod
    def of(cls, posterior: PosteriorModel, gamma: float, loops: Mapping[Kernel, Kernel]) -> "CompiledLists":
        """Return what finds candidates by `loops`."""
        low, high = posterior.link.score_range
        scores = np.linspace(low, high, _STEPS)
        ratings = np.append(posterior.link.highest_ratings(scores), posterior.model.scale.high)
        factors = rating_factors(ratings, gamma, posterior.model.scale)
        return cls(loops, factors, low, (high - low) / (_STEPS - 1))

    def solve(self, events: Events, table: Floats, prior: Prior) -> Floats:
        """Return the rows (b, r) of `half_steps.solve_rows`."""
        none, rank = np.zeros(0), table.shape[1]
        weight = none if events.weight is None else events.weight
        target = none if events.target is None else events.target
        mean = np.zeros(rank) if prior.mean is None else prior.mean
        result = np.empty((len(events.indptr) - 1, rank))
        own = (prior.gram, prior.activity, prior.ridge, mean)
        entries = (events.indptr, events.other, weight, target, table)
        self.loops[solve_events](0, len(result), *entries, *own, result)
        return result

    def find(
        self,
        means: MeanTable,
        neighbours: Neighbours,
        features: Float32s,
        said: tuple[Int64s, Float64s],
        *,
        user: Float32s,
        bounds: RatingBounds,
        n: int,
        exclude: Int64s,
        least: int,
        some: int,
        allowed: Bools | None,
        most: int | None = None,
    ) -> tuple[Int64s, Float64s, float] | None:
        """Return candidates of the best `n` for the `features` (r,) of a user who `said` so much by these
        items: rows (m,), their relevance (m,), and what the score of no other item exceeds; None where numpy
        has to look.

        `user` (user_width,): the row of the user; `bounds`: of the ratings; `least`: items that the index is
        looked into for; `some` of the most relevant tell what may be left out. None also where the lists
        have more than `most` items.
        """
        near = means.lists_near(features, least, allowed)
        if near is None or means.index is None or (most is not None and near.size > most):
            return None
        items, weight = said
        room = len(exclude) + int((neighbours.indptr[items + 1] - neighbours.indptr[items]).sum())
        rows, added = np.empty(room, dtype=np.int64), np.empty(room)
        apart = self.loops[reach](
            items, weight, neighbours.indptr, neighbours.item_row, neighbours.weight, exclude, rows, added
        )
        kept = near.allowed
        filtered = (_NO_POSITIONS, _NO_STARTS, _NO_MASK, False)
        if kept is not None:
            filtered = (kept.positions, kept.starts, kept.mask, True)
        where = np.empty(near.size + apart, dtype=np.int64)
        relevance = np.empty(near.size + apart)
        # What came after the index is in the last list.
        lists = np.append(near.numbers, len(means.starts) - 1)
        table = (means.means, means.positions, means.starts, means.n_items, means.index.lists)
        count = self.loops[look](
            features, *table, lists, *filtered, rows[:apart], added[:apart], where, relevance
        )
        own, base = bounds.score_of(user)
        rated = (bounds.means.means, bounds.means.positions, bounds.means.n_items, ROUNDED)
        chosen, limits = np.empty(8 * some, dtype=np.int64), np.empty(8 * some)
        most, rest = self.loops[choose](
            *(where[:count], relevance[:count], means.rows, n, some, own, base, *rated),
            *(self.factors, self.start, self.width, _SLACK, chosen, limits),
        )
        if most < 0:
            return None
        places = chosen[:most]
        return means.rows_at(where[places]), relevance[places], math.nextafter(rest, math.inf)


LOOPS: tuple[Kernel, ...] = tuple(_SIGNATURES)


@lru_cache(maxsize=1)
def list_loops() -> dict[Kernel, Kernel]:
    """Return the loops, compiled."""
    return compile_loops(LOOPS, _SIGNATURES)
