"""Loops that solve half-steps over millions of ratings, written to be compiled by numba and to run as plain
Python too.

Invariant: the sums, posteriors and sites are those of `half_step` but for the rounding of a float32 table. A
row depends on its own entries alone, never on which thread or part of the rows it is computed with.

A table of the other side, float32 (m, w), has for each row, with `f = [latent, 1]` (d,), `b` its bias and `t
= d (d + 1) / 2`,

    E[f f^T] packed (t), its last d numbers f itself | E[f b] (d), the last of them b | E[b^2] |
    implicit effect (d)
"""

# ruff: noqa: PLR0912, PLR0915, PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math
from typing import Any

import numpy as np

# Rows whose matrices are inverted together: so many float64 numbers fill a vector register of AVX-512.
LANES = 8
# Entries summed in float32 before the sum goes on in float64: rounding stays that of a single float32.
_BLOCK = 64

# Numba reads no annotations, and mypy no arrays of lanes: every argument below is an array or a number.
Array = Any


def read_rows(start: int, stop: int, rows: Array, dim: int, sets: bool, table: Array) -> None:
    """Write rows `start` to `stop` of the `table` of the module's docstring from those of `rows`."""
    packed = dim * (dim + 1) // 2
    rank = dim - 1
    bias_row = packed - dim
    for j in range(start, stop):
        bias = rows[j, 2 + rank]
        t = 0
        for a in range(rank):
            left = rows[j, 2 + a]
            for b in range(a + 1):
                table[j, t] = left * rows[j, 2 + b] + rows[j, 2 + dim + t]
                t += 1
            table[j, bias_row + a] = left
            table[j, packed + a] = left * bias + rows[j, 2 + dim + bias_row + a]
        table[j, packed - 1] = 1.0
        table[j, packed + rank] = bias
        table[j, packed + dim] = bias * bias + rows[j, 2 + dim + packed - 1]
        if sets:
            for a in range(dim):
                table[j, packed + dim + 1 + a] = rows[j, 2 + dim + packed + a]


