"""Half-steps on compiled loops and several threads, for fits of many ratings.

Invariant: they give what `half_step` gives, but for the rounding of float32 tables, and the same whatever the
number of threads. Numba is imported when the first such fit begins.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

from factors.inference.backend import MANY_RATINGS, HalfStepBackend, NumpyBackend, RatedSets
from factors.inference.compiled import entry_kernels, score_kernels, solve_kernels
from factors.inference.compiled.loading import Kernel, compile_loops
from factors.inference.context import ContextShifts
from factors.inference.entry_moments import HalfStepInput, Posterior
from factors.inference.half_step import TO_THE_END, HalfStep, Iteration
from factors.inference.histories import NO_HISTORIES, Compressed
from factors.inference.motion import FARTHEST_TIME, MOST_AGE, motion_of
from factors.inference.ordinal import NO_SITES, Sites
from factors.inference.session_effects import SessionEffects, matters, move_to_any_time
from factors.inference.side_moments import prior_rows
from factors.inference.sittings import Sittings
from factors.model.attributes import FARTHEST
from factors.model.layout import NO_SESSION, SESSION_KEYS, FloatTable
from factors.model.parameters import Side
from factors.model.quantized_rows import QuantizedTable
from factors.model.scale import ordinal_levels
from factors.model.types import Bools, Float32s, Float64s, Int64s

_NOTHING: Float64s = np.zeros(0)
_NOTHING32: Float32s = np.zeros(0, dtype=np.float32)
# Sites of float32 let no table of rows come nearer to rest: a fit ended with 30 steps, where 6 are enough.
_AT_REST = 1e-6
# Rows that still move go on without the others where they have at most so many of the ratings.
_FEW_MOVE = 0.25
# In ranges of the ratings: float32 then knows them to a millionth of that.
_FARTHEST = 16.0
# Entries whose scores are in memory at once, 12 bytes each.
_SCORED_AT_ONCE = 1 << 18
_NO_ROWS: Float32s = np.zeros((0, 0), dtype=np.float32)
_NO_ROWS64: Float64s = np.zeros((0, 0))


def choose_backend(n_ratings: int, *, threads: int) -> HalfStepBackend:
    """Return the backend of a fit: compiled loops where so many ratings pay for them."""
    return LoopBackend(load_loops(), threads) if n_ratings >= MANY_RATINGS else NumpyBackend()


class LoopBackend:
    """`loops` by the function that they are made from, run by `threads` threads over parts of the rows."""

    most_apart: float = math.inf
    at_once: int = 1_000_000

    def __init__(self, loops: Mapping[Kernel, Kernel], threads: int = 1) -> None:
        self._loops = loops
        self.threads = threads
        # One for all loops of a fit, thousands: to start threads for each took a tenth of its time.
        self._helpers = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="fit")

    def half_step(self, inputs: HalfStepInput, iteration: Iteration = TO_THE_END) -> HalfStep:
        """See `HalfStepBackend`."""
        parameters, dim = inputs.parameters, inputs.own.layout.dim
        entries = _Entries(self, inputs)
        if parameters.link == "gaussian":
            return entries.solve_gaussian()
        current = iteration.begin or entries.prior()
        # They are moved in place. Those of another backend are float64.
        begun = len(current.sites.weight) > 0 and current.sites.weight.dtype == np.float32
        iteration = replace(iteration, at_rest=max(iteration.at_rest, _AT_REST))
        sites = current.sites if begun else _new_sites(inputs.data, scored=iteration.scored)
        spent = iteration.begin is None or iteration.spent
        for left in reversed(range(iteration.steps)):
            damping = iteration.damping_for(parameters)
            entries.score(current.posterior, current.rows, sites, begun=begun, damping=damping)
            if not left:
                return entries.solve(sites, current.rows if spent else None)
            before = current.posterior.mean[:, :dim].copy()
            current = entries.solve(sites, current.rows if spent else None)
            begun = spent = True
            moved = iteration.moved(parameters, before, current.posterior.mean[:, :dim])
            # Not by how fast steps get shorter: one may be short by chance, and the next are not.
            moving = moved >= iteration.at_rest
            if not moving.any():
                break
            if not iteration.scored and entries.go_apart(moving):
                # They have a table of the other side.
                del entries
                self._go_on(inputs, replace(iteration, steps=left), current, moving)
                break
        return current

    def _go_on(self, inputs: HalfStepInput, iteration: Iteration, at: HalfStep, moving: Bools) -> None:
        """Go on from `at` with the rows that are `moving` (b,) alone, and write these to it."""
        data, sites, rows = inputs.data, at.sites, np.flatnonzero(moving)
        entry = np.flatnonzero(np.repeat(moving, data.counts))
        attributes = None if inputs.attributes is None else inputs.attributes.take(rows)
        part = replace(inputs, data=data.of_rows(rows), attributes=attributes, new=None)
        posterior = Posterior(at.posterior.mean[rows], at.posterior.covariance[rows])
        begin = HalfStep(at.rows[rows], posterior, Sites.of(sites.weight[entry], sites.linear[entry]))
        step = self.half_step(part, replace(iteration, begin=begin, spent=True))
        # The posterior of rows that stand still is a view of them.
        at.rows[rows] = step.rows
        sites.weight[entry], sites.linear[entry] = step.sites.weight, step.sites.linear

    def score_errors(
        self, inputs: HalfStepInput, step: HalfStep, other_step: HalfStep, every: int
    ) -> tuple[float, Float64s]:
        """See `HalfStepBackend`."""
        entries, squares = _Entries(self, inputs), other_step.expected_squares
        if not entries.still:
            # One pass gives both.
            means = np.empty(len(inputs.data.value), dtype=np.float32)
            square = entries.score_moments(step.posterior, step.rows, means)
            return float(square.sum()), means[::every].astype(np.float64)
        if not math.isfinite(squares):
            squares = float(entries.score_moments(step.posterior, step.rows, _NOTHING32).sum())
        return squares, entries.score_means(step, every)

    def values(self, value: FloatTable) -> FloatTable:
        """See `HalfStepBackend`."""
        if value.dtype == np.float32 or len(value) == 0:
            return value
        low, high = float(value.min()), float(value.max())
        # Half the memory where that says the same: far from 0 a scale has steps that float32 does not know,
        # and means that are off by as much.
        near = max(-low, high) <= _FARTHEST * (high - low) or low == high == float(np.float32(low))
        return value.astype(np.float32 if near else np.float64, copy=False)

    def rated_sets(self, data: Compressed, others: Compressed) -> RatedSets:
        """See `HalfStepBackend`."""
        return _LoopSets(self, data, others, 1.0 / np.sqrt(np.maximum(data.counts, 1)))

    def product(self, data: Compressed, entries: Float32s, table: Float32s) -> Float32s:
        """See `HalfStepBackend`."""
        ones = np.ones(data.rows)
        return self.sum_rows(data.indptr, data.other, table, ones, entries).astype(np.float32)

    def sum_rows(
        self,
        indptr: Int64s,
        columns: Int64s,
        table: FloatTable,
        scale: Float64s,
        weight: Float32s = _NOTHING32,
    ) -> Float64s:
        """For each row `scale` (rows,) times the sum of `table` (m, d) over its columns, each times its
        `weight` (n,), which is empty for 1.
        """
        result = np.empty((len(indptr) - 1, table.shape[1]))
        # In float32 a row of few numbers is one cache line.
        narrow = _aligned(*table.shape)
        narrow[:, : table.shape[1]] = table
        others = columns.astype(np.int32, copy=False)
        self.run(solve_kernels.sum_rows, indptr, indptr, others, weight, narrow, scale, result)
        return result

    def run(self, kernel: Kernel, rows: Int64s | int, *arguments: object) -> None:
        """Run `kernel` over all `rows`: where the entries of each begin and end, or how many rows there are,
        of one entry each.
        """
        loop = self._loops[kernel]
        # So many parts that no thread waits long for the last one.
        parts_wanted = 16 * self.threads
        if isinstance(rows, int):
            edges = np.linspace(0, rows, parts_wanted + 1).astype(np.int64)
        else:
            # Rows cost something without entries too.
            work = rows + np.arange(len(rows))
            edges = np.searchsorted(work, np.linspace(0, work[-1], parts_wanted + 1))
            edges = np.clip(edges, 0, len(rows) - 1)
        edges = np.unique(edges)
        parts = pairwise(edges.tolist())

        def take_parts() -> None:
            for start, stop in parts:
                loop(start, stop, *arguments)

        # Each takes the next part that is left. The loops let go of the interpreter's lock.
        helping = [self._helpers.submit(take_parts) for _ in range(min(self.threads, len(edges) - 1) - 1)]
        take_parts()
        for each in helping:
            each.result()


@dataclass(frozen=True, slots=True)
class _LoopSets:
    """`RatedSets` as loops over the ratings by either side; `scale` (rows,): of each row."""

    backend: LoopBackend
    data: Compressed
    others: Compressed
    scale: Float64s

    def times(self, effects: Float64s) -> Float64s:
        """See `RatedSets`."""
        return self.backend.sum_rows(self.data.indptr, self.data.other, effects, self.scale)

    def transposed_times(self, deviations: Float64s) -> Float64s:
        """See `RatedSets`."""
        others, ones = self.others, np.ones(self.others.rows)
        scaled = deviations * self.scale[:, None]
        return self.backend.sum_rows(others.indptr, others.other, scaled, ones)


class _Entries:
    """The entries of one half-step as the kernels read them.

    `table` as in `solve_kernels`; `offset`, `beyond` (n,): effect and variance of the session of the other
    row at each entry, empty for none.
    """

    def __init__(self, backend: LoopBackend, inputs: HalfStepInput) -> None:
        self._run, self._parameters, self._own = backend.run, inputs.parameters, inputs.own
        self._data, self._sessions, table = inputs.data, inputs.sessions, inputs.table
        self._other_layout, self._scale = inputs.other.layout, inputs.parameters.scale
        # Of one width, so that loops are compiled once.
        self._other = inputs.data.other.astype(np.int32, copy=False)
        self._value = backend.values(inputs.data.value)
        self._attributes = inputs.attributes
        layout = self._other_layout
        self._rows: FloatTable = table.expanded() if isinstance(table, QuantizedTable) else table
        self._with_effects = bool(np.any(self._rows[:, layout.implicit_effect]))
        self._offset, self._beyond = self._other_sessions(inputs.other)
        self._session_of_entry = self._sessions_of_entries()
        self._table: Float32s | None = None
        self._view: Float32s | None = None
        self._anchors = np.zeros(self._data.rows if self._own.layout.moving else 0)
        self._back = self._look_back(inputs)
        self._moved = self._move_entries(inputs.shifts)
        velocity = np.ascontiguousarray(self._rows[:, layout.velocity], dtype=np.float32)
        of_other = (inputs.shifts is not None and not inputs.shifts.own) or layout.moving
        self._motion = (self._back, velocity if layout.moving else _NO_ROWS, self._moved, of_other)

    @property
    def still(self) -> bool:
        """Whether the rows of both sides are the same at each entry."""
        return len(self._back) == 0 and len(self._moved) == 0

    def go_apart(self, moving: Bools) -> bool:
        """Return whether the rows that are `moving` (b,) go on without the others: what these have to
        themselves is in their rows then, and they are few.
        """
        few = int(self._data.counts[moving].sum()) <= _FEW_MOVE * len(self._value)
        return few and self.still and len(self._sessions) == 0

    def prior(self) -> HalfStep:
        """Return rows of which nothing is known but the prior."""
        own, motion = self._own, motion_of(self._own, NO_HISTORIES)
        rows = prior_rows(own, self._data.rows)
        states = motion.states(rows[:, own.layout.mean])
        parts = motion.covariances(rows[:, own.layout.covariance])
        effects = SessionEffects.prior(self._sessions, own.effect_variance, states.shape[1])
        return HalfStep(rows, Posterior(states, parts, effects), NO_SITES)

    def solve_gaussian(self) -> HalfStep:
        """Return the posteriors with the Gaussian link, with the sites that the loops make of ratings as they
        go: what a rating is foretold to be without itself, and effects of contexts, are learned from them.
        """
        step = self.solve(NO_SITES)
        unit, value = 1.0 / self._parameters.noise, self._value - self._parameters.mean
        linear = cast("Float64s", unit * (value - self._offset if len(self._offset) else value))
        weight = np.broadcast_to(np.float64(unit), len(linear))
        return replace(step, sites=Sites.of(weight, linear))

    def solve(self, sites: Sites, rows: Float64s | None = None) -> HalfStep:
        """Return the posteriors that `sites` lead to; without any, those of the Gaussian link. `rows`: where
        they are written to; None for new ones.
        """
        own, data, sessions, layout = self._own, self._data, self._sessions, self._own.layout
        gaussian, n = len(sites.weight) == 0, len(sessions)
        unit = 1.0 / self._parameters.noise if gaussian else 1.0
        target = self._value
        if len(self._offset):
            target = (target - self._offset).astype(target.dtype)
        weight, linear = (_NOTHING32, _NOTHING32) if gaussian else (sites.weight, sites.linear)
        seen = (target, self._parameters.mean, weight, linear, unit, self._solve_table())
        sums = self._session_sums(seen)
        of_row = np.searchsorted(sessions.row, np.arange(data.rows + 1)) if n else np.zeros(0, np.int64)
        if rows is None:
            rows = np.zeros((data.rows, layout.width))
        else:
            rows[:, layout.covariance.stop :] = 0.0
        square = np.zeros(data.rows)
        moving = data.rows * layout.moving
        states, parts = np.empty((moving, 2 * layout.dim)), np.empty((moving, 3 * layout.packed))
        entries = (data.indptr, self._other, self._value)
        mean = own.mean[None]
        if self._attributes is not None and own.attribute_effects is not None:
            mean = mean + self._attributes.times(own.attribute_effects)
        motion = motion_of(own, NO_HISTORIES)
        precision = motion.state_precision(own.precision)
        effects = SessionEffects.prior(sessions, own.effect_variance, len(precision))
        of_sessions = (of_row, *sums)
        found = (rows, states, parts, effects.mean, effects.variance, effects.covariance, square)
        view = self._score_view() if self._motion[3] else _NO_ROWS
        prior = (np.ascontiguousarray(mean), np.ascontiguousarray(precision))
        known = (*entries, *seen, view, *self._motion, self._with_effects, *prior, *of_sessions)
        self._run(solve_kernels.solve_rows, data.indptr, *known, *found)
        rows[:, layout.keys] = NO_SESSION
        rows[:, layout.variances] = own.effect_variance
        if n:
            effects = self._with_sittings(sums, effects)
            of_groups = (sessions.key, matters(sessions, effects.mean), effects.mean, effects.variance)
            groups = (of_row, *of_groups, layout.dim, layout.slots)
            self._run(entry_kernels.write_sessions, of_row, *groups, rows)
            move_to_any_time(own, rows, sessions, effects.mean)
        posterior = Posterior(rows[:, layout.mean], rows[:, layout.covariance], effects)
        if layout.moving:
            rows[:, layout.velocity] = states[:, layout.dim :]
            rows[:, layout.anchor_time] = self._anchors
            posterior = Posterior(states, parts, effects)
        # NaN where it does not hold: effects of sessions are marginal in the posterior but not in these sums.
        exact = gaussian and n == 0 and len(self._offset) == 0 and self.still
        return HalfStep(rows, posterior, sites, float(square.sum()) if exact else math.nan)

    def score(
        self, posterior: Posterior, rows: Float64s, sites: Sites, *, begun: bool, damping: float
    ) -> None:
        """Move `sites` (n,) to where the posterior, with its `rows`, points."""
        data, parameters, scale = self._data, self._parameters, self._scale
        bounds = np.concatenate([[-np.inf], parameters.cuts, [np.inf]])
        steps = (ordinal_levels(scale) - 1) / (scale.high - scale.low)
        link = (bounds, parameters.noise, scale.low, steps, begun, damping)
        # What scores are without a rating is kept of those sites that have room for it.
        edges = _edges(data.indptr, _SCORED_AT_ONCE)
        scratch = [np.empty(most, np.float32) for most in (_most_entries(data.indptr, edges),) * 3]
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = slice(int(data.indptr[start]), int(data.indptr[stop]))
            own_variance, *room = (each[: part.stop - part.start] for each in scratch)
            mean, variance = (sites.mean[part], sites.variance[part]) if len(sites.mean) else room
            self._score_rows(slice(start, stop), posterior, rows, (mean, own_variance, variance))
            known = (self._value[part], self._offset[part], parameters.mean)
            before = (own_variance, sites.weight[part], sites.linear[part], mean, variance)
            self._run(score_kernels.move_sites, len(own_variance), *known, *link, *before)

    def score_moments(self, posterior: Posterior, rows: Float64s, mean: FloatTable) -> Float64s:
        """Return of each row the expected sum of squares of ratings less scores under the posterior, with its
        `rows`, and write to `mean` (n,) that of the scores, unless it is empty.
        """
        variances = np.empty((2, len(mean)), dtype=np.float32)
        return self._score_rows(slice(0, self._data.rows), posterior, rows, (mean, *variances))

    def _score_rows(
        self, own: slice, posterior: Posterior, rows: Float64s, found: tuple[FloatTable, ...]
    ) -> Float64s:
        """Write what the posterior says of the scores of the rows `own` to `found`, mean and both parts of
        the variance of each, which may be empty; return as `score_moments` does.
        """
        data, effects, layout = self._data, posterior.effects, self._own.layout
        indptr = data.indptr[own.start : own.stop + 1]
        part = slice(int(indptr[0]), int(indptr[-1]))
        indptr = indptr - indptr[0]
        states = (posterior.mean[own], posterior.covariance[own]) if layout.moving else (_NO_ROWS64,) * 2
        back, velocity, moved, of_other = self._motion
        motion = (back[part], velocity, moved[part], of_other)
        entries = (indptr, self._other[part], rows[own], *states, self._score_view(), *motion, layout.dim)
        sessions = (self._session_of_entry[part], effects.mean, effects.variance, effects.covariance)
        known = (self._parameters.mean, self._offset[part], self._beyond[part], self._value[part])
        square = np.zeros(len(indptr) - 1)
        self._run(score_kernels.score_entries, indptr, *entries, *sessions, *known, *found, square)
        return square

    def score_means(self, step: HalfStep, every: int) -> Float64s:
        """Return mean scores of each `every`-th entry."""
        data, dim = self._data, self._own.layout.dim
        means = np.empty((len(data.value) + every - 1) // every)
        other_means = np.ascontiguousarray(self._rows[:, : 2 + dim])
        entries = (data.indptr, self._other, step.rows, other_means, dim, every)
        sessions = (self._session_of_entry, step.posterior.effects.mean)
        scores = (self._parameters.mean, self._offset)
        self._run(entry_kernels.score_means, data.indptr, *entries, *sessions, *scores, means)
        return means

    def _session_sums(self, seen: tuple[object, ...]) -> tuple[Float64s, Float64s, Float64s]:
        """Return load (G, d), scale and surprise (G,) of the sessions, as in `session_effects`."""
        sessions, dim, n = self._sessions, self._own.layout.dim, len(self._sessions)
        width = (1 + self._own.layout.moving) * dim
        sums = np.empty((n, width)), np.empty(n), np.empty(n)
        if n:
            indptr = np.searchsorted(sessions.group, np.arange(n + 1))
            known = (indptr, sessions.entry, self._other, *seen, *self._motion, dim)
            known = (*known, self._own.session_variance)
            self._run(entry_kernels.sum_groups, indptr, *known, *sums)
        if len(sessions.sitting):
            Sittings.of(self._own, sessions.sitting).add_sums(*sums)
        return sums

    def _with_sittings(
        self, sums: tuple[Float64s, Float64s, Float64s], effects: SessionEffects
    ) -> SessionEffects:
        """Return the effects of sessions with what their sittings add to them."""
        load, scale, _ = sums
        sittings = Sittings.of(self._own, self._sessions.sitting)
        own = sittings.add_effects(load, scale, effects.mean, effects.variance, effects.covariance)
        return SessionEffects(effects.mean, effects.variance, effects.covariance, *own)

    def _other_sessions(self, other: Side) -> tuple[Float64s, Float64s]:
        if not other.has_sessions:
            return _NOTHING, _NOTHING
        data, layout, n = self._data, other.layout, len(self._data.value)
        effects = np.zeros(n), np.full(n, other.effect_variance)
        lengths = other.session_length, other.sessions_a_sitting
        keys = (layout.dim, layout.slots, *lengths, SESSION_KEYS)
        known = (self._other, data.time, self._rows, *keys)
        self._run(entry_kernels.match_sessions, n, *known, *effects)
        return effects

    def _look_back(self, inputs: HalfStepInput) -> Float32s:
        """Return minus the age of each entry (n,), empty where neither side moves; writes the own anchors."""
        own, other, data = self._own, inputs.other, self._data
        drift = own.drift or other.drift
        if drift is None:
            return _NOTHING32
        back = np.empty(len(data.value), dtype=np.float32)
        anchors = (
            self._anchors
            if own.drift
            else np.ascontiguousarray(self._rows[:, other.layout.anchor_time], np.float64)
        )
        known = (drift.origin, drift.unit, FARTHEST_TIME, MOST_AGE, own.drift is not None, anchors)
        self._run(entry_kernels.look_back, data.indptr, data.indptr, self._other, data.time, *known, back)
        return back

    def _move_entries(self, shifts: ContextShifts | None) -> Float32s:
        """Return by how much the context of each entry moves its user, (n, d); empty for not at all."""
        if shifts is None:
            return _NO_ROWS
        encoding, effects, fields = shifts.effects.encoding, shifts.effects.effects, shifts.context.shape[1]
        numbers, codes = encoding.numbers, encoding.codes
        of_codes = effects[len(numbers) :].copy()
        # The other codes of its field are columns too: less their shares.
        same = codes[:, None, 0] == codes[None, :, 0]
        of_codes -= (same * codes[None, :, 2]) @ effects[len(numbers) :]
        given, coded = numbers[:, 0] < fields, codes[:, 0] < fields
        moved = np.empty((len(shifts.context), effects.shape[1]), dtype=np.float32)
        known = (numbers[given], effects[: len(numbers)][given], codes[coded], of_codes[coded], FARTHEST)
        rows = np.arange(len(moved) + 1)
        self._run(entry_kernels.move_entries, rows, shifts.context, *known, moved)
        return moved

    def _sessions_of_entries(self) -> npt.NDArray[np.int32]:
        """Return the session of each entry, -1 for none; empty where there are no sessions."""
        if len(self._sessions) == 0:
            return np.zeros(0, dtype=np.int32)
        session = np.full(len(self._data.value), -1, dtype=np.int32)
        session[self._sessions.entry] = self._sessions.group
        return session

    def _solve_table(self) -> Float32s:
        """Return the other side as `solve_kernels.solve_rows` reads it, made when it is wanted."""
        if self._table is None:
            if not self._motion[3]:
                # Each is half of a side's rows, and only one is read at a time.
                self._view = None
            layout, n = self._other_layout, len(self._rows)
            self._table = _aligned(n, layout.packed + layout.dim + 1 + self._with_effects * layout.dim)
            known = (self._rows, layout.dim, self._with_effects)
            self._run(solve_kernels.read_rows, n, *known, self._table)
        return self._table

    def _score_view(self) -> Float32s:
        """Return the other side as `score_kernels.score_entries` reads it, made when it is wanted."""
        if self._view is None:
            self._table = self._table if self._motion[3] else None
            rows, layout = self._rows, self._other_layout
            packed, rank = layout.packed, layout.rank
            self._view = _aligned(len(rows), packed + max(layout.dim + 1, rank + score_kernels.WIDE - 1))
            self._view[:, :packed] = rows[:, layout.covariance]
            self._view[:, packed : packed + rank] = rows[:, layout.latent]
            self._view[:, packed + rank] = 1.0
            self._view[:, packed + rank + 1] = rows[:, layout.bias]
        return self._view


def _new_sites(data: Compressed, *, scored: bool) -> Sites:
    """Return sites in float32, all 0; with room for the scores where these are to be `scored`."""
    # Half the memory of float64, and they differ from sweep to sweep by more than rounding.
    n = len(data.value)
    arrays = [np.zeros(size, dtype=np.float32) for size in (n, n, n * scored, n * scored)]
    return Sites(*cast("list[Float64s]", arrays))


def _edges(indptr: Int64s, most: int) -> Int64s:
    """Return where parts of the rows begin and end, of about `most` entries each."""
    wanted = np.arange(0, int(indptr[-1]), most)
    return np.unique(np.append(np.searchsorted(indptr, wanted, side="right") - 1, len(indptr) - 1))


def _most_entries(indptr: Int64s, edges: Int64s) -> int:
    return int(np.diff(indptr[edges]).max(initial=0))


def _aligned(rows: int, columns: int) -> Float32s:
    """Return rows of float32 that begin at cache lines, all 0."""
    width = -(-columns // 16) * 16
    raw = np.zeros(rows * width + 16, dtype=np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + rows * width].reshape(rows, width)


LOOPS: tuple[Kernel, ...] = (
    solve_kernels.read_rows,
    solve_kernels.solve_rows,
    entry_kernels.sum_groups,
    entry_kernels.write_sessions,
    solve_kernels.sum_rows,
    entry_kernels.match_sessions,
    entry_kernels.look_back,
    entry_kernels.move_entries,
    score_kernels.score_entries,
    score_kernels.move_sites,
    entry_kernels.score_means,
)


@lru_cache(maxsize=1)
def load_loops() -> dict[Kernel, Kernel]:
    """Return the loops for numba to compile when they are first called."""
    return compile_loops(LOOPS)
