"""The half-step on compiled loops and several threads, for fits of many ratings; `kernels` holds the loops.

Invariant: it gives what `half_step` gives, but for the rounding of float32 tables, and the same whatever the
number of threads. Numba is optional, and is imported when the first such fit begins.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from factors.inference import kernels
from factors.inference.half_step import AT_REST, FOLD_IN_STEPS, HalfStep, half_step
from factors.inference.histories import Compressed, Sessions, group_sessions
from factors.inference.ordinal import Sites, fold_in_damping
from factors.inference.side_moments import prior_rows
from factors.model.layout import NO_SESSION, SESSION_KEYS, FloatTable
from factors.model.parameters import Parameters, Side, SideName
from factors.model.scale import scale_levels
from factors.model.types import Float32s, Float64s, Int64s

# Compiling takes 20 s once for each version on a machine, reading it back 1 s; plain numpy does a sweep of so
# many ratings in about that second.
COMPILED_FROM = 400_000
# Parts of equal numbers of entries: many enough that no thread waits long for the last one.
_PARTS_A_THREAD = 16
_NOTHING: Float64s = np.zeros(0)
_NOTHING32: Float32s = np.zeros(0, dtype=np.float32)
_NO_ROWS: Int64s = np.zeros(0, dtype=np.int64)
_FLAT: Float64s = np.zeros((0, 0))

Kernel = Callable[..., None]


class Compiled:
    """The compiled loops, run by `threads` threads over parts of the rows."""

    def __init__(self, loops: dict[str, Kernel], threads: int) -> None:
        self._loops = loops
        self._threads = threads

    def run(self, name: str, indptr: Int64s, *arguments: object) -> None:
        """Run the loop of this name over all rows, which have entries from `indptr` on."""
        loop = self._loops[name]
        rows = len(indptr) - 1
        # Rows cost something without entries too.
        work = indptr + np.arange(rows + 1)
        edges = np.searchsorted(work, np.linspace(0, work[-1], _PARTS_A_THREAD * self._threads + 1))
        edges = np.unique(np.clip(edges, 0, rows))
        parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        if self._threads == 1 or len(parts) == 1:
            for start, stop in parts:
                loop(start, stop, *arguments)
            return
        with ThreadPoolExecutor(self._threads, thread_name_prefix="fit") as pool:
            for done in [pool.submit(loop, start, stop, *arguments) for start, stop in parts]:
                done.result()

    def half_step(
        self,
        parameters: Parameters,
        name: SideName,
        table: FloatTable,
        data: Compressed,
        *,
        sessions: Sessions | None = None,
        begin: HalfStep | None = None,
        steps: int = FOLD_IN_STEPS,
        damping: float | None = None,
    ) -> HalfStep:
        """See `half_step.half_step`. `data` has no unknown other rows."""
        own, other = parameters.side(name)
        if parameters.moves:
            # These loops know no velocities: a fit of so many ratings does not choose them, but may go on
            # from one of fewer that did.
            return half_step(
                parameters, name, table, data, sessions=sessions, begin=begin, steps=steps, damping=damping
            )
        if own.session_variance <= 0 or not own.layout.slots:
            sessions = None
        elif sessions is None:
            sessions = group_sessions(data, own.session_length)
        view = _View(self, other, table, data)
        groups = _Groups.of(sessions, data, own)
        if parameters.link == "gaussian":
            return self._solve(own, view, groups, None, parameters)
        cuts = parameters.cuts
        damping = damping or fold_in_damping(cuts, parameters.noise)
        current = begin or HalfStep(prior_rows(own, data.rows), _NOTHING, _NOTHING, _FLAT, None)
        n = len(data.value)
        sites = current.sites
        if sites is None or sites.weight.dtype != np.float32:
            sites = _sites(n)
        begun = current.sites is not None
        for _ in range(steps):
            self._score(own, view, groups, parameters, current, sites=sites, begun=begun, damping=damping)
            begun = True
            before = current.rows
            current = self._solve(own, view, groups, sites, parameters)
            moved = np.abs(current.rows[:, own.layout.mean] - before[:, own.layout.mean]).max(initial=0.0)
            if moved < AT_REST * math.sqrt(parameters.noise):
                break
        return current

    def expected_squares(
        self,
        parameters: Parameters,
        name: SideName,
        table: FloatTable,
        data: Compressed,
        *,
        current: HalfStep,
        sessions: Sessions | None,
    ) -> float:
        """The expected sum of the squares of ratings less scores, given posteriors of both sides."""
        own, other = parameters.side(name)
        if own.session_variance <= 0 or not own.layout.slots:
            sessions = None
        groups = _Groups.of(sessions, data, own)
        view = _View(self, other, table, data)
        square = self._score(own, view, groups, parameters, current, sites=None, begun=False, damping=1.0)
        return float(square.sum())

    def score_means(
        self,
        parameters: Parameters,
        name: SideName,
        table: FloatTable,
        data: Compressed,
        *,
        current: HalfStep,
        sessions: Sessions | None,
        every: int,
    ) -> Float64s:
        """Mean scores of each `every`-th entry of `data`."""
        own, other = parameters.side(name)
        groups = _Groups.of(sessions if own.session_variance > 0 and own.layout.slots else None, data, own)
        offset, _ = self.session_effects(other, table, data)
        expected = np.empty((len(data.value) + every - 1) // every)
        near = np.ascontiguousarray(table[:, : 2 + own.layout.dim])
        self.run(
            "score_means",
            data.indptr,
            data.indptr,
            data.other,
            current.rows,
            near,
            own.layout.dim,
            every,
            groups.of_entry(len(data.value)),
            current.session_effect,
            parameters.mean,
            offset,
            expected,
        )
        return expected

    def sum_rows(self, indptr: Int64s, columns: Int64s, table: Float64s, scale: Float64s) -> Float64s:
        """For each row `scale` (rows,) times the sum of `table` (m, d) over its columns."""
        result = np.empty((len(indptr) - 1, table.shape[1]))
        self.run("sum_rows", indptr, indptr, columns, np.ascontiguousarray(table), scale, result)
        return result

    def session_effects(self, other: Side, table: FloatTable, data: Compressed) -> tuple[Float64s, Float64s]:
        """Effect and variance of the session of the other row at each entry; empty where it has none."""
        layout = other.layout
        if other.session_variance <= 0 or not layout.slots:
            return _NOTHING, _NOTHING
        n = len(data.value)
        effect, variance = np.zeros(n), np.full(n, other.session_variance)
        entries = np.arange(n + 1)
        self.run(
            "match_sessions",
            entries,
            data.other,
            data.time,
            table,
            layout.dim,
            layout.slots,
            other.session_length,
            SESSION_KEYS,
            effect,
            variance,
        )
        return effect, variance

    def _solve(
        self, own: Side, view: "_View", groups: "_Groups", sites: Sites | None, parameters: Parameters
    ) -> HalfStep:
        layout, data = own.layout, view.data
        unit = 1.0 / parameters.noise if sites is None else 1.0
        target = data.value if len(view.offset) == 0 else data.value - view.offset
        weight, linear = (sites.weight, sites.linear) if sites is not None else (_NOTHING32, _NOTHING32)
        n_groups = len(groups.key)
        load = np.empty((n_groups, layout.dim))
        scale, surprise = np.empty(n_groups), np.empty(n_groups)
        seen = (target, parameters.mean, weight, linear, unit, view.table)
        if n_groups:
            self.run(
                "sum_groups",
                groups.indptr,
                groups.indptr,
                groups.entry,
                data.other,
                *seen,
                layout.dim,
                own.session_variance,
                load,
                scale,
                surprise,
            )
        result = np.zeros((data.rows, layout.width))
        square = np.zeros(data.rows)
        self.run(
            "solve_rows",
            data.indptr,
            data.indptr,
            data.other,
            data.value,
            *seen,
            view.sets,
            own.mean,
            np.ascontiguousarray(own.precision),
            groups.of_row,
            load,
            scale,
            surprise,
            result,
            square,
        )
        result[:, layout.keys] = NO_SESSION
        result[:, layout.variances] = own.session_variance
        effect, variance = np.empty(n_groups), np.empty(n_groups)
        shared = np.empty((n_groups, layout.dim))
        if n_groups:
            self.run(
                "write_sessions",
                groups.of_row,
                groups.of_row,
                groups.key,
                load,
                scale,
                surprise,
                layout.dim,
                layout.slots,
                result,
                effect,
                variance,
                shared,
            )
        # Effects of sessions are marginal in the posterior but not in these sums.
        known = sites is None and n_groups == 0 and len(view.offset) == 0
        return HalfStep(result, effect, variance, shared, sites, float(square.sum()) if known else math.nan)

    def _score(
        self,
        own: Side,
        view: "_View",
        groups: "_Groups",
        parameters: Parameters,
        current: HalfStep,
        *,
        sites: Sites | None,
        begun: bool,
        damping: float,
    ) -> Float64s:
        data, scale = view.data, parameters.scale
        square = np.zeros(data.rows)
        ordinal = sites is not None
        last = scale_levels(scale) - 1
        given = sites if sites is not None else _sites(0)
        n_groups = len(current.session_effect)
        self.run(
            "score_entries",
            data.indptr,
            data.indptr,
            data.other,
            current.rows,
            view.spread(),
            own.layout.dim,
            groups.of_entry(len(data.value)),
            current.session_effect,
            current.session_variance,
            current.session_covariance if n_groups else _FLAT,
            own.session_variance,
            parameters.mean,
            view.offset,
            view.beyond,
            data.value,
            np.concatenate([[-np.inf], parameters.cuts, [np.inf]]) if ordinal else _NOTHING,
            parameters.noise,
            scale.low,
            last / (scale.high - scale.low) if ordinal else 1.0,
            begun,
            damping,
            given.weight,
            given.linear,
            given.mean,
            given.variance,
            square,
        )
        return square


class _View:
    """What a half-step reads of the other side: `table` and `spread` as in `kernels`, session effects by
    entry.
    """

    def __init__(self, compiled: Compiled, side: Side, rows: FloatTable, data: Compressed) -> None:
        layout = side.layout
        self.data = data
        self.sets = bool(np.any(rows[:, layout.implicit_effect]))
        self.table = _aligned(len(rows), layout.packed + layout.dim + 1 + self.sets * layout.dim)
        compiled.run("read_rows", np.arange(len(rows) + 1), rows, layout.dim, self.sets, self.table)
        self.offset, self.beyond = compiled.session_effects(side, rows, data)
        self._rows, self._layout = rows, layout
        self._spread: Float32s | None = None

    def spread(self) -> Float32s:
        """The table of `kernels.score_entries`, made when it is wanted."""
        if self._spread is None:
            rows, layout = self._rows, self._layout
            packed, rank = layout.packed, layout.rank
            self._spread = _aligned(len(rows), packed + max(layout.dim + 1, rank + kernels.WIDE - 1))
            self._spread[:, packed:] = 0.0
            self._spread[:, :packed] = rows[:, layout.covariance]
            self._spread[:, packed : packed + rank] = rows[:, layout.latent]
            self._spread[:, packed + rank] = 1.0
            self._spread[:, packed + rank + 1] = rows[:, layout.bias]
        return self._spread


@dataclass(frozen=True, slots=True)
class _Groups:
    """Period groups by row and by entry: group `g` has the entries `entry[indptr[g]:indptr[g + 1]]`, row `j`
    the groups `of_row[j]` to `of_row[j + 1]`.
    """

    entry: Int64s
    group: Int64s
    key: Float64s
    indptr: Int64s
    of_row: Int64s

    @staticmethod
    def of(sessions: Sessions | None, data: Compressed, own: Side) -> "_Groups":
        """The groups of `sessions`; none where there are none."""
        if sessions is None or len(sessions.row) == 0 or own.session_variance <= 0:
            return _Groups(_NO_ROWS, _NO_ROWS, _NOTHING, np.zeros(1, dtype=np.int64), _NO_ROWS)
        indptr = np.append(np.flatnonzero(np.diff(sessions.group, prepend=-1)), len(sessions.group))
        of_row = np.searchsorted(sessions.row, np.arange(data.rows + 1))
        return _Groups(sessions.entry, sessions.group, sessions.key, indptr, of_row)

    def of_entry(self, n_entries: int) -> npt.NDArray[np.int32]:
        """The group of each entry, -1 for none; empty where there are no groups."""
        if len(self.key) == 0:
            return np.zeros(0, dtype=np.int32)
        group = np.full(n_entries, -1, dtype=np.int32)
        group[self.entry] = self.group
        return group


def _sites(n_entries: int) -> Sites:
    """Sites in float32: half the memory, and they differ from sweep to sweep by more than rounding."""
    arrays = [np.zeros(n_entries, dtype=np.float32) for _ in range(4)]
    return Sites(*cast("list[Float64s]", arrays))


def _aligned(rows: int, columns: int) -> Float32s:
    """Rows of float32 that begin at cache lines, uninitialised."""
    width = -(-columns // 16) * 16
    raw = np.empty(rows * width + 16, dtype=np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + rows * width].reshape(rows, width)


_LOOPS: tuple[Kernel, ...] = (
    kernels.read_rows,
    kernels.solve_rows,
    kernels.sum_groups,
    kernels.write_sessions,
    kernels.match_sessions,
    kernels.score_entries,
    kernels.score_means,
    kernels.sum_rows,
)


def plain(threads: int = 1) -> Compiled:
    """The same loops run by Python: the slow reference of the compiled ones."""
    return Compiled({loop.__name__: loop for loop in _LOOPS}, threads)


def compiled_for(n_ratings: int, threads: int) -> Compiled | None:
    """Compiled loops for a fit of so many ratings; None where numba is not installed or would not pay."""
    if n_ratings < COMPILED_FROM:
        return None
    loops = load_loops()
    return Compiled(loops, threads) if loops else None


@lru_cache(maxsize=1)
def load_loops() -> dict[str, Kernel]:
    """The loops for numba to compile when they are first called; empty where it is not installed."""
    try:
        numba: Any = import_module("numba")
    except ImportError:
        return {}
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
    loops: dict[str, Kernel] = {}
    for loop in _LOOPS:
        try:
            loops[loop.__name__] = _kept_if_possible(numba.njit(cache=True, **options)(loop))
        except RuntimeError:
            # There is no folder to keep compiled code in: compile each time.
            loops[loop.__name__] = numba.njit(**options)(loop)
    return loops


def _kept_if_possible(loop: Kernel) -> Kernel:
    """The compiled `loop`, also where what was compiled cannot be kept, for want of space say."""

    def run(*arguments: object) -> None:
        try:
            loop(*arguments)
        except OSError:
            # It is raised after compiling and before the first run: what was compiled is there.
            loop(*arguments)

    return run
