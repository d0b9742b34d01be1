"""The posterior of one row, as loops over the entries that `reading_kernels` has read.

Invariant: sites, sums and posterior are those of `ordinal`, `session_effects` and `half_step`.
"""

# ruff: noqa: PLR0912, PLR0915, PLR0917  numba takes no keyword-only arguments

import math

import numpy as np

from factors.inference.compiled.loading import Array
from factors.inference.compiled.reading_kernels import (
    ABOVE,
    BELOW,
    BEYOND,
    BIAS,
    COLD_COUNT,
    COVARIANCE,
    DAMPING,
    EFFECT,
    ENTRY_ROWS,
    FACTOR,
    FIRST,
    INVERSE,
    KEY,
    LINEAR,
    MEAN,
    NOISE,
    OFFSET,
    OTHER,
    OTHERS,
    OWN,
    PRIOR,
    RANK,
    RIGHT,
    SCALE,
    SCORE,
    SECOND,
    SESSION_VARIANCE,
    SHARE,
    SITTING,
    SITTING_VARIANCE,
    SUM,
    VARIANCE,
    WEIGHT,
    WEIGHTS,
    filled,
    wide,
)
from factors.inference.compiled.score_kernels import EXP, LANES, MIDDLE, MILLS, ROOT_TWO_PI
from factors.inference.ordinal import LEAST_CAVITY as _LEAST_CAVITY


def set_prior(
    n: int,
    cold: bool,
    row: int,
    base: Array,
    cold_base: Array,
    effect: Array,
    precision: Array,
    cold_precision: Array,
    start: Array,
    sizes: Array,
    numbers: Array,
    square: Array,
    vector: Array,
) -> None:
    """Write the linear term of the prior to `vector[PRIOR]`, its precision to `square[SECOND]`, and where the
    fixed point begins, from `start` (1 + d, d).
    """
    dim = sizes[RANK] + 1
    share = 1.0 / math.sqrt(max(float(n), 1.0))
    if cold:
        share = 1.0 / math.sqrt(max(float(n), 1.0, numbers[COLD_COUNT]))
    for a in range(dim):
        if cold:
            vector[FIRST, a] = cold_base[row, a] + share * (vector[PRIOR, a] - n * effect[a])
        else:
            vector[FIRST, a] = base[row, a] + share * vector[PRIOR, a]
    for a in range(dim):
        vector[PRIOR, a] = 0.0
        for b in range(dim):
            square[SECOND, a, b] = cold_precision[a, b] if cold else precision[a, b]
            vector[PRIOR, a] += vector[FIRST, b] * square[SECOND, a, b]
    for a in range(dim):
        vector[MEAN, a] = start[0, a]
        for b in range(dim):
            square[COVARIANCE, a, b] = start[1 + a, b]


def take_sites(
    n: int,
    begun: bool,
    units: Array,
    sizes: Array,
    numbers: Array,
    latent: Array,
    code: Array,
    entry: Array,
    group: Array,
    shared: Array,
    session: Array,
    square: Array,
    vector: Array,
    weights: Array,
    lanes: Array,
) -> None:
    """Move the sites of the entries to where the posterior points, as `ordinal.ordinal_sites`, from where
    they were if they have `begun`.
    """
    rank = sizes[RANK]
    dim = rank + 1
    # What the codes of an other row are multiplied with: the second moments of the row's features.
    t = 0
    for a in range(dim):
        left = vector[MEAN, a] if a < rank else 1.0
        for b in range(a + 1):
            right = vector[MEAN, b] if b < rank else 1.0
            inner = square[COVARIANCE, a, b] if a < rank else 0.0
            weights[t] = (1.0 if a == b else 2.0) * (left * right + inner) * units[t]
            t += 1
    width = wide(t)
    for first in range(0, n, LANES):
        count = min(LANES, n - first)
        whole, at, of = filled(count), first // LANES * rank, first // LANES * ENTRY_ROWS
        for lane in range(whole):
            entry[of + SCORE, lane] = vector[MEAN, rank] + entry[of + BIAS, lane] + entry[of + OFFSET, lane]
            entry[of + OWN, lane] = square[COVARIANCE, rank, rank]
        for a in range(rank):
            mean, alone, cross = vector[MEAN, a], square[COVARIANCE, a, a], 2.0 * square[COVARIANCE, rank, a]
            for lane in range(whole):
                entry[of + SCORE, lane] += mean * latent[at + a, lane]
                lanes[8, lane] = cross + alone * latent[at + a, lane]
            fours = a - a % 4
            for b in range(0, fours, 4):
                c0, c1 = 2.0 * square[COVARIANCE, a, b], 2.0 * square[COVARIANCE, a, b + 1]
                c2, c3 = 2.0 * square[COVARIANCE, a, b + 2], 2.0 * square[COVARIANCE, a, b + 3]
                for lane in range(whole):
                    lanes[8, lane] += (c0 * latent[at + b, lane] + c1 * latent[at + b + 1, lane]) + (
                        c2 * latent[at + b + 2, lane] + c3 * latent[at + b + 3, lane]
                    )
            for b in range(fours, a):
                c0 = 2.0 * square[COVARIANCE, a, b]
                for lane in range(whole):
                    lanes[8, lane] += c0 * latent[at + b, lane]
            for lane in range(whole):
                entry[of + OWN, lane] += lanes[8, lane] * latent[at + a, lane]
        for lane in range(count):
            e = first + lane
            other = np.float32(0.0)
            for t in range(width):
                other += weights[t] * code[e, t]
            # Stored covariances are rounded: some have a negative direction.
            beyond = max(float(other) * entry[of + SCALE, lane], 0.0)
            entry[of + OTHER, lane] = beyond + entry[of + BEYOND, lane]
            g = session[e]
            if g >= 0:
                entry[of + SCORE, lane] += group[g, EFFECT]
                both = shared[g, rank]
                for a in range(rank):
                    both += latent[at + a, lane] * shared[g, a]
                entry[of + OWN, lane] += group[g, VARIANCE] + 2.0 * both
        move_sites(of, count, begun, numbers[NOISE], numbers[DAMPING], entry, lanes)


