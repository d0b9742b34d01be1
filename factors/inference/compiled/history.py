"""Folding users and items in by the loops of `history_kernels`.

Invariant: rows are those of `half_step` to the last digits of float32. What the loops cannot do (users or
items that move, contexts, a matrix without an inverse) is left to it, as all is in a process that has not
loaded them; nothing is compiled here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.inference.compiled import reading_kernels as places
from factors.inference.compiled.score_kernels import LANES
from factors.inference.half_step import TO_THE_END
from factors.inference.histories import RECENT, SAMPLED, compress
from factors.inference.side_moments import prior_rows, rests_on_attributes
from factors.model.columns import Columns
from factors.model.layout import COUNT, RATING_MEAN, SESSION_KEYS, sitting_keys
from factors.model.parameters import Parameters, Side, SideName
from factors.model.quantized_rows import RowCodec
from factors.model.scale import ordinal_levels
from factors.model.types import Bools, Float32s, Float64s, Histories, Int64s

# `history_kernels.fold_in`: from arrays to how many rows are folded in.
Loop = Callable[..., int]
Arrays = tuple[npt.NDArray[Any], ...]


@dataclass(slots=True)
class Loaded:
    """The `loop` that this process folds in with, None for none."""

    loop: Loop | None = None


# Of the process, as an imported module is: all models use it from the next fold-in on.
LOADED = Loaded()


@dataclass(frozen=True, slots=True)
class HistoryTerms:
    """What of a model the loops read to fold in rows of a side, in the order of their arguments. `codec`: of
    the rows of the other side, None where these are read as they are.
    """

    own: Side
    codec: RowCodec | None
    width: int
    constants: Arrays
    sizes: Int64s
    numbers: Float64s

    @staticmethod
    def of(parameters: Parameters, name: SideName, codec: RowCodec | None) -> "HistoryTerms | None":
        """Return the terms of side `name` of a model; None where the loops do not know its rows."""
        own, other = parameters.side(name)
        if parameters.moves or parameters.context is not None:
            return None
        dim, cold, scale = own.layout.dim, own.cold_start, parameters.scale
        begin = cold or own
        prior = prior_rows(other, 1)
        words = prior.astype(np.float32) if codec is None else codec.encode(prior)
        units = np.ones(own.layout.packed) if codec is None else codec.units.astype(np.float64)
        constants: Arrays = (
            words,
            words.view(np.int16),
            np.zeros(dim) if cold is None else cold.effect,
            own.precision,
            begin.precision,
            np.vstack([begin.mean, begin.covariance]),
            units,
            np.concatenate([[-math.inf], parameters.cuts, [math.inf]]),
        )
        ordinal = parameters.link == "ordinal"
        levels = ordinal_levels(scale) if ordinal else 1
        sizes = {
            places.RANK: own.layout.rank,
            places.SLOTS: own.layout.slots,
            places.OTHER_SLOTS: other.layout.slots * other.has_sessions,
            places.OTHER_WIDTH: words.shape[1],
            places.WIDTH: own.layout.width,
            places.STEPS: TO_THE_END.steps if ordinal else 1,
            places.ORDINAL: ordinal,
            places.COLD: cold is not None,
            places.LEARNED: cold is not None and own.implicit_ridge > 0,
            places.LEVELS: levels,
            places.SLOTTED: own.has_sessions and own.session_length > 0,
            places.PLAIN: codec is None,
        }
        numbers = {
            places.ALL_MEAN: parameters.mean,
            places.NOISE: parameters.noise,
            places.DAMPING: TO_THE_END.damping_for(parameters) if ordinal else 1.0,
            places.AT_REST: TO_THE_END.at_rest,
            places.LOW: scale.low,
            places.PER_LEVEL: (levels - 1) / (scale.high - scale.low) if ordinal else 1.0,
            places.SESSION: own.session_length,
            places.SESSION_VARIANCE: own.session_variance,
            places.OTHER_SESSION: other.session_length,
            places.OTHER_VARIANCE: other.effect_variance,
            places.COLD_COUNT: 0.0 if cold is None else cold.count,
            places.WRAP: SESSION_KEYS,
            places.PER_SITTING: own.sessions_a_sitting,
            places.SITTING_VARIANCE: own.sitting_variance,
            places.PER_OTHER_SITTING: other.sessions_a_sitting,
        }
        of_sizes, of_numbers = np.zeros(places.N_SIZES, np.int64), np.zeros(places.N_NUMBERS)
        of_sizes[list(sizes)], of_numbers[list(numbers)] = list(sizes.values()), list(numbers.values())
        constants = tuple(map(np.ascontiguousarray, constants))
        return HistoryTerms(own, codec, words.shape[1], constants, of_sizes, of_numbers)

    def rows(
        self,
        loop: Loop,
        others: Float32s,
        histories: Histories,
        *,
        new: Bools | None,
        attributes: Columns | None,
        keep: float,
    ) -> Float64s | None:
        """Return what `half_step` would for rows with these histories (b, width); None where the loop cannot
        tell. `new` and `attributes` as in `HalfStepInput`, `keep`: key of the session that rows must keep.
        """
        if not others.flags.c_contiguous or others.dtype != np.float32 or others.shape[1] != self.width:
            return None
        own = self.own
        offsets = np.ascontiguousarray(histories.offsets, dtype=np.int64)
        lengths = np.diff(offsets)
        longest, b = int(lengths.max(initial=0)), len(lengths)
        ratings: Arrays = (histories.other_row, histories.value, histories.time)
        # The fold-in of users alone has a bound.
        if longest > RECENT + SAMPLED and self.codec is not None:
            data = compress(histories, len(others), whole=False)
            offsets, longest = data.indptr, int(data.counts.max(initial=0))
            ratings = tuple(column[data.source] for column in ratings)
        kinds = np.int32, np.float64, np.float64
        ratings = tuple(map(np.ascontiguousarray, ratings, kinds))
        sizes, numbers = self.sizes.copy(), self.numbers.copy()
        sizes[places.N_ROWS], sizes[places.N_OTHERS], numbers[places.KEPT] = b, len(others), keep
        numbers[places.KEPT_SITTING] = math.nan
        if own.sitting_length:
            numbers[places.KEPT_SITTING] = sitting_keys(np.array([keep]), own.sessions_a_sitting)[0]
        base = _base(own.mean, own.attribute_effects, attributes, b)
        cold = own.cold_start
        cold_base = base if cold is None else _base(cold.mean, cold.attribute_effects, attributes, b)
        since = np.zeros(b, np.uint8) if new is None else new.view(np.uint8)
        rows = np.empty((b, own.layout.width))
        done = loop(
            *(others, others.view(np.int16), offsets, *ratings, since, base, cold_base),
            *(*self.constants, sizes, numbers, *self._memory(longest), rows),
        )
        if done < b:
            return None
        if attributes is not None and rests_on_attributes(own):
            # As `prior_rows` has it.
            rows[:, RATING_MEAN] += (rows[:, COUNT] == 0) & attributes.described
        return rows

    def _memory(self, longest: int) -> Arrays:
        """Return arrays for the loops to work in, for histories of up to `longest` entries."""
        blocks, rank, packed = -(-longest // LANES), int(self.sizes[places.RANK]), self.own.layout.packed
        groups = longest * (1 + (self.numbers[places.PER_SITTING] > 0)) if self.sizes[places.SLOTTED] else 0
        return (
            np.empty((blocks * rank, LANES)),
            np.zeros((blocks * LANES, places.wide(packed)), np.float32),
            np.empty((blocks * places.ENTRY_ROWS, LANES)),
            np.empty((groups, places.GROUP_COLUMNS)),
            np.empty((groups, rank + 1)),
            np.empty((groups, rank + 1)),
            np.zeros((4, rank + 1, rank + 1)),
            np.zeros((5, packed)),
            np.zeros(places.wide(packed), np.float32),
            np.empty((10, LANES)),
            np.empty(max(16, 4 << longest.bit_length()), np.int32),
            np.empty(blocks * LANES, np.int32),
        )


def _base(mean: Float64s, effects: Float64s | None, attributes: Columns | None, b: int) -> Float64s:
    if attributes is not None and effects is not None:
        return np.ascontiguousarray(mean + attributes.times(effects))
    return np.tile(mean, (b, 1))