def solve_rows(
    start: int,
    stop: int,
    indptr: Array,
    columns: Array,
    value: Array,
    target: Array,
    shift: float,
    weight: Array,
    linear: Array,
    unit: float,
    table: Array,
    sets: bool,
    mean: Array,
    precision: Array,
    groups: Array,
    load: Array,
    scale: Array,
    surprise: Array,
    result: Array,
    square: Array,
) -> None:
    """Posteriors of rows `start` to `stop`, written to `result` (rows, width).

    With `weight` empty each entry has the weight `unit` and the target `target - shift`, and `square` (rows,)
    becomes the expected sum of the squares of target less score; otherwise its `weight` and `linear`, and
    `unit` is 1. `mean` (1, d), or (rows, d), and `precision` (d, d) are those of the prior. `groups` (rows +
    1,): where the sessions of each row begin, empty for none; `load` (G, d), `scale`, `surprise` (G,): see
    `session_effects`.
    """
    dim = mean.shape[1]
    several = len(mean) > 1
    packed = dim * (dim + 1) // 2
    features = packed - dim
    bias_at = packed + dim - 1
    used = packed + dim + 1
    uniform = len(weight) == 0
    part = np.zeros(used, dtype=np.float32)
    part_linear = np.zeros(dim, dtype=np.float32)
    part_set = np.zeros(dim, dtype=np.float32)
    sums = np.zeros((LANES, used))
    sums_linear = np.zeros((LANES, dim))
    sums_set = np.zeros(dim)
    constant = np.zeros(LANES)
    matrix = np.zeros((dim, dim, LANES))
    inverse = np.zeros((dim, dim, LANES))
    right = np.zeros((dim, LANES))
    solved = np.zeros((dim, LANES))
    for base in range(start, stop, LANES):
        lanes = min(LANES, stop - base)
        # Lanes without a row invert the identity.
        for lane in range(LANES):
            for a in range(dim):
                for b in range(a + 1):
                    matrix[a, b, lane] = 1.0 if a == b else 0.0
                right[a, lane] = 0.0
        for lane in range(lanes):
            row = base + lane
            first, last = indptr[row], indptr[row + 1]
            count = last - first
            total = 0.0
            fixed = 0.0
            sums[lane, :] = 0.0
            sums_linear[lane, :] = 0.0
            sums_set[:] = 0.0
            for block in range(first, last, _BLOCK):
                end = min(block + _BLOCK, last)
                part[:] = 0.0
                part_linear[:] = 0.0
                part_set[:] = 0.0
                e = block
                # Four entries at a time: `part` is loaded and stored once for all of them.
                while e + 4 <= end:
                    j0, j1, j2, j3 = columns[e], columns[e + 1], columns[e + 2], columns[e + 3]
                    # One weight for all entries is left out here: `unit` multiplies the sums.
                    if uniform:
                        for t in range(used):
                            part[t] += (table[j0, t] + table[j1, t]) + (table[j2, t] + table[j3, t])
                        l0 = np.float32(target[e] - shift)
                        l1 = np.float32(target[e + 1] - shift)
                        l2 = np.float32(target[e + 2] - shift)
                        l3 = np.float32(target[e + 3] - shift)
                    else:
                        w0, w1 = np.float32(weight[e]), np.float32(weight[e + 1])
                        w2, w3 = np.float32(weight[e + 2]), np.float32(weight[e + 3])
                        for t in range(used):
                            part[t] += (w0 * table[j0, t] + w1 * table[j1, t]) + (
                                w2 * table[j2, t] + w3 * table[j3, t]
                            )
                        l0, l1 = np.float32(linear[e]), np.float32(linear[e + 1])
                        l2, l3 = np.float32(linear[e + 2]), np.float32(linear[e + 3])
                    for a in range(dim):
                        part_linear[a] += (l0 * table[j0, features + a] + l1 * table[j1, features + a]) + (
                            l2 * table[j2, features + a] + l3 * table[j3, features + a]
                        )
                    if sets:
                        for a in range(dim):
                            part_set[a] += (table[j0, used + a] + table[j1, used + a]) + (
                                table[j2, used + a] + table[j3, used + a]
                            )
                    e += 4
                while e < end:
                    j0 = columns[e]
                    if uniform:
                        w0, l0 = np.float32(1.0), np.float32(target[e] - shift)
                    else:
                        w0, l0 = np.float32(weight[e]), np.float32(linear[e])
                    for t in range(used):
                        part[t] += w0 * table[j0, t]
                    for a in range(dim):
                        part_linear[a] += l0 * table[j0, features + a]
                    if sets:
                        for a in range(dim):
                            part_set[a] += table[j0, used + a]
                    e += 1
                for e in range(block, end):
                    total += value[e]
                    if uniform:
                        aim = target[e] - shift
                        fixed += aim * (aim - 2.0 * table[columns[e], bias_at])
                for t in range(used):
                    sums[lane, t] += part[t]
                for a in range(dim):
                    sums_linear[lane, a] += part_linear[a]
                    sums_set[a] += part_set[a]
            # The prior mean of the row, with the implicit effects of its set.
            share = 1.0 / math.sqrt(max(count, 1))
            for a in range(dim):
                sums_linear[lane, a] -= sums[lane, packed + a]
                right[a, lane] = unit * sums_linear[lane, a]
            t = 0
            for a in range(dim):
                prior_mean = mean[row if several else 0, a] + share * sums_set[a]
                for b in range(dim):
                    right[b, lane] += precision[b, a] * prior_mean
                for b in range(a + 1):
                    matrix[a, b, lane] = precision[a, b] + unit * sums[lane, t]
                    t += 1
            # The Schur complement of the effects of sessions.
            if len(groups) > 0:
                for g in range(groups[row], groups[row + 1]):
                    inner = 1.0 / scale[g]
                    for a in range(dim):
                        right[a, lane] -= load[g, a] * surprise[g] * inner
                        for b in range(a + 1):
                            matrix[a, b, lane] -= load[g, a] * load[g, b] * inner
            constant[lane] = fixed + sums[lane, packed + dim]
            result[row, 0] = count
            result[row, 1] = total / max(count, 1)
        # Cholesky factor, its inverse, and the inverse of the whole, all lanes at once.
        for a in range(dim):
            for b in range(a):
                for c in range(b):
                    for lane in range(LANES):
                        matrix[a, b, lane] -= matrix[a, c, lane] * matrix[b, c, lane]
                for lane in range(LANES):
                    matrix[a, b, lane] *= matrix[b, b, lane]
            for c in range(a):
                for lane in range(LANES):
                    matrix[a, a, lane] -= matrix[a, c, lane] * matrix[a, c, lane]
            # The diagonal holds the inverses: products are faster than quotients.
            for lane in range(LANES):
                matrix[a, a, lane] = 1.0 / math.sqrt(matrix[a, a, lane])
        for a in range(dim):
            for b in range(a):
                for lane in range(LANES):
                    inverse[a, b, lane] = matrix[a, b, lane] * matrix[b, b, lane]
                for c in range(b + 1, a):
                    for lane in range(LANES):
                        inverse[a, b, lane] += matrix[a, c, lane] * inverse[c, b, lane]
                for lane in range(LANES):
                    inverse[a, b, lane] *= -matrix[a, a, lane]
            for lane in range(LANES):
                inverse[a, a, lane] = matrix[a, a, lane]
        for a in range(dim):
            for b in range(a + 1):
                for lane in range(LANES):
                    matrix[a, b, lane] = inverse[a, a, lane] * inverse[a, b, lane]
                for c in range(a + 1, dim):
                    for lane in range(LANES):
                        matrix[a, b, lane] += inverse[c, a, lane] * inverse[c, b, lane]
        for a in range(dim):
            for lane in range(LANES):
                solved[a, lane] = 0.0
            for b in range(dim):
                high, low = max(a, b), min(a, b)
                for lane in range(LANES):
                    solved[a, lane] += matrix[high, low, lane] * right[b, lane]
        for lane in range(lanes):
            row = base + lane
            expected = constant[lane]
            t = 0
            for a in range(dim):
                result[row, 2 + a] = solved[a, lane]
                expected -= 2.0 * solved[a, lane] * sums_linear[lane, a]
                for b in range(a + 1):
                    covariance = matrix[a, b, lane]
                    result[row, 2 + dim + t] = covariance
                    twice = 1.0 if a == b else 2.0
                    expected += twice * (covariance + solved[a, lane] * solved[b, lane]) * sums[lane, t]
                    t += 1
            if uniform:
                square[row] = expected