def move_sites(
    of: int, n: int, begun: bool, noise: float, damping: float, entry: Array, lanes: Array
) -> None:
    """Move the sites of the `n` entries of a block by their scores, by way of `lanes` (10, LANES); `of`:
    where the block begins in `entry`.
    """
    for i in range(n):
        lanes[0, i], lanes[1, i] = entry[of + BELOW, i], entry[of + ABOVE, i]
        lanes[2, i], lanes[3, i], lanes[4, i] = entry[of + SCORE, i], entry[of + OWN, i], entry[of + OTHER, i]
        lanes[5, i] = entry[of + OFFSET, i]
        # Sites that have not begun are 0: nothing is taken out for the cavity, and they are not damped.
        lanes[6, i] = entry[of + WEIGHT, i] if begun else 0.0
        lanes[7, i] = entry[of + LINEAR, i] if begun else 0.0
    # As in `score_kernels.move_sites`, where each step has its reason.
    for i in range(n):
        own, fixed, before = lanes[3, i], lanes[5, i], lanes[6, i]
        shrink = 1.0 / max(1.0 - before * own, _LEAST_CAVITY)
        score = (lanes[2, i] - own * (lanes[7, i] + before * fixed)) * shrink
        own *= shrink
        per = 1.0 / math.sqrt(noise + own + lanes[4, i])
        first, second = (lanes[0, i] - score) * per, (lanes[1, i] - score) * per
        flip = first + second > 0.0
        below = max(-second if flip else first, -1e100)
        above = min(max(-first if flip else second, -1e100), 37.0)
        near = abs(above)
        per_below, per_near = 1.0 / (MIDDLE - below), 1.0 / (MIDDLE + near)
        at_below, at_near = -(MIDDLE + below) * per_below, (near - MIDDLE) * per_near
        mills_below, mills_near = 0.0, 0.0
        for power in range(19):
            mills_below = mills_below * at_below + MILLS[power]
            mills_near = mills_near * at_near + MILLS[power]
        mills_below *= per_below
        mills_near *= per_near
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
        mass = (ROOT_TWO_PI if above > 0.0 else 2.0 * mills_near) - edge * (mills_near + fall * mills_below)
        of_above = edge / max(mass, 1e-14 * mills_near)
        of_below = fall * of_above
        slope = of_below - of_above
        curvature = slope * slope + above * of_above - below * of_below
        curvature = min(max(curvature, 1e-9), 1.0) * per * per
        slope = (-slope if flip else slope) * per
        new = curvature / max(1.0 - curvature * own, _LEAST_CAVITY)
        new = min(max(new, 1e-9 / noise), 1.0 / noise)
        lanes[0, i] = new
        lanes[1, i] = new * (score - fixed + slope / curvature)
    step = damping if begun else 1.0
    for i in range(n):
        entry[of + WEIGHT, i] = lanes[6, i] + step * (lanes[0, i] - lanes[6, i])
        entry[of + LINEAR, i] = lanes[7, i] + step * (lanes[1, i] - lanes[7, i])


