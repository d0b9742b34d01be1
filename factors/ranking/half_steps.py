"""One half of a sweep: the rows of one side, those of the other given, as the exact minimisers.

Invariant: a row depends on its own events alone, so that folding in gives what the fit gives.

Weighted least squares of what was chosen against all pairs (Hu, Koren, Volinsky, 2008), with the weights of
pairs and the ridge by activity (Rendle et al., 2022). With `w` the weights of the events `S`, `a_u` and `b_i`
the activities, `a0` the background and `R` the ridges,

    sum_S w (x y - 1)^2 + a0 sum_all a_u b_i (x y)^2 + sum_u R_u |x - m|^2 + sum_i R_i |y|^2

is least in a user's row at `x = A^-1 (sum_S w y + R_u m)`, `A = sum_S w y y' + a_u a0 Y'BY + R_u I`; items
alike, with `m = 0`.

What has few events was not there to be chosen by all: that others have not chosen it says little. An item
of which attributes tell the factors `e` has a share `s` of these (`RankingParameters.unknown`) in the place
of the zeros: `y = s e + A^-1 sum_S w (1 - x s e) x`.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.inference.compiled.least_squares import solve_events
from factors.inference.compiled.loading import Kernel, compile_loops
from factors.inference.histories import Rows
from factors.model.types import Float64s, Int64s

Floats = npt.NDArray[np.floating[Any]]
# Numbers of the gathered other rows that are in memory at once, for each thread: 32 MB of float64.
_AT_ONCE = 1 << 22
# Rows are padded to the longest of their block: at most a quarter more, and of the shortest this many.
_PADDED, _PAD = 1.25, 8


@dataclass(frozen=True, slots=True)
class Events:
    """Events in compressed form: `indptr` int64 (b + 1,); `other` int32 or int64 (n,), rows of the other
    table; `weight` float64 (n,), or None where each is 1; `target` float64 (n,), or None where each is 1: 0
    of an item that was not wanted, whose term is `w (x y)^2`.
    """

    indptr: Int64s
    other: Rows
    weight: Float64s | None = None
    target: Float64s | None = None

    @property
    def counts(self) -> Int64s:
        """Events of each row."""
        return self.indptr[1:] - self.indptr[:-1]


@dataclass(frozen=True, slots=True)
class Prior:
    """What rows (b,) have beside their events: `gram` (r, r) `activity` times, `ridge` round `mean` (r,)."""

    gram: Floats
    activity: Float64s
    ridge: Float64s
    mean: Floats | None = None


@dataclass(frozen=True, slots=True)
class GramAxes:
    """The Gram matrix of a prior as `vectors diag(values) vectors'`."""

    values: Float64s
    vectors: Float64s

    @classmethod
    def of(cls, gram: Floats) -> "GramAxes":
        """Return those of `gram` (r, r)."""
        values, vectors = np.linalg.eigh(gram.astype(np.float64))
        # Rounding may leave an eigenvalue of nearly 0 below it.
        return cls(np.maximum(values, 0.0), vectors)


Solve = Callable[[Events, Floats, Prior], Floats]
"""What `solve_rows` does."""


def solve_rows(
    events: Events,
    table: Floats,
    prior: Prior,
    threads: int = 1,
    *,
    known: GramAxes | None = None,
    compiled: bool = False,
) -> Floats:
    """Return the rows (b, r) in the precision of `table` (m, r). `known`: of the prior's Gram matrix.

    `compiled`: a compiled loop solves them in float32.
    """
    if compiled and table.dtype == np.float32:
        return _solve_compiled(row_loops()[solve_events], events, table, prior, threads)
    result = np.empty((len(events.indptr) - 1, table.shape[1]), dtype=table.dtype)
    # For a few rows the decomposition costs more than it saves.
    if known is None and len(result) > table.shape[1]:
        known = GramAxes.of(prior.gram)
    axes = None if known is None else _Axes.of(table, prior, known)

    def solve(rows: Int64s) -> None:
        if axes is not None and 2 * events.counts[rows].max() <= table.shape[1]:
            result[rows] = _solve_short(events, axes, prior, rows)
            return
        precision, linear = normal_equations(events, table, prior, rows)
        result[rows] = np.linalg.solve(precision, linear[:, :, None])[:, :, 0]

    blocks = row_blocks(events.counts, table.shape[1])
    if threads == 1:
        for rows in blocks:
            solve(rows)
    else:
        # Products and solutions let go of the interpreter's lock.
        with ThreadPoolExecutor(threads, thread_name_prefix="ranking") as pool:
            for _ in pool.map(solve, blocks):
                pass
    return result


def _solve_compiled(loop: Kernel, events: Events, table: Floats, prior: Prior, threads: int) -> Floats:
    """Return what `solve_rows` does, by `loop`."""
    none, kind, rows = np.zeros(0), table.dtype, len(events.indptr) - 1
    result = np.empty((rows, table.shape[1]), dtype=kind)
    weight = none if events.weight is None else events.weight
    target = none if events.target is None else events.target
    mean = np.zeros(table.shape[1]) if prior.mean is None else prior.mean
    own = [np.asarray(part, kind) for part in (prior.gram, prior.activity, prior.ridge, mean)]
    other = events.other.astype(np.int32, copy=False)
    known = (events.indptr, other, weight, target, np.ascontiguousarray(table), *own, result)
    # A matrix is solved for each row, which takes as long as some events. Parts are short, so that threads
    # end at about one time.
    work = events.indptr + table.shape[1] * np.arange(rows + 1)
    edges = np.unique(np.searchsorted(work, np.linspace(0, work[-1], 16 * threads + 1)))
    with ThreadPoolExecutor(threads, thread_name_prefix="ranking") as pool:
        parts = [pool.submit(loop, *part, *known) for part in pairwise(edges.tolist())]
        for part in parts:
            part.result()
    return result


@lru_cache(maxsize=1)
def row_loops() -> dict[Kernel, Kernel]:
    """Return the loop that solves rows, compiled for float32."""
    entries = ("i8", "i8", "i8[1]", "i4[1]", "f8[1]", "f8[1]", "f4[2]")
    own = ("f4[2]", "f4[1]", "f4[1]", "f4[1]", "f4[2]=")
    return compile_loops([solve_events], {solve_events: (*entries, *own)})


def solve_round(
    start: Floats,
    events: Events,
    table: Floats,
    prior: Prior,
    threads: int = 1,
    *,
    compiled: bool = False,
) -> Floats:
    """Return the rows (b, r) as `solve_rows` does, which without events are `start` (b, r) and not 0."""
    row, target = np.repeat(np.arange(len(start)), events.counts), np.ones(len(events.other))
    if events.target is not None:
        target[:] = events.target
    step = max(1, _AT_ONCE // table.shape[1])
    for first in range(0, len(target), step):
        some = slice(first, first + step)
        target[some] -= np.einsum("nr,nr->n", table[events.other[some]], start[row[some]])
    known = replace(events, target=target)
    return start + solve_rows(known, table, prior, threads, compiled=compiled)


def normal_equations(events: Events, table: Floats, prior: Prior, rows: Int64s) -> tuple[Floats, Floats]:
    """Return `A` (b, r, r) and the linear term (b, r) of `rows` (b,), which have about as many events."""
    counts, rank = events.counts[rows], table.shape[1]
    longest, step = int(counts.max(initial=0)), max(1, _AT_ONCE // (rank * len(rows)))
    activity, ridge = (part[rows].astype(table.dtype) for part in (prior.activity, prior.ridge))
    precision = activity[:, None, None] * prior.gram.astype(table.dtype)
    precision[:, np.arange(rank), np.arange(rank)] += ridge[:, None]
    linear = np.zeros((len(rows), rank), dtype=table.dtype)
    if prior.mean is not None:
        linear += ridge[:, None] * prior.mean.astype(table.dtype)
    for first in range(0, longest, step):
        place = np.arange(first, min(first + step, longest))
        chosen, root = _gathered(events, table, rows, place)
        # Of a matrix and its own transpose, BLAS computes half.
        precision += chosen.transpose(0, 2, 1) @ chosen
        linear += (root[:, None, :] @ chosen)[:, 0]
    return precision, linear


@dataclass(frozen=True, slots=True)
class _Axes:
    """The Gram matrix of a prior as `vectors diag(values) vectors'`, and a `table` and the `mean` along these
    axes: there the precision of a row without events is diagonal.
    """

    values: Floats
    vectors: Floats
    table: Floats
    mean: Floats

    @classmethod
    def of(cls, table: Floats, prior: Prior, axes: GramAxes) -> "_Axes":
        mean = np.zeros(len(axes.values)) if prior.mean is None else prior.mean @ axes.vectors
        parts = (axes.values, axes.vectors, table @ axes.vectors.astype(table.dtype), mean)
        return cls(*(part.astype(table.dtype) for part in parts))


def _solve_short(events: Events, axes: _Axes, prior: Prior, rows: Int64s) -> Floats:
    """Return `rows` (b, r) that have few events: of `A = D + C'C`, with the diagonal `D` of the prior, only a
    matrix of the size of the events is inverted (Woodbury).
    """
    table = axes.table
    place = np.arange(int(events.counts[rows].max(initial=0)))
    chosen, root = _gathered(events, table, rows, place)
    activity, ridge = (part[rows, None].astype(table.dtype) for part in (prior.activity, prior.ridge))
    inverse = 1.0 / (activity * axes.values + ridge)
    start = inverse * (ridge * axes.mean + (root[:, None, :] @ chosen)[:, 0])
    scaled = chosen * inverse[:, None]
    small = scaled @ chosen.transpose(0, 2, 1) + np.eye(len(place), dtype=table.dtype)
    part = np.linalg.solve(small, chosen @ start[:, :, None])
    return np.asarray((start - (scaled.transpose(0, 2, 1) @ part)[:, :, 0]) @ axes.vectors.T)


def _gathered(events: Events, table: Floats, rows: Int64s, place: Int64s) -> tuple[Floats, Floats]:
    """Return the `table` rows (b, p, r) of the events at each `place` (p,) of `rows` (b,), times the roots
    of their weights, and these roots (b, p) times the targets; where there is no event, 0.
    """
    inside = place < events.counts[rows, None]
    root = inside.astype(table.dtype)
    # A place without an event reads the first one, with the weight 0.
    entry = np.where(inside, events.indptr[rows, None] + place, 0)
    if events.weight is not None:
        root *= np.sqrt(events.weight[entry]).astype(table.dtype)
    chosen = table[events.other[entry]] * root[:, :, None]
    if events.target is not None:
        root = root * events.target[entry].astype(table.dtype)
    return chosen, root


def row_blocks(counts: Int64s, rank: int) -> Iterator[Int64s]:
    """Yield all rows in blocks with about as many events each, that fit the memory."""
    # Neighbours in this order are padded by little, so that few numbers are multiplied in vain.
    order = np.argsort(counts, kind="stable")
    ascending, start = counts[order], 0
    while start < len(order):
        longest = _PADDED * int(ascending[start]) + _PAD
        most = max(1, int(_AT_ONCE // (rank * max(longest, rank))))
        stop = min(int(np.searchsorted(ascending, longest, side="right")), start + most)
        yield order[start:stop]
        start = stop
