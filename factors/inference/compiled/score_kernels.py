"""Loops that score the entries of a half-step, for numba to compile and to run as plain Python too.

Invariant: scores and sites are those of `entry_moments` and `ordinal` but for the rounding of float32 tables.
"""

# ruff: noqa: PLR0912, PLR0915, PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math
from typing import Any

import numpy as np

# So many float32 numbers fill a vector register of AVX-512.
WIDE = 16
# No rating may hold more than all but this part of a posterior (`ordinal`).
_LEAST_CAVITY = 0.02
_ROOT_HALF = math.sqrt(0.5)
_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)

# Numba reads no annotations, and mypy no arrays of lanes: every argument below is an array or a number.
Array = Any


def match_sessions(
    start: int,
    stop: int,
    columns: Array,
    time: Array,
    rows: Array,
    dim: int,
    slots: int,
    session_length: float,
    wrap: float,
    effect: Array,
    variance: Array,
) -> None:
    """Write effect and variance of the session of entries `start` to `stop` whose other row keeps it."""
    key_at = 2 + 2 * dim + dim * (dim + 1) // 2
    for e in range(start, stop):
        if not math.isfinite(time[e]):
            continue
        key = math.floor(time[e] / session_length)
        # As `numpy.mod`, which is not below 0.
        key -= math.floor(key / wrap) * wrap
        j = columns[e]
        for slot in range(slots):
            if rows[j, key_at + slot] == key:
                effect[e] = rows[j, key_at + slots + slot]
                variance[e] = rows[j, key_at + 2 * slots + slot]
                break


