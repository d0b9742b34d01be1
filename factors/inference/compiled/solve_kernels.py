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

import numpy as np

from factors.inference.compiled.loading import Array

# Rows whose matrices are inverted together: so many float64 numbers fill a vector register of AVX-512.
LANES = 8
# Entries summed in float32 before the sum goes on in float64: rounding stays that of a single float32.
_BLOCK = 64


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
    view: Array,
    back: Array,
    velocity: Array,
    moved: Array,
    of_other: bool,
    sets: bool,
    mean: Array,
    precision: Array,
    groups: Array,
    load: Array,
    scale: Array,
    surprise: Array,
    result: Array,
    states: Array,
    parts: Array,
    effect: Array,
    variance: Array,
    shared: Array,
    square: Array,
) -> None:
    """Posteriors of rows `start` to `stop`, written to `result` (rows, width), and of rows that move also to
    `states` (rows, 2 d) and `parts` (rows, 3 t), as `motion` has them; otherwise these are empty.

    With `weight` empty each entry has the weight `unit` and the target `target - shift`, and `square` (rows,)
    becomes the expected sum of the squares of target less score, of rows and entries that stand still;
    otherwise its `weight` and `linear`, and `unit` is 1. `view`, `back`, `velocity`, `moved`, `of_other`: see
    `score_kernels.score_entries`. `mean` (1, d), or (rows, d), and `precision` (D, D) are those of the prior.
    `groups` (rows + 1,): where the sessions of each row begin, empty for none; `load` (G, D), `scale`,
    `surprise` (G,): see `session_effects`; `effect`, `variance` (G,), `shared` (G, D) are written: mean and
    variance of their effects, and their covariance with the state of the row.
    """
    dim, width = mean.shape[1], len(precision)
    # The powers of an age that count: 1 alone, or also -age and its square.
    moving = len(states) > 0
    powers, linear_powers = (3, 2) if moving else (1, 1)
    several = len(mean) > 1
    rank = dim - 1
    packed = dim * (dim + 1) // 2
    features = packed - dim
    bias_at = packed + dim - 1
    used = packed + dim + 1
    # Whole registers of AVX-512: what is beyond `used` is summed and not read.
    wide = -(-used // 16) * 16
    uniform = len(weight) == 0
    apart = len(moved) > 0 or len(velocity) > 0
    near = np.zeros((_BLOCK if apart else 0, table.shape[1]), dtype=np.float32)
    at = np.zeros(_BLOCK, dtype=np.int64)
    weights = np.zeros((3, _BLOCK), dtype=np.float32)
    seen = np.zeros((2, _BLOCK), dtype=np.float32)
    local = np.zeros(dim, dtype=np.float32)
    part = np.zeros((3, wide), dtype=np.float32)
    part_linear = np.zeros((2, dim), dtype=np.float32)
    part_set = np.zeros(dim, dtype=np.float32)
    sums = np.zeros((LANES, 3, used))
    sums_linear = np.zeros((LANES, 2, dim))
    sums_set = np.zeros(dim)
    constant = np.zeros(LANES)
    matrix = np.zeros((width, width, LANES))
    inverse = np.zeros((width, width, LANES))
    right = np.zeros((width, LANES))
    solved = np.zeros((width, LANES))
    for base in range(start, stop, LANES):
        lanes = min(LANES, stop - base)
        # Lanes without a row invert the identity.
        for lane in range(LANES):
            for a in range(width):
                for b in range(a + 1):
                    matrix[a, b, lane] = 1.0 if a == b else 0.0
                right[a, lane] = 0.0
        for lane in range(lanes):
            row = base + lane
            first, last = indptr[row], indptr[row + 1]
            count = last - first
            total = 0.0
            fixed = 0.0
            sums[lane, :, :] = 0.0
            sums_linear[lane, :, :] = 0.0
            sums_set[:] = 0.0
            for block in range(first, last, _BLOCK):
                n = min(_BLOCK, last - block)
                for i in range(n):
                    e = block + i
                    at[i] = columns[e]
                    total += value[e]
                    # One weight for all entries is left out here: `unit` multiplies the sums.
                    weights[0, i] = 1.0 if uniform else weight[e]
                    seen[0, i] = target[e] - shift if uniform else linear[e]
                if moving:
                    for i in range(n):
                        weights[1, i] = weights[0, i] * back[block + i]
                        weights[2, i] = weights[1, i] * back[block + i]
                        seen[1, i] = seen[0, i] * back[block + i]
                source = table
                if apart:
                    # Each entry has a row of its own: another bias where its context moves the own row, and
                    # another mean where the other row is elsewhere.
                    source = near
                    for i in range(n):
                        e, j = block + i, at[i]
                        at[i] = i
                        if sets:
                            for a in range(dim):
                                near[i, used + a] = table[j, used + a]
                        if not of_other:
                            for t in range(used):
                                near[i, t] = table[j, t]
                            t = 0
                            for a in range(dim):
                                for b in range(a):
                                    near[i, packed + a] += table[j, t] * moved[e, b]
                                    near[i, packed + b] += table[j, t] * moved[e, a]
                                    t += 1
                                near[i, packed + a] += table[j, t] * moved[e, a]
                                t += 1
                            continue
                        for a in range(dim):
                            local[a] = view[j, packed + a]
                        local[rank] = view[j, packed + dim]
                        if len(velocity) > 0:
                            for a in range(dim):
                                local[a] += back[e] * velocity[j, a]
                        if len(moved) > 0:
                            for a in range(dim):
                                local[a] += moved[e, a]
                        bias = local[rank]
                        local[rank] = 1.0
                        t = 0
                        for a in range(rank):
                            for b in range(a + 1):
                                near[i, t] = local[a] * local[b] + view[j, t]
                                t += 1
                        for a in range(dim):
                            near[i, features + a] = local[a]
                            near[i, packed + a] = local[a] * bias + view[j, features + a]
                        near[i, packed + rank] = bias
                if uniform:
                    for i in range(n):
                        fixed += seen[0, i] * (seen[0, i] - 2.0 * source[at[i], bias_at])
                part[:, :] = 0.0
                part_linear[:, :] = 0.0
                part_set[:] = 0.0
                # Four entries at a time: `part` is loaded and stored once for all of them.
                fours = n - n % 4
                for power in range(powers):
                    for i in range(0, fours, 4):
                        j0, j1, j2, j3 = at[i], at[i + 1], at[i + 2], at[i + 3]
                        w0, w1 = weights[power, i], weights[power, i + 1]
                        w2, w3 = weights[power, i + 2], weights[power, i + 3]
                        for t in range(wide):
                            part[power, t] += (w0 * source[j0, t] + w1 * source[j1, t]) + (
                                w2 * source[j2, t] + w3 * source[j3, t]
                            )
                    for i in range(fours, n):
                        w0, j0 = weights[power, i], at[i]
                        for t in range(wide):
                            part[power, t] += w0 * source[j0, t]
                for power in range(linear_powers):
                    for i in range(0, fours, 4):
                        j0, j1, j2, j3 = at[i], at[i + 1], at[i + 2], at[i + 3]
                        l0, l1 = seen[power, i], seen[power, i + 1]
                        l2, l3 = seen[power, i + 2], seen[power, i + 3]
                        for a in range(dim):
                            part_linear[power, a] += (
                                l0 * source[j0, features + a] + l1 * source[j1, features + a]
                            ) + (l2 * source[j2, features + a] + l3 * source[j3, features + a])
                    for i in range(fours, n):
                        l0, j0 = seen[power, i], at[i]
                        for a in range(dim):
                            part_linear[power, a] += l0 * source[j0, features + a]
                if sets:
                    for i in range(n):
                        j0 = at[i]
                        for a in range(dim):
                            part_set[a] += source[j0, used + a]
                for power in range(powers):
                    for t in range(used):
                        sums[lane, power, t] += part[power, t]
                for a in range(dim):
                    sums_set[a] += part_set[a]
                    for power in range(linear_powers):
                        sums_linear[lane, power, a] += part_linear[power, a]
            # The prior mean of the row, with the implicit effects of its set.
            share = 1.0 / math.sqrt(max(count, 1))
            for power in range(linear_powers):
                for a in range(dim):
                    sums_linear[lane, power, a] -= sums[lane, power, packed + a]
                    right[power * dim + a, lane] = unit * sums_linear[lane, power, a]
            for a in range(dim):
                prior_mean = mean[row if several else 0, a] + share * sums_set[a]
                for b in range(dim):
                    right[b, lane] += precision[b, a] * prior_mean
            for a in range(width):
                for b in range(a + 1):
                    # Of state and state the powers add up.
                    left, top = (a - dim, 1) if a >= dim else (a, 0)
                    below, more = (b - dim, 1) if b >= dim else (b, 0)
                    high, low = max(left, below), min(left, below)
                    t = high * (high + 1) // 2 + low
                    matrix[a, b, lane] = precision[a, b] + unit * sums[lane, top + more, t]
            # The Schur complement of the effects of sessions.
            if len(groups) > 0:
                for g in range(groups[row], groups[row + 1]):
                    inner = 1.0 / scale[g]
                    for a in range(width):
                        right[a, lane] -= load[g, a] * surprise[g] * inner
                        for b in range(a + 1):
                            matrix[a, b, lane] -= load[g, a] * load[g, b] * inner
            constant[lane] = fixed + sums[lane, 0, packed + dim]
            result[row, 0] = count
            result[row, 1] = total / max(count, 1)
        # Cholesky factor, its inverse, and the inverse of the whole, all lanes at once.
        for a in range(width):
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
        for a in range(width):
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
        for a in range(width):
            for b in range(a + 1):
                for lane in range(LANES):
                    matrix[a, b, lane] = inverse[a, a, lane] * inverse[a, b, lane]
                for c in range(a + 1, width):
                    for lane in range(LANES):
                        matrix[a, b, lane] += inverse[c, a, lane] * inverse[c, b, lane]
        for a in range(width):
            for lane in range(LANES):
                solved[a, lane] = 0.0
            for b in range(width):
                high, low = max(a, b), min(a, b)
                for lane in range(LANES):
                    solved[a, lane] += matrix[high, low, lane] * right[b, lane]
        for lane in range(lanes):
            row = base + lane
            expected = constant[lane]
            t = 0
            for a in range(dim):
                result[row, 2 + a] = solved[a, lane]
                expected -= 2.0 * solved[a, lane] * sums_linear[lane, 0, a]
                for b in range(a + 1):
                    covariance = matrix[a, b, lane]
                    result[row, 2 + dim + t] = covariance
                    twice = 1.0 if a == b else 2.0
                    expected += twice * (covariance + solved[a, lane] * solved[b, lane]) * sums[lane, 0, t]
                    if moving:
                        parts[row, t] = covariance
                        parts[row, packed + t] = matrix[dim + b, a, lane] + matrix[dim + a, b, lane]
                        parts[row, 2 * packed + t] = matrix[dim + a, dim + b, lane]
                    t += 1
            if moving:
                for a in range(width):
                    states[row, a] = solved[a, lane]
            if uniform:
                square[row] = expected
            if len(groups) > 0:
                for g in range(groups[row], groups[row + 1]):
                    inner = 1.0 / scale[g]
                    rest = surprise[g]
                    spread = inner
                    for a in range(width):
                        rest -= load[g, a] * solved[a, lane]
                        turned = 0.0
                        for b in range(width):
                            turned += matrix[max(a, b), min(a, b), lane] * load[g, b]
                        shared[g, a] = -turned * inner
                        spread += load[g, a] * inner * turned * inner
                    effect[g] = rest * inner
                    variance[g] = spread


def sum_rows(
    start: int,
    stop: int,
    indptr: Array,
    columns: Array,
    weight: Array,
    table: Array,
    scale: Array,
    result: Array,
) -> None:
    """For rows `start` to `stop`, `scale` times the sum of `table` float32 (m, d or more) over their columns,
    each times its `weight` (n,), which may be empty for 1, written to `result` (rows, d).
    """
    dim, wide = result.shape[1], table.shape[1]
    weighed = len(weight) > 0
    part = np.zeros(wide, dtype=np.float32)
    for row in range(start, stop):
        result[row, :] = 0.0
        for block in range(indptr[row], indptr[row + 1], _BLOCK):
            end = min(block + _BLOCK, indptr[row + 1])
            part[:] = 0.0
            e = block
            while e + 4 <= end:
                j0, j1, j2, j3 = columns[e], columns[e + 1], columns[e + 2], columns[e + 3]
                if weighed:
                    w0, w1, w2, w3 = weight[e], weight[e + 1], weight[e + 2], weight[e + 3]
                    for a in range(wide):
                        part[a] += (w0 * table[j0, a] + w1 * table[j1, a]) + (
                            w2 * table[j2, a] + w3 * table[j3, a]
                        )
                else:
                    for a in range(wide):
                        part[a] += (table[j0, a] + table[j1, a]) + (table[j2, a] + table[j3, a])
                e += 4
            for rest in range(e, end):
                w0 = weight[rest] if weighed else np.float32(1.0)
                for a in range(wide):
                    part[a] += w0 * table[columns[rest], a]
            for a in range(dim):
                result[row, a] += part[a]
        for a in range(dim):
            result[row, a] *= scale[row]