def sum_entries(
    n: int,
    groups: int,
    units: Array,
    sizes: Array,
    numbers: Array,
    latent: Array,
    code: Array,
    entry: Array,
    group: Array,
    load: Array,
    session: Array,
    square: Array,
    vector: Array,
    weights: Array,
    lanes: Array,
) -> None:
    """Write precision and linear term of the posterior to `square[FACTOR]`, its lower triangle, and
    `vector[RIGHT]`; sessions marginalised out.
    """
    rank = sizes[RANK]
    dim = rank + 1
    packed = dim * (dim + 1) // 2
    width = wide(packed)
    for a in range(rank):
        vector[FIRST, a] = vector[RIGHT, a] = 0.0
        for b in range(rank):
            square[INVERSE, a, b] = 0.0
    for t in range(packed):
        vector[OTHERS, t] = 0.0
    total = rest = 0.0
    for begin in range(0, n, LANES):
        count = min(LANES, n - begin)
        whole, at, of = filled(count), begin // LANES * rank, begin // LANES * ENTRY_ROWS
        for lane in range(whole):
            weight = entry[of + WEIGHT, lane]
            lanes[0, lane] = weight
            lanes[1, lane] = entry[of + LINEAR, lane] - weight * entry[of + BIAS, lane]
            total += weight
            rest += lanes[1, lane]
        for a in range(rank):
            first = right = 0.0
            for lane in range(whole):
                moved = lanes[0, lane] * latent[at + a, lane]
                lanes[2, lane] = moved
                first += moved
                right += lanes[1, lane] * latent[at + a, lane]
            vector[FIRST, a] += first
            vector[RIGHT, a] += right
            fours = (a + 1) // 4 * 4
            for b in range(0, fours, 4):
                s0 = s1 = s2 = s3 = 0.0
                for lane in range(whole):
                    moved = lanes[2, lane]
                    s0 += moved * latent[at + b, lane]
                    s1 += moved * latent[at + b + 1, lane]
                    s2 += moved * latent[at + b + 2, lane]
                    s3 += moved * latent[at + b + 3, lane]
                square[INVERSE, a, b] += s0
                square[INVERSE, a, b + 1] += s1
                square[INVERSE, a, b + 2] += s2
                square[INVERSE, a, b + 3] += s3
            for b in range(fours, a + 1):
                s0 = 0.0
                for lane in range(whole):
                    s0 += lanes[2, lane] * latent[at + b, lane]
                square[INVERSE, a, b] += s0
        # Of a block in float32: rounding stays that of a single one.
        for t in range(width):
            weights[t] = 0.0
        for lane in range(0, count, 4):
            e = begin + lane
            w0 = np.float32(entry[of + WEIGHT, lane] * entry[of + SCALE, lane])
            w1 = np.float32(entry[of + WEIGHT, lane + 1] * entry[of + SCALE, lane + 1])
            w2 = np.float32(entry[of + WEIGHT, lane + 2] * entry[of + SCALE, lane + 2])
            w3 = np.float32(entry[of + WEIGHT, lane + 3] * entry[of + SCALE, lane + 3])
            for t in range(width):
                weights[t] += (w0 * code[e, t] + w1 * code[e + 1, t]) + (
                    w2 * code[e + 2, t] + w3 * code[e + 3, t]
                )
        for t in range(packed):
            vector[OTHERS, t] += weights[t]
    t = 0
    for a in range(rank):
        for b in range(a + 1):
            inner = square[INVERSE, a, b] + units[t] * vector[OTHERS, t]
            square[FACTOR, a, b] = square[SECOND, a, b] + inner
            t += 1
    for a in range(rank):
        square[FACTOR, rank, a] = square[SECOND, rank, a] + vector[FIRST, a]
        vector[RIGHT, a] += vector[PRIOR, a] - units[t] * vector[OTHERS, t]
        t += 1
    square[FACTOR, rank, rank] = square[SECOND, rank, rank] + total
    vector[RIGHT, rank] = vector[PRIOR, rank] + rest
    take_sessions(n, groups, sizes, numbers, latent, entry, group, load, session, square, vector)