def sum_groups(
    start: int,
    stop: int,
    indptr: Array,
    entries: Array,
    columns: Array,
    target: Array,
    shift: float,
    weight: Array,
    linear: Array,
    unit: float,
    table: Array,
    dim: int,
    variance: float,
    load: Array,
    scale: Array,
    surprise: Array,
) -> None:
    """`load`, `scale` and `surprise` of the sessions `start` to `stop`, whose `entries` begin at
    `indptr`.
    """
    packed = dim * (dim + 1) // 2
    features = packed - dim
    for g in range(start, stop):
        total = 1.0 / variance
        rest = 0.0
        for a in range(dim):
            load[g, a] = 0.0
        for at in range(indptr[g], indptr[g + 1]):
            e = entries[at]
            j = columns[e]
            w = unit if len(weight) == 0 else np.float64(weight[e])
            seen = unit * (target[e] - shift) if len(weight) == 0 else np.float64(linear[e])
            total += w
            rest += seen - w * table[j, packed + dim - 1]
            for a in range(dim):
                load[g, a] += w * table[j, features + a]
        scale[g] = total
        surprise[g] = rest


def write_sessions(
    start: int,
    stop: int,
    groups: Array,
    keys: Array,
    load: Array,
    scale: Array,
    surprise: Array,
    dim: int,
    slots: int,
    result: Array,
    effect: Array,
    variance: Array,
    shared: Array,
) -> None:
    """Effects of the sessions of rows `start` to `stop` and, in the slots of each row, its latest and
    those of largest effect.
    """
    packed = dim * (dim + 1) // 2
    key_at = 2 + 2 * dim + packed
    for row in range(start, stop):
        first, last = groups[row], groups[row + 1]
        for g in range(first, last):
            inner = 1.0 / scale[g]
            rest = surprise[g]
            total = inner
            for a in range(dim):
                rest -= load[g, a] * result[row, 2 + a]
                moved = 0.0
                for b in range(dim):
                    high, low = max(a, b), min(a, b)
                    moved += result[row, 2 + dim + high * (high + 1) // 2 + low] * load[g, b]
                shared[g, a] = -moved * inner
                total += load[g, a] * inner * moved * inner
            effect[g] = rest * inner
            variance[g] = total
        kept = min(slots, last - first)
        for slot in range(kept):
            best = last - 1
            # The latest session has the first slot, the largest effects the others.
            if slot > 0:
                best = -1
                for g in range(first, last - 1):
                    taken = False
                    for before in range(1, slot):
                        taken = taken or result[row, key_at + before] == keys[g]
                    if not taken and (best < 0 or abs(effect[g]) > abs(effect[best])):
                        best = g
            result[row, key_at + slot] = keys[best]
            result[row, key_at + slots + slot] = effect[best]
            result[row, key_at + 2 * slots + slot] = variance[best]


def sum_rows(
    start: int, stop: int, indptr: Array, columns: Array, table: Array, scale: Array, result: Array
) -> None:
    """For rows `start` to `stop`, `scale` times the sum of `table` (m, d) over their columns."""
    dim = table.shape[1]
    for row in range(start, stop):
        for a in range(dim):
            result[row, a] = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            j = columns[e]
            for a in range(dim):
                result[row, a] += table[j, a]
        for a in range(dim):
            result[row, a] *= scale[row]
