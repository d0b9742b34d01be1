"""Loops that solve rows of a ranking head, for numba to compile and to run as plain Python too.

Invariant: rows are those of `half_steps.solve_rows` but for rounding. A row depends on its own events alone.
"""

# ruff: noqa: C901, PLR0912, PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math

import numpy as np

from factors.inference.compiled.loading import Array

# Events whose rows are gathered for one product by BLAS: with ranks of some dozens these stay in the caches.
_AT_ONCE = 256
# Rows of a matrix are changed by whole registers, several at a time: so many float32 numbers fill them.
_LANES = 32


def solve_events(
    start: int,
    stop: int,
    indptr: Array,
    other: Array,
    weight: Array,
    target: Array,
    table: Array,
    gram: Array,
    activity: Array,
    ridge: Array,
    mean: Array,
    result: Array,
) -> None:
    """Write rows `start` to `stop` of the `result` (b, r): of the events `indptr`, `other`, `weight` and
    `target`, the last two empty where each is 1, as in `half_steps`; all in the precision of `table`.
    """
    rank = table.shape[1]
    wide = -(-rank // _LANES) * _LANES
    precision = np.empty((rank, wide), dtype=table.dtype)
    products = np.empty((rank, rank), dtype=table.dtype)
    linear = np.empty(rank, dtype=table.dtype)
    solved = np.zeros(wide, dtype=table.dtype)
    scaled = np.empty((_AT_ONCE, rank), dtype=table.dtype)
    for row in range(start, stop):
        for a in range(rank):
            linear[a] = ridge[row] * mean[a]
            for b in range(rank):
                precision[a, b] = activity[row] * gram[a, b]
            for b in range(rank, wide):
                precision[a, b] = 0.0
            precision[a, a] += ridge[row]
        last = indptr[row + 1]
        for block in range(indptr[row], last, _AT_ONCE):
            count = min(_AT_ONCE, last - block)
            for k in range(count):
                entry = block + k
                root = math.sqrt(1.0 if len(weight) == 0 else weight[entry])
                t = 1.0 if len(target) == 0 else target[entry]
                j = other[entry]
                for a in range(rank):
                    scaled[k, a] = root * table[j, a]
                    linear[a] += root * t * scaled[k, a]
            np.dot(scaled[:count].T, scaled[:count], products)
            for a in range(rank):
                for b in range(rank):
                    precision[a, b] += products[a, b]
        # Cholesky's upper factor: each row, once it is solved, is taken from all below it. Whole rows, for
        # registers: what stands before a diagonal is read no more.
        for a in range(rank):
            root = 1.0 / math.sqrt(precision[a, a])
            upper = precision[a]
            for b in range(wide):
                upper[b] *= root
            linear[a] *= root
            for c in range(a + 1, rank):
                lower = precision[c]
                share = upper[c]
                for b in range(wide):
                    lower[b] -= share * upper[b]
                linear[c] -= share * linear[a]
            # The inverse of the root stands on the diagonal.
            upper[a] = root
        # From below: what is not solved yet is 0.
        solved[:] = 0.0
        for a in range(rank - 1, -1, -1):
            upper = precision[a]
            total = linear[a]
            for b in range(wide):
                total -= upper[b] * solved[b]
            solved[a] = total * upper[a]
            result[row, a] = solved[a]