def take_sessions(
    n: int,
    groups: int,
    sizes: Array,
    numbers: Array,
    latent: Array,
    entry: Array,
    group: Array,
    load: Array,
    session: Array,
    square: Array,
    vector: Array,
) -> None:
    """Take from `square[FACTOR]` and `vector[RIGHT]` what sessions and sittings account for."""
    rank = sizes[RANK]
    dim = rank + 1
    for g in range(groups):
        sitting = group[g, KEY] < 0.0
        group[g, SUM] = 0.0
        group[g, WEIGHTS] = 1.0 / numbers[SITTING_VARIANCE if sitting else SESSION_VARIANCE]
        for a in range(dim):
            load[g, a] = 0.0
    if groups > 0:
        for e in range(n):
            g = session[e]
            if g >= 0:
                lane, at, of = e % LANES, e // LANES * rank, e // LANES * ENTRY_ROWS
                w = entry[of + WEIGHT, lane]
                group[g, WEIGHTS] += w
                group[g, SUM] += entry[of + LINEAR, lane] - w * entry[of + BIAS, lane]
                for a in range(rank):
                    load[g, a] += w * latent[at + a, lane]
                load[g, rank] += w
    # Sittings stand behind their sessions, as `sittings.Sittings.add_sums` has them.
    for g in range(groups):
        outer = int(group[g, SITTING])
        if outer >= 0:
            alone = 1.0 / numbers[SESSION_VARIANCE]
            share = alone / group[g, WEIGHTS]
            group[g, SHARE] = share
            group[outer, WEIGHTS] += (1.0 - share) * alone
            group[outer, SUM] += share * group[g, SUM]
            for a in range(dim):
                load[outer, a] += share * load[g, a]
    for g in range(groups):
        inner = 1.0 / group[g, WEIGHTS]
        for a in range(dim):
            moved = inner * load[g, a]
            vector[RIGHT, a] -= group[g, SUM] * moved
            for b in range(a + 1):
                square[FACTOR, a, b] -= moved * load[g, b]


def add_sittings(groups: int, dim: int, group: Array, load: Array, shared: Array) -> None:
    """Add to the effects of sessions what their sittings add."""
    # As `sittings.Sittings.add_effects` has it.
    for g in range(groups):
        outer = int(group[g, SITTING])
        if outer >= 0:
            share, both = group[g, SHARE], 0.0
            for a in range(dim):
                both += load[g, a] * shared[outer, a]
                shared[g, a] += share * shared[outer, a]
            group[g, VARIANCE] += share * (share * group[outer, VARIANCE] - 2.0 * both / group[g, WEIGHTS])
            group[g, EFFECT] += share * group[outer, EFFECT]


def solve(
    groups: int, sizes: Array, group: Array, load: Array, shared: Array, square: Array, vector: Array
) -> bool:
    """Write the posterior and the effects of the sessions; return whether there is one."""
    dim = sizes[RANK] + 1
    for a in range(dim):
        for b in range(a):
            inner = square[FACTOR, a, b]
            for c in range(b):
                inner -= square[FACTOR, a, c] * square[FACTOR, b, c]
            square[FACTOR, a, b] = inner * square[FACTOR, b, b]
        inner = square[FACTOR, a, a]
        for c in range(a):
            inner -= square[FACTOR, a, c] * square[FACTOR, a, c]
        # False for what is not a number, too.
        if not 0.0 < inner < math.inf:
            return False
        # The diagonal holds the inverses.
        square[FACTOR, a, a] = 1.0 / math.sqrt(inner)
    for a in range(dim):
        own = square[FACTOR, a, a]
        for b in range(dim):
            square[INVERSE, a, b] = square[COVARIANCE, a, b] = 0.0
        for c in range(a):
            moved = square[FACTOR, a, c] * own
            for b in range(c + 1):
                square[INVERSE, a, b] -= moved * square[INVERSE, c, b]
        square[INVERSE, a, a] = own
    for c in range(dim):
        for a in range(c + 1):
            moved = square[INVERSE, c, a]
            for b in range(a + 1):
                square[COVARIANCE, a, b] += moved * square[INVERSE, c, b]
    for a in range(dim):
        for b in range(a):
            square[COVARIANCE, b, a] = square[COVARIANCE, a, b]
    for a in range(dim):
        vector[MEAN, a] = 0.0
        for b in range(dim):
            vector[MEAN, a] += square[COVARIANCE, a, b] * vector[RIGHT, b]
    for g in range(groups):
        inner = 1.0 / group[g, WEIGHTS]
        rest, total = group[g, SUM], inner
        for a in range(dim):
            moved = 0.0
            for b in range(dim):
                moved += square[COVARIANCE, a, b] * load[g, b]
            moved *= inner
            shared[g, a] = -moved
            rest -= load[g, a] * vector[MEAN, a]
            total += load[g, a] * inner * moved
        group[g, EFFECT], group[g, VARIANCE] = rest * inner, total
    add_sittings(groups, dim, group, load, shared)
    return True
