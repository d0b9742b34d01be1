"""Folding users and items in by the loops of `history_kernels`.

Invariant: rows are those of `half_step` to the last digits of float32. A matrix without an inverse is left to
it, as all is in a process that has not loaded the loops; nothing is compiled here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.inference.compiled import reading_kernels as places
from factors.inference.compiled.score_kernels import LANES
from factors.inference.context import ContextShifts
from factors.inference.half_step import TO_THE_END
from factors.inference.histories import RECENT, SAMPLED, compress
from factors.inference.side_moments import prior_rows, rests_on_attributes
from factors.model.columns import Columns
from factors.model.layout import COUNT, RATING_MEAN, SESSION_KEYS, pack, sitting_keys, unpack
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

    name: SideName
    parameters: Parameters
    codec: RowCodec | None
    width: int
    constants: Arrays
    sizes: Int64s
    numbers: Float64s
    state: "_State"

    @property
    def own(self) -> Side:
        """The side whose rows are folded in."""
        return self.parameters.side(self.name)[0]

    @staticmethod
    def of(parameters: Parameters, name: SideName, codec: RowCodec | None) -> "HistoryTerms":
        """Return the terms of side `name` of a model."""
        own, other = parameters.side(name)
        dim, cold, scale = own.layout.dim, own.cold_start, parameters.scale
        begin = cold or own
        state = _State(own)
        prior = prior_rows(other, 1)
        words = prior.astype(np.float32) if codec is None else codec.encode(prior)
        units = np.ones(own.layout.packed) if codec is None else codec.units.astype(np.float64)
        constants: Arrays = (
            words,
            words.view(np.int16),
            state.vectors(np.zeros((1, dim)) if cold is None else cold.effect[None])[0],
            state.precision(own.precision),
            state.precision(begin.precision),
            np.vstack([state.vectors(begin.mean[None]), state.covariance(begin.covariance)]),
            state.units(units),
            np.concatenate([[-math.inf], parameters.cuts, [math.inf]]),
        )
        ordinal = parameters.link == "ordinal"
        levels = ordinal_levels(scale) if ordinal else 1
        sizes = {
            places.RANK: state.dim - 1,
            places.LATENT: own.layout.rank,
            places.MOVING: own.drift is not None,
            places.OTHER_MOVING: other.drift is not None,
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
            places.ANY_TIME: own.any_time,
        }
        for drift, origin, unit in (
            (own.drift, places.ORIGIN, places.UNIT),
            (other.drift, places.OTHER_ORIGIN, places.OTHER_UNIT),
        ):
            if drift is not None:
                numbers |= {origin: drift.origin, unit: drift.unit}
        of_sizes, of_numbers = np.zeros(places.N_SIZES, np.int64), np.zeros(places.N_NUMBERS)
        of_sizes[list(sizes)], of_numbers[list(numbers)] = list(sizes.values()), list(numbers.values())
        constants = tuple(map(np.ascontiguousarray, constants))
        return HistoryTerms(name, parameters, codec, words.shape[1], constants, of_sizes, of_numbers, state)

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
        context = histories.context
        held = int(offsets[-1]) if lengths.min(initial=0) >= 0 else -1
        # Numpy says what is wrong.
        if any(len(column) < held or held < 0 for column in ratings):
            return None
        if context is not None and len(context) != len(histories.other_row):
            return None
        # The fold-in of users alone has a bound.
        if longest > RECENT + SAMPLED and self.codec is not None:
            data = compress(histories, len(others), whole=False)
            offsets, longest = data.indptr, int(data.counts.max(initial=0))
            ratings, context = tuple(column[data.source] for column in ratings), data.context
        kinds = np.int32, np.float64, np.float64
        ratings = tuple(map(np.ascontiguousarray, ratings, kinds))
        sizes, numbers = self.sizes.copy(), self.numbers.copy()
        shifts, shift = ContextShifts.of(self.parameters, self.name, context), np.zeros((0, own.layout.dim))
        if shifts is not None:
            sizes[places.SHIFTED], shift = 1, shifts.all()
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
            *(others, others.view(np.int16), offsets, *ratings, shift, since),
            *(self.state.vectors(base), self.state.vectors(cold_base)),
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
        blocks, rank = -(-longest // LANES), int(self.sizes[places.RANK])
        packed = (rank + 1) * (rank + 2) // 2
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


class _State:
    """The state of a row of `own` as the loops have it, of `dim` numbers: where rows move, the velocity
    stands between latent part and bias.
    """

    def __init__(self, own: Side) -> None:
        rank = own.layout.rank
        self._drift = own.drift
        self.dim = own.layout.dim * (1 if own.drift is None else 2)
        self._position = np.append(np.arange(rank), self.dim - 1)
        self._velocity = np.arange(rank, self.dim - 1)

    def vectors(self, positions: Float64s) -> Float64s:
        """Return vectors (n, dim) that are `positions` (n, d), and 0 for velocities."""
        if self._drift is None:
            return positions
        states = np.zeros((len(positions), self.dim))
        states[:, self._position] = positions
        return states

    def precision(self, positions: Float64s) -> Float64s:
        """Return the precision (dim, dim) of the prior, from that of `positions` (d, d)."""
        return positions if self._drift is None else self._both(positions, self._drift.precision)

    def covariance(self, positions: Float64s) -> Float64s:
        """Return the covariance (dim, dim) of the prior, from that of `positions` (d, d)."""
        return positions if self._drift is None else self._both(positions, self._drift.covariance)

    def _both(self, position: Float64s, velocity: Float64s) -> Float64s:
        state = np.zeros((self.dim, self.dim))
        state[np.ix_(self._position, self._position)] = position
        state[np.ix_(self._velocity, self._velocity)] = velocity
        return state

    def units(self, units: Float64s) -> Float64s:
        """Return what the codes of a state are worth, from `units` (packed,) of positions."""
        if self._drift is None:
            return units
        of = np.zeros(self.dim, dtype=np.int64)
        of[self._position] = of[self._velocity] = np.arange(len(self._position))
        # The codes of a velocity's bias are 0.
        d = len(self._position)
        full: Float64s = unpack(units[None], d).reshape(d, d)[np.ix_(of, of)]
        return pack(full[None]).reshape(-1)


def _base(mean: Float64s, effects: Float64s | None, attributes: Columns | None, b: int) -> Float64s:
    if attributes is not None and effects is not None:
        return np.ascontiguousarray(mean + attributes.times(effects))
    return np.tile(mean, (b, 1))