def score_entries(
    start: int,
    stop: int,
    indptr: Array,
    columns: Array,
    rows: Array,
    view: Array,
    dim: int,
    group: Array,
    effect: Array,
    variance: Array,
    shared: Array,
    mean: float,
    offset: Array,
    beyond: Array,
    target: Array,
    bounds: Array,
    noise: float,
    low: float,
    steps: float,
    begun: bool,
    damping: float,
    weight: Array,
    linear: Array,
    predicted_mean: Array,
    predicted_variance: Array,
    square: Array,
) -> None:
    """What the posteriors `rows` say of each entry of rows `start` to `stop`, and what follows for its site.

    `view` float32 (m, t + d + 1 or more): of the other side the packed covariance, `f`, `b`, zeros; `WIDE`
    numbers can be read from each part of `f`. `group` (n,): the session of each entry, -1 for none, empty for
    no sessions; `effect`, `variance` (G,), `shared` (G, d): mean and variance of these and their covariance
    with the row. `mean` and `offset` (n,), `beyond` (n,): known part of the score and further variance, empty
    for 0. With `bounds` empty `square` (rows,) becomes the expected sum of squares of `target` less score;
    else `weight`, `linear`, `predicted_mean`, `predicted_variance` (n,) become the sites of
    `ordinal.ordinal_sites`, `damping` of the way from what `weight` and `linear` hold if they have `begun`.
    """
    packed = dim * (dim + 1) // 2
    rank = dim - 1
    latent = rank * (rank + 1) // 2
    # Whole registers of AVX-512, so that short sums stay in them.
    padded = -(-rank // WIDE) * WIDE
    own_part = np.zeros((padded, padded), dtype=np.float32)
    own_edge = np.zeros(padded, dtype=np.float32)
    other_part = np.zeros(packed, dtype=np.float32)
    turned = np.zeros(WIDE, dtype=np.float32)
    vector = np.zeros(dim)
    for row in range(start, stop):
        for a in range(rank):
            vector[a] = rows[row, 2 + a]
        vector[rank] = 1.0
        known = rows[row, 2 + rank] + mean
        # The own covariance, square for its products with f, and what multiplies the packed one of the other
        # side: the second moments of the own features.
        t = 0
        for a in range(dim):
            for b in range(a + 1):
                twice = 1.0 if a == b else 2.0
                covariance = rows[row, 2 + dim + t]
                if a < rank:
                    own_part[a, b] = own_part[b, a] = covariance
                elif b < rank:
                    own_edge[b] = 2.0 * covariance
                inner = covariance if t < latent else 0.0
                other_part[t] = twice * (vector[a] * vector[b] + inner)
                t += 1
        own_bias = rows[row, 2 + dim + packed - 1]
        total = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            j = columns[e]
            score = known + view[j, packed + dim]
            other = np.float32(0.0)
            for t in range(packed):
                other += other_part[t] * view[j, t]
            # f^T S f, a register of columns at a time: the products with f come first, their sum last.
            own_variance = own_bias
            for base in range(0, padded, WIDE):
                for lane in range(WIDE):
                    turned[lane] = own_edge[base + lane]
                for a in range(0, padded, 4):
                    f0, f1 = view[j, packed + a], view[j, packed + a + 1]
                    f2, f3 = view[j, packed + a + 2], view[j, packed + a + 3]
                    for lane in range(WIDE):
                        turned[lane] += (
                            f0 * own_part[a, base + lane] + f1 * own_part[a + 1, base + lane]
                        ) + (f2 * own_part[a + 2, base + lane] + f3 * own_part[a + 3, base + lane])
                part = np.float32(0.0)
                for lane in range(WIDE):
                    part += turned[lane] * view[j, packed + base + lane]
                own_variance += part
            for a in range(rank):
                score += vector[a] * view[j, packed + a]
            # Rows of an earlier fit come with rounded covariances.
            other_variance = max(np.float64(other), 0.0)
            fixed = 0.0
            if len(offset) > 0:
                fixed = offset[e]
                score += fixed
            if len(beyond) > 0:
                other_variance += beyond[e]
            if len(group) > 0 and group[e] >= 0:
                g = group[e]
                score += effect[g]
                own_variance += variance[g]
                for a in range(dim):
                    own_variance += 2.0 * view[j, packed + a] * shared[g, a]
            if len(bounds) == 0:
                total += (target[e] - score) ** 2 + own_variance + other_variance
                continue
            fixed += mean
            # The cavity: the site is taken out of the posterior.
            if begun:
                shrink = max(1.0 - weight[e] * own_variance, _LEAST_CAVITY)
                score = (score - own_variance * (linear[e] + weight[e] * fixed)) / shrink
                own_variance = own_variance / shrink
            predicted = own_variance + other_variance
            level = int(min(max(round((target[e] - low) * steps), 0.0), len(bounds) - 2.0))
            per = 1.0 / math.sqrt(noise + predicted)
            # Mirrored where the interval lies above: `above` is its end nearer to the middle, `below` further
            # out.
            below, above = (bounds[level] - score) * per, (bounds[level + 1] - score) * per
            flip = below + above > 0.0
            if flip:
                below, above = -above, -below
            if above > -20.0:
                mass = 0.5 * (math.erfc(-above * _ROOT_HALF) - math.erfc(-below * _ROOT_HALF))
                mass = max(mass, 1e-300)
                of_above = math.exp(-0.5 * above * above - _LOG_ROOT_TWO_PI) / mass
                of_below = math.exp(-0.5 * below * below - _LOG_ROOT_TWO_PI) / mass
            else:
                # Mills' ratio by its series: the mass itself is 0 in float64 from 38 deviations on.
                square_above = 1.0 / (above * above)
                mills = 1.0 - 5.0 * square_above * (1.0 - 7.0 * square_above)
                mills = 1.0 - square_above * (1.0 - 3.0 * square_above * mills)
                mass = -mills / above
                fall = 0.0
                if math.isfinite(below):
                    fall = math.exp(0.5 * (above - below) * (above + below))
                    square_below = 1.0 / (below * below)
                    mills = 1.0 - 5.0 * square_below * (1.0 - 7.0 * square_below)
                    mills = 1.0 - square_below * (1.0 - 3.0 * square_below * mills)
                    mass += fall * mills / below
                of_above = 1.0 / mass
                of_below = fall * of_above
            slope = of_below - of_above
            curvature = slope * slope
            if math.isfinite(above):
                curvature += above * of_above
            if math.isfinite(below):
                curvature -= below * of_below
            # As in `ordinal`: rounding must not leave a site without weight.
            curvature = min(max(curvature, 1e-9), 1.0) * per * per
            slope = (-slope if flip else slope) * per
            # The site has the curvature that the own variance does not account for.
            new = curvature / max(1.0 - curvature * own_variance, _LEAST_CAVITY)
            new = min(max(new, 1e-9 / noise), 1.0 / noise)
            towards = new * (score - fixed + slope / curvature)
            if begun:
                new = weight[e] + damping * (new - weight[e])
                towards = linear[e] + damping * (towards - linear[e])
            weight[e] = new
            linear[e] = towards
            predicted_mean[e] = score
            predicted_variance[e] = predicted
        square[row] = total


def score_means(
    start: int,
    stop: int,
    indptr: Array,
    columns: Array,
    rows: Array,
    other: Array,
    dim: int,
    every: int,
    group: Array,
    effect: Array,
    mean: float,
    offset: Array,
    expected: Array,
) -> None:
    """The mean score of each `every`-th entry of rows `start` to `stop`, written to `expected`."""
    rank = dim - 1
    for row in range(start, stop):
        first = indptr[row]
        for at in range((first + every - 1) // every, (indptr[row + 1] + every - 1) // every):
            e = at * every
            j = columns[e]
            score = mean + rows[row, 2 + rank] + other[j, 2 + rank]
            for a in range(rank):
                score += rows[row, 2 + a] * other[j, 2 + a]
            if len(offset) > 0:
                score += offset[e]
            if len(group) > 0 and group[e] >= 0:
                score += effect[group[e]]
            expected[at] = score
