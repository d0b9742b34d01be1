"""Loops that score the entries of a half-step, for numba to compile and to run as plain Python too.

Invariant: scores and sites are those of `entry_moments` and `ordinal` but for the rounding of float32 tables.
"""

# ruff: noqa: PLR0912, PLR0915, PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import erfcx

from factors.inference.compiled.loading import Array
from factors.inference.ordinal import LEAST_CAVITY as _LEAST_CAVITY
from factors.model.scale import HALF
from factors.model.types import Float64s

# So many float32 numbers fill a vector register of AVX-512.
WIDE = 16
# Entries whose sites are moved together, in the first cache.
LANES = 64
ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
# Where the polynomial of Mills' ratio has its middle: its error is least there.
MIDDLE = 5.0


def _mills_polynomial() -> Float64s:
    """Return the coefficients, highest first, of `(x + 5) (1 - Phi(x)) / phi(x)` in `(x - 5) / (x + 5)`, for
    any `x >= 0` (Shepherd and Laframboise, 1981); its relative error is below 3e-14.
    """

    t = chebyshev.chebpts1(19)
    x = MIDDLE * (1.0 + t) / (1.0 - t)
    ratio = math.sqrt(math.pi / 2.0) * erfcx(x * math.sqrt(0.5)) * (x + MIDDLE)
    return np.asarray(chebyshev.cheb2poly(chebyshev.chebfit(t, ratio, 18))[::-1].copy())


MILLS = _mills_polynomial()
# Those of `exp`, for -0.625 to 0: squared six times it is `exp` down to -40, to 1e-14 of itself.
EXP = np.array([1.0 / math.factorial(power) for power in range(11, -1, -1)])


