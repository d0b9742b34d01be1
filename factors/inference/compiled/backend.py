"""Half-steps on compiled loops and several threads, for fits of many ratings.

Invariant: they give what `half_step` gives, but for the rounding of float32 tables, and the same whatever the
number of threads. Numba is optional, and is imported when the first such fit begins.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from factors.inference.backend import MANY_RATINGS, HalfStepBackend, NumpyBackend, RatedSets
from factors.inference.compiled import score_kernels, solve_kernels
from factors.inference.entry_moments import HalfStepInput, Posterior
from factors.inference.half_step import TO_THE_END, HalfStep, Iteration
from factors.inference.histories import Compressed
from factors.inference.ordinal import NO_SITES, Sites
from factors.inference.session_effects import SessionEffects
from factors.inference.side_moments import prior_rows
from factors.model.layout import NO_SESSION, SESSION_KEYS, FloatTable
from factors.model.parameters import Side
from factors.model.quantized_rows import QuantizedTable
from factors.model.scale import scale_levels
from factors.model.types import Float32s, Float64s, Int64s

_NOTHING: Float64s = np.zeros(0)
_NOTHING32: Float32s = np.zeros(0, dtype=np.float32)

Kernel = Callable[..., None]


def choose_backend(n_ratings: int, *, threads: int, block_rows: int) -> HalfStepBackend:
    """Return the backend of a fit: compiled loops where numba is installed and so many ratings pay for it."""
    plain = NumpyBackend(block_rows)
    loops = load_loops() if n_ratings >= MANY_RATINGS else {}
    return LoopBackend(loops, threads, plain) if loops else plain


class LoopBackend:
    """`loops` by the function that they are made from, run by `threads` threads over parts of the rows.

    These loops know no velocities and no contexts: with these `plain` does the work. A fit of so many ratings
    does not choose velocities, but may go on from one of fewer that did.
    """

    def __init__(
        self, loops: Mapping[Kernel, Kernel], threads: int = 1, plain: HalfStepBackend | None = None
    ) -> None:
        self._loops = loops
        self._threads = threads
        self._plain = plain or NumpyBackend()

    def half_step(self, inputs: HalfStepInput, iteration: Iteration = TO_THE_END) -> HalfStep:
        """See `HalfStepBackend`."""
        parameters = inputs.parameters
        if parameters.moves or inputs.shifts is not None:
            return self._plain.half_step(inputs, iteration)
        entries = _Entries(self, inputs)
        if parameters.link == "gaussian":
            return entries.solve(NO_SITES)
        current, begun = iteration.begin or entries.prior(), iteration.begin is not None
        # They are moved in place. Those of another backend are float64.
        sites = current.sites if current.sites.weight.dtype == np.float32 else _new_sites(inputs.data)
        for _ in range(iteration.steps):
            damping = iteration.damping_for(parameters)
            entries.score(current.posterior, current.rows, sites, begun=begun, damping=damping)
            begun, before = True, current.posterior.mean
            current = entries.solve(sites)
            if iteration.ends(parameters, before, current.posterior.mean):
                break
        return current

    def score_errors(
        self, inputs: HalfStepInput, step: HalfStep, other_step: HalfStep, every: int
    ) -> tuple[float, Float64s]:
        """See `HalfStepBackend`."""
        if inputs.parameters.moves or inputs.shifts is not None:
            return self._plain.score_errors(inputs, step, other_step, every)
        entries, squares = _Entries(self, inputs), other_step.expected_squares
        if not math.isfinite(squares):
            square = entries.score(step.posterior, step.rows, NO_SITES, begun=False, damping=1.0)
            squares = float(square.sum())
        return squares, entries.score_means(step, every)

    def rated_sets(self, data: Compressed, others: Compressed) -> RatedSets:
        """See `HalfStepBackend`."""
        return _LoopSets(self, data, others, 1.0 / np.sqrt(np.maximum(data.counts, 1)))

    def sum_rows(self, indptr: Int64s, columns: Int64s, table: Float64s, scale: Float64s) -> Float64s:
        """For each row `scale` (rows,) times the sum of `table` (m, d) over its columns."""
        result = np.empty((len(indptr) - 1, table.shape[1]))
        table = np.ascontiguousarray(table)
        self.run(solve_kernels.sum_rows, indptr, indptr, columns, table, scale, result)
        return result

    def run(self, kernel: Kernel, indptr: Int64s, *arguments: object) -> None:
        """Run `kernel` over all rows, which have entries from `indptr` on."""
        loop, rows = self._loops[kernel], len(indptr) - 1
        # Rows cost something without entries too.
        work = indptr + np.arange(rows + 1)
        # So many parts that no thread waits long for the last one.
        edges = np.searchsorted(work, np.linspace(0, work[-1], 16 * self._threads + 1))
        edges = np.unique(np.clip(edges, 0, rows))
        parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        if self._threads == 1 or len(parts) == 1:
            for start, stop in parts:
                loop(start, stop, *arguments)
            return
        # The loops let go of the interpreter's lock.
        with ThreadPoolExecutor(self._threads, thread_name_prefix="fit") as pool:
            for done in [pool.submit(loop, start, stop, *arguments) for start, stop in parts]:
                done.result()


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
        self._attributes = inputs.attributes
        layout = self._other_layout
        self._rows: FloatTable = table.expanded() if isinstance(table, QuantizedTable) else table
        self._with_effects = bool(np.any(self._rows[:, layout.implicit_effect]))
        n = len(self._rows)
        self._table = _aligned(n, layout.packed + layout.dim + 1 + self._with_effects * layout.dim)
        known = (self._rows, layout.dim, self._with_effects)
        self._run(solve_kernels.read_rows, np.arange(n + 1), *known, self._table)
        self._offset, self._beyond = self._other_sessions(inputs.other)
        self._view: Float32s | None = None

    def prior(self) -> HalfStep:
        """Return rows of which nothing is known but the prior."""
        own = self._own
        effects = SessionEffects.prior(self._sessions, own.session_variance, own.layout.dim)
        return _half_step(own, prior_rows(own, self._data.rows), effects, NO_SITES)

    def solve(self, sites: Sites) -> HalfStep:
        """Return the posteriors that `sites` lead to; without any, those of the Gaussian link."""
        own, data, sessions, layout = self._own, self._data, self._sessions, self._own.layout
        gaussian, n = len(sites.weight) == 0, len(sessions)
        unit = 1.0 / self._parameters.noise if gaussian else 1.0
        target = data.value - self._offset if len(self._offset) else data.value
        weight, linear = (_NOTHING32, _NOTHING32) if gaussian else (sites.weight, sites.linear)
        seen = (target, self._parameters.mean, weight, linear, unit, self._table)
        sums = self._session_sums(seen)
        of_row = np.searchsorted(sessions.row, np.arange(data.rows + 1)) if n else np.zeros(0, np.int64)
        rows, square = np.zeros((data.rows, layout.width)), np.zeros(data.rows)
        entries = (data.indptr, data.other, data.value)
        mean = own.mean[None]
        if self._attributes is not None and own.attribute_effects is not None:
            mean = mean + self._attributes.times(own.attribute_effects)
        prior = (np.ascontiguousarray(mean), np.ascontiguousarray(own.precision))
        known = (*entries, *seen, self._with_effects, *prior, of_row, *sums)
        self._run(solve_kernels.solve_rows, data.indptr, *known, rows, square)
        rows[:, layout.keys] = NO_SESSION
        rows[:, layout.variances] = own.session_variance
        effects = SessionEffects(np.empty(n), np.empty(n), np.empty((n, layout.dim)))
        if n:
            written = (rows, effects.mean, effects.variance, effects.covariance)
            groups = (of_row, sessions.key, *sums, layout.dim, layout.slots)
            self._run(solve_kernels.write_sessions, of_row, *groups, *written)
        # NaN where it does not hold: effects of sessions are marginal in the posterior but not in these sums.
        exact = gaussian and n == 0 and len(self._offset) == 0
        return _half_step(own, rows, effects, sites, float(square.sum()) if exact else math.nan)

    def score(
        self, posterior: Posterior, rows: Float64s, sites: Sites, *, begun: bool, damping: float
    ) -> Float64s:
        """Move `sites` (n,) to where the posterior, with its `rows`, points; without any, return of each row
        the expected sum of squares of ratings less scores.
        """
        data, parameters, effects, scale = self._data, self._parameters, posterior.effects, self._scale
        square, bounds, steps = np.zeros(data.rows), _NOTHING, 1.0
        moved: tuple[FloatTable, ...] = (_NOTHING32,) * 4
        if len(sites.weight):
            bounds = np.concatenate([[-np.inf], parameters.cuts, [np.inf]])
            steps = (scale_levels(scale) - 1) / (scale.high - scale.low)
            moved = (sites.weight, sites.linear, sites.mean, sites.variance)
        entries = (data.indptr, data.other, rows, self._score_view(), self._own.layout.dim)
        sessions = (self._session_of_entry(), effects.mean, effects.variance, effects.covariance)
        scores = (parameters.mean, self._offset, self._beyond, data.value)
        link = (bounds, parameters.noise, scale.low, steps, begun, damping)
        known = (*entries, *sessions, *scores, *link)
        self._run(score_kernels.score_entries, data.indptr, *known, *moved, square)
        return square

    def score_means(self, step: HalfStep, every: int) -> Float64s:
        """Return mean scores of each `every`-th entry."""
        data, dim = self._data, self._own.layout.dim
        means = np.empty((len(data.value) + every - 1) // every)
        other_means = np.ascontiguousarray(self._rows[:, : 2 + dim])
        entries = (data.indptr, data.other, step.rows, other_means, dim, every)
        sessions = (self._session_of_entry(), step.posterior.effects.mean)
        scores = (self._parameters.mean, self._offset)
        self._run(score_kernels.score_means, data.indptr, *entries, *sessions, *scores, means)
        return means

    def _session_sums(self, seen: tuple[object, ...]) -> tuple[Float64s, Float64s, Float64s]:
        """Return load (G, d), scale and surprise (G,) of the sessions, as in `session_effects`."""
        sessions, dim, n = self._sessions, self._own.layout.dim, len(self._sessions)
        sums = np.empty((n, dim)), np.empty(n), np.empty(n)
        if n:
            indptr = np.append(np.flatnonzero(np.diff(sessions.group, prepend=-1)), len(sessions.group))
            known = (indptr, sessions.entry, self._data.other, *seen, dim, self._own.session_variance)
            self._run(solve_kernels.sum_groups, indptr, *known, *sums)
        return sums

    def _other_sessions(self, other: Side) -> tuple[Float64s, Float64s]:
        if not other.has_sessions:
            return _NOTHING, _NOTHING
        data, layout, n = self._data, other.layout, len(self._data.value)
        effects = np.zeros(n), np.full(n, other.session_variance)
        keys = (layout.dim, layout.slots, other.session_length, SESSION_KEYS)
        known = (data.other, data.time, self._rows, *keys)
        self._run(score_kernels.match_sessions, np.arange(n + 1), *known, *effects)
        return effects

    def _session_of_entry(self) -> npt.NDArray[np.int32]:
        """Return the session of each entry, -1 for none; empty where there are no sessions."""
        if len(self._sessions) == 0:
            return np.zeros(0, dtype=np.int32)
        session = np.full(len(self._data.value), -1, dtype=np.int32)
        session[self._sessions.entry] = self._sessions.group
        return session

    def _score_view(self) -> Float32s:
        """Return the other side as `score_kernels.score_entries` reads it, made when it is wanted."""
        if self._view is None:
            rows, layout = self._rows, self._other_layout
            packed, rank = layout.packed, layout.rank
            self._view = _aligned(len(rows), packed + max(layout.dim + 1, rank + score_kernels.WIDE - 1))
            self._view[:, packed:] = 0.0
            self._view[:, :packed] = rows[:, layout.covariance]
            self._view[:, packed : packed + rank] = rows[:, layout.latent]
            self._view[:, packed + rank] = 1.0
            self._view[:, packed + rank + 1] = rows[:, layout.bias]
        return self._view


def _half_step(
    own: Side, rows: Float64s, effects: SessionEffects, sites: Sites, expected_squares: float = math.nan
) -> HalfStep:
    layout = own.layout
    posterior = Posterior(rows[:, layout.mean], rows[:, layout.covariance], effects)
    return HalfStep(rows, posterior, sites, expected_squares)


def _new_sites(data: Compressed) -> Sites:
    """Return sites in float32, all 0."""
    # Half the memory of float64, and they differ from sweep to sweep by more than rounding.
    arrays = [np.zeros(len(data.value), dtype=np.float32) for _ in range(4)]
    return Sites(*cast("list[Float64s]", arrays))


def _aligned(rows: int, columns: int) -> Float32s:
    """Return rows of float32 that begin at cache lines, uninitialised."""
    width = -(-columns // 16) * 16
    raw = np.empty(rows * width + 16, dtype=np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + rows * width].reshape(rows, width)


LOOPS: tuple[Kernel, ...] = (
    solve_kernels.read_rows,
    solve_kernels.solve_rows,
    solve_kernels.sum_groups,
    solve_kernels.write_sessions,
    solve_kernels.sum_rows,
    score_kernels.match_sessions,
    score_kernels.score_entries,
    score_kernels.score_means,
)


@lru_cache(maxsize=1)
def load_loops() -> dict[Kernel, Kernel]:
    """Return the loops for numba to compile when they are first called; empty where it is not installed."""
    try:
        numba: Any = import_module("numba")
    except ImportError:
        return {}
    # Sums may be regrouped to fill vector registers; infinity keeps its meaning, for bounds are infinite.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
    loops: dict[Kernel, Kernel] = {}
    for loop in LOOPS:
        try:
            loops[loop] = _kept_if_possible(numba.njit(cache=True, **options)(loop))
        except RuntimeError:
            # There is no folder to keep compiled code in: compile each time.
            loops[loop] = numba.njit(**options)(loop)
    return loops


def _kept_if_possible(loop: Kernel) -> Kernel:
    """Return the compiled `loop`, also where what was compiled cannot be kept, for want of space say."""

    def run(*arguments: object) -> None:
        try:
            loop(*arguments)
        except OSError:
            # It is raised after compiling and before the first run: what was compiled is there.
            loop(*arguments)

    return run