def score_entries(
    start: int,
    stop: int,
    indptr: Array,
    columns: Array,
    rows: Array,
    states: Array,
    parts: Array,
    view: Array,
    back: Array,
    velocity: Array,
    moved: Array,
    of_other: bool,
    dim: int,
    group: Array,
    effect: Array,
    variance: Array,
    shared: Array,
    mean: float,
    offset: Array,
    beyond: Array,
    target: Array,
    score_mean: Array,
    own_variance: Array,
    other_variance: Array,
    square: Array,
) -> None:
    """What the posteriors `rows` say of each entry of rows `start` to `stop`.

    `view` float32 (m, t + d + 1 or more): of the other side the packed covariance, `f`, `b`, zeros. Of rows
    that move `states` (rows, 2 d) and `parts` (rows, 3 t) as `motion` has them, else empty; `velocity` (m,
    d): that of other rows, empty where they stand still; `back` (n,): minus the age of each entry, for
    either. `moved` (n, d): by how much contexts move the users, which are the rows `of_other`; empty for not
    at all. `group` (n,): the session of each entry, -1 for none, empty for no sessions; `effect`, `variance`
    (G,), `shared` (G, D): mean and variance of these and their covariance with the state. `mean` and `offset`
    (n,), `beyond` (n,): known part of the score and further variance, empty for 0. Written are mean and both
    parts of the variance of each score, `score_mean`, `own_variance`, `other_variance` (n,), which may be
    empty, and the expected sum of squares of `target` less score of each row, `square` (rows,).
    """
    packed = dim * (dim + 1) // 2
    rank = dim - 1
    latent = rank * (rank + 1) // 2
    # Whole registers of AVX-512: what is beyond `packed` is multiplied with 0.
    wide = -(-packed // WIDE) * WIDE
    own_part = np.zeros(packed, dtype=np.float32)
    other_part = np.zeros(wide, dtype=np.float32)
    part = np.zeros((4, WIDE), dtype=np.float32)
    # Of a block of entries `f`, a number of each side by side, and what is summed of them.
    features = np.zeros((dim, LANES), dtype=np.float32)
    ages = np.zeros(LANES, dtype=np.float32)
    # What differs from entry to entry where rows move or contexts move them.
    moving, elsewhere = len(states) > 0, not of_other and (len(states) > 0 or len(moved) > 0)
    position = np.zeros((dim if elsewhere else 0, LANES), dtype=np.float32)
    spread = np.zeros((packed if elsewhere else 0, LANES), dtype=np.float32)
    mixed_part = np.zeros(packed, dtype=np.float32)
    velocity_part = np.zeros(packed, dtype=np.float32)
    turned = np.zeros(LANES, dtype=np.float32)
    own = np.zeros(LANES, dtype=np.float32)
    further = np.zeros(LANES, dtype=np.float32)
    score = np.zeros(LANES)
    for row in range(start, stop):
        # What multiplies products of f, and the packed covariance of the other side: own covariance and
        # second moments of the own features.
        t = 0
        for a in range(dim):
            left = 1.0 if a == rank else rows[row, 2 + a]
            for b in range(a + 1):
                right = 1.0 if b == rank else rows[row, 2 + b]
                twice = 1.0 if a == b else 2.0
                covariance = rows[row, 2 + dim + t]
                own_part[t] = twice * covariance
                other_part[t] = twice * (left * right + (covariance if t < latent else 0.0))
                if moving:
                    mixed_part[t] = twice * parts[row, packed + t]
                    velocity_part[t] = twice * parts[row, 2 * packed + t]
                t += 1
        known = rows[row, 2 + rank] + mean
        total = 0.0
        first, last = indptr[row], indptr[row + 1]
        for block in range(first, last, LANES):
            n = min(LANES, last - block)
            filled = -(-n // WIDE) * WIDE
            for i in range(n):
                j = columns[block + i]
                for a in range(dim):
                    features[a, i] = view[j, packed + a]
                score[i] = known + view[j, packed + dim]
            if len(back) > 0:
                for i in range(n):
                    ages[i] = back[block + i]
            if of_other and len(velocity) > 0:
                for i in range(n):
                    j = columns[block + i]
                    for a in range(rank):
                        features[a, i] += ages[i] * velocity[j, a]
                    score[i] += ages[i] * velocity[j, rank]
            if of_other and len(moved) > 0:
                for i in range(n):
                    for a in range(rank):
                        features[a, i] += moved[block + i, a]
                    score[i] += moved[block + i, rank]
            for lane in range(filled):
                own[lane] = 0.0
            t = 0
            for a in range(dim):
                for lane in range(filled):
                    turned[lane] = 0.0
                for b in range(a + 1):
                    if moving:
                        for lane in range(filled):
                            varied = own_part[t] + ages[lane] * (
                                mixed_part[t] + ages[lane] * velocity_part[t]
                            )
                            turned[lane] += varied * features[b, lane]
                    else:
                        for lane in range(filled):
                            turned[lane] += own_part[t] * features[b, lane]
                    t += 1
                for lane in range(filled):
                    own[lane] += turned[lane] * features[a, lane]
            for a in range(rank):
                for lane in range(filled):
                    score[lane] += rows[row, 2 + a] * features[a, lane]
            if elsewhere:
                for a in range(dim):
                    for i in range(n):
                        position[a, i] = moved[block + i, a] if len(moved) > 0 else 0.0
                    if moving:
                        for lane in range(filled):
                            position[a, lane] += ages[lane] * states[row, dim + a]
                    for lane in range(filled):
                        score[lane] += position[a, lane] * features[a, lane]
                        position[a, lane] += rows[row, 2 + a]
                for lane in range(filled):
                    position[rank, lane] = 1.0
                    further[lane] = 0.0
                for i in range(n):
                    j = columns[block + i]
                    for t in range(packed):
                        spread[t, i] = view[j, t]
                t = 0
                for a in range(dim):
                    for b in range(a + 1):
                        both = np.float32(1.0 if a == b else 2.0)
                        inner = np.float32(0.5 if a < rank and a != b else (1.0 if a < rank else 0.0))
                        for lane in range(filled):
                            varied = own_part[t]
                            if moving:
                                varied += ages[lane] * (mixed_part[t] + ages[lane] * velocity_part[t])
                            further[lane] += (
                                both
                                * spread[t, lane]
                                * (position[a, lane] * position[b, lane] + inner * varied)
                            )
                        t += 1
                for lane in range(filled):
                    further[lane] = max(further[lane], np.float32(0.0))
            # Four entries at a time, so that their sums do not wait for each other.
            for i in range(0, 0 if elsewhere else n, 4):
                j0 = columns[block + i]
                j1 = columns[min(block + i + 1, last - 1)]
                j2 = columns[min(block + i + 2, last - 1)]
                j3 = columns[min(block + i + 3, last - 1)]
                part[:] = 0.0
                for base in range(0, wide, WIDE):
                    for lane in range(WIDE):
                        part[0, lane] += other_part[base + lane] * view[j0, base + lane]
                        part[1, lane] += other_part[base + lane] * view[j1, base + lane]
                        part[2, lane] += other_part[base + lane] * view[j2, base + lane]
                        part[3, lane] += other_part[base + lane] * view[j3, base + lane]
                for at in range(4):
                    rest = np.float32(0.0)
                    for lane in range(WIDE):
                        rest += part[at, lane]
                    # Rows of an earlier fit come with rounded covariances.
                    further[i + at] = max(rest, np.float32(0.0))
            if len(offset) > 0:
                for i in range(n):
                    score[i] += offset[block + i]
            if len(beyond) > 0:
                for i in range(n):
                    further[i] += beyond[block + i]
            if len(group) > 0:
                for i in range(n):
                    g = group[block + i]
                    if g >= 0:
                        score[i] += effect[g]
                        own[i] += variance[g]
                        for a in range(dim):
                            own[i] += 2.0 * features[a, i] * shared[g, a]
                            if moving:
                                own[i] += 2.0 * ages[i] * features[a, i] * shared[g, dim + a]
            for i in range(n):
                total += (target[block + i] - score[i]) ** 2 + own[i] + further[i]
            if len(score_mean) > 0:
                for i in range(n):
                    score_mean[block + i] = score[i]
                    own_variance[block + i] = own[i]
                    other_variance[block + i] = further[i]
        square[row] = total


def move_sites(
    start: int,
    stop: int,
    target: Array,
    offset: Array,
    mean: float,
    bounds: Array,
    noise: float,
    low: float,
    steps: float,
    begun: bool,
    damping: float,
    own_variance: Array,
    weight: Array,
    linear: Array,
    score_mean: Array,
    variance: Array,
) -> None:
    """Sites of entries `start` to `stop` as `ordinal.ordinal_sites` has them, from `score_mean`,
    `own_variance` and `variance` (n,), that of the other side; `mean` and `offset` as in `score_entries`.

    `weight` and `linear` (n,) go `damping` of the way from what they hold, if they have `begun` and are not
    0, which is no site yet; `score_mean` and `variance` become those of the score without its own rating.
    """
    levels = len(bounds) - 2.0
    # What the loop in the middle reads and writes is side by side, so that vector registers hold it.
    lanes = np.empty((8, LANES))
    for base in range(start, stop, LANES):
        n = min(LANES, stop - base)
        for i in range(n):
            e = base + i
            level = int(min(max(np.floor((target[e] - low) * steps + HALF), 0.0), levels))
            lanes[0, i] = bounds[level]
            lanes[1, i] = bounds[level + 1]
            lanes[2, i] = score_mean[e]
            lanes[3, i] = own_variance[e]
            lanes[4, i] = variance[e]
            lanes[5, i] = mean + offset[e] if len(offset) > 0 else mean
            lanes[6, i] = weight[e]
            lanes[7, i] = linear[e]
        for i in range(n):
            own, fixed, before = lanes[3, i], lanes[5, i], lanes[6, i]
            # The cavity: the site is taken out of the posterior. One that has not begun is 0.
            taken = own * (lanes[7, i] + before * fixed) if begun else 0.0
            shrink = 1.0 / (max(1.0 - before * own, _LEAST_CAVITY) if begun else 1.0)
            score = (lanes[2, i] - taken) * shrink
            own *= shrink
            predicted = own + lanes[4, i]
            per = 1.0 / math.sqrt(noise + predicted)
            # Mirrored where the interval lies above: `above` is its end nearer to the middle, `below` further
            # out. Both are finite, and beyond 37 deviations nothing is left above.
            first, second = (lanes[0, i] - score) * per, (lanes[1, i] - score) * per
            flip = first + second > 0.0
            below = max(-second if flip else first, -1e100)
            above = min(max(-first if flip else second, -1e100), 37.0)
            # Mills' ratio at either end.
            near = abs(above)
            per_below, per_near = 1.0 / (MIDDLE - below), 1.0 / (MIDDLE + near)
            at_below, at_near = -(MIDDLE + below) * per_below, (near - MIDDLE) * per_near
            mills_below, mills_near = 0.0, 0.0
            for power in range(19):
                mills_below = mills_below * at_below + MILLS[power]
                mills_near = mills_near * at_near + MILLS[power]
            mills_below *= per_below
            mills_near *= per_near
            # How far the density falls from the near end to the far one, and to a near end above the middle.
            middle = max(above, 0.0)
            exponent = 0.5 * (above - below) * (above + below)
            of_fall = max(exponent, -40.0) / 64.0
            of_edge = max(-0.5 * middle * middle, -40.0) / 64.0
            fall, edge = 0.0, 0.0
            for power in range(12):
                fall = fall * of_fall + EXP[power]
                edge = edge * of_edge + EXP[power]
            for _ in range(6):
                fall *= fall
                edge *= edge
            fall = fall if exponent > -40.0 else 0.0
            # The mass, in units of the density at the near end, or at the middle where that lies above.
            mass = (ROOT_TWO_PI if above > 0.0 else 2.0 * mills_near) - edge * (
                mills_near + fall * mills_below
            )
            of_above = edge / max(mass, 1e-14 * mills_near)
            of_below = fall * of_above
            slope = of_below - of_above
            curvature = slope * slope + above * of_above - below * of_below
            # As in `ordinal`: rounding must not leave a site without weight.
            curvature = min(max(curvature, 1e-9), 1.0) * per * per
            slope = (-slope if flip else slope) * per
            # The site has the curvature that the own variance does not account for.
            new = curvature / max(1.0 - curvature * own, _LEAST_CAVITY)
            new = min(max(new, 1e-9 / noise), 1.0 / noise)
            lanes[0, i] = new
            lanes[1, i] = new * (score - fixed + slope / curvature)
            lanes[2, i] = score
            lanes[3, i] = predicted
        for i in range(n):
            e = base + i
            # One that is 0 has come since.
            step = damping if begun and lanes[6, i] > 0.0 else 1.0
            weight[e] = lanes[6, i] + step * (lanes[0, i] - lanes[6, i])
            linear[e] = lanes[7, i] + step * (lanes[1, i] - lanes[7, i])
            score_mean[e] = lanes[2, i]
            variance[e] = lanes[3, i]
