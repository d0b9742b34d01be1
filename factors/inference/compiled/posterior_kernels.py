"""The posterior of one row, as loops over the entries that `reading_kernels` has read.

Invariant: sites, sums and posterior are those of `ordinal`, `session_effects` and `half_step`.
"""

# ruff: noqa: PLR0912, PLR0917  numba takes no keyword-only arguments

import math

from factors.inference.compiled.reading_kernels import (
    ABOVE,
    BELOW,
    BEYOND,
    BIAS,
    COLD_COUNT,
    COVARIANCE,
    DAMPING,
    EFFECT,
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
    SPREAD,
    SUM,
    VARIANCE,
    WEIGHT,
    WEIGHTS,
    WIDE,
    Array,
)
from factors.inference.compiled.score_kernels import EXP, LANES, MIDDLE, MILLS, ROOT_TWO_PI
from factors.inference.ordinal import LEAST_CAVITY as _LEAST_CAVITY


def set_prior(
    n: int,
    cold: bool,
    user: int,
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
    dim, width = sizes[RANK] + 1, sizes[WIDE] + 4
    share = 1.0 / math.sqrt(max(float(n), 1.0))
    if cold:
        share = 1.0 / math.sqrt(max(float(n), 1.0, numbers[COLD_COUNT]))
    for a in range(dim):
        if cold:
            vector[FIRST, a] = cold_base[user, a] + share * (vector[PRIOR, a] - n * effect[a])
        else:
            vector[FIRST, a] = base[user, a] + share * vector[PRIOR, a]
    for a in range(dim):
        vector[PRIOR, a] = 0.0
        for b in range(dim):
            square[SECOND, a, b] = cold_precision[a, b] if cold else precision[a, b]
            vector[PRIOR, a] += vector[FIRST, b] * square[SECOND, a, b]
    for a in range(width):
        vector[MEAN, a] = start[0, a] if a < dim else 0.0
        for b in range(width):
            square[COVARIANCE, a, b] = start[1 + a, b] if a < dim and b < dim else 0.0


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
    rank, wide = sizes[RANK], sizes[WIDE]
    dim = rank + 1
    # What the codes of an item are multiplied with: the second moments of the row's features.
    t = 0
    for a in range(dim):
        left = vector[MEAN, a] if a < rank else 1.0
        for b in range(a + 1):
            right = vector[MEAN, b] if b < rank else 1.0
            inner = square[COVARIANCE, a, b] if a < rank else 0.0
            weights[t] = (1.0 if a == b else 2.0) * (left * right + inner) * units[t]
            t += 1
    for e in range(n):
        score = vector[MEAN, rank] + entry[e, BIAS] + entry[e, OFFSET]
        for a in range(wide):
            score += vector[MEAN, a] * latent[e, a]
        for b in range(wide):
            vector[SPREAD, b] = 2.0 * square[COVARIANCE, rank, b] if b < rank else 0.0
        for a in range(0, wide, 4):
            f0, f1, f2, f3 = latent[e, a], latent[e, a + 1], latent[e, a + 2], latent[e, a + 3]
            for b in range(wide):
                vector[SPREAD, b] += (f0 * square[COVARIANCE, a, b] + f1 * square[COVARIANCE, a + 1, b]) + (
                    f2 * square[COVARIANCE, a + 2, b] + f3 * square[COVARIANCE, a + 3, b]
                )
        own = square[COVARIANCE, rank, rank]
        for b in range(wide):
            own += vector[SPREAD, b] * latent[e, b]
        other = weights[0] * code[e, 0]
        for t in range(1, dim * (dim + 1) // 2):
            other += weights[t] * code[e, t]
        # Stored covariances are rounded: some have a negative direction.
        beyond = max(float(other) * entry[e, SCALE], 0.0) + entry[e, BEYOND]
        g = session[e]
        if g >= 0:
            score += group[g, EFFECT]
            both = shared[g, rank]
            for a in range(rank):
                both += latent[e, a] * shared[g, a]
            own += group[g, VARIANCE] + 2.0 * both
        entry[e, SCORE], entry[e, OWN], entry[e, OTHER] = score, own, beyond
    for base in range(0, n, LANES):
        move_sites(base, min(LANES, n - base), begun, numbers[NOISE], numbers[DAMPING], entry, lanes)


def move_sites(
    base: int, n: int, begun: bool, noise: float, damping: float, entry: Array, lanes: Array
) -> None:
    """Move the sites of `n` entries from `base` on by their scores, by way of `lanes` (8, LANES)."""
    for i in range(n):
        e = base + i
        lanes[0, i], lanes[1, i] = entry[e, BELOW], entry[e, ABOVE]
        lanes[2, i], lanes[3, i], lanes[4, i] = entry[e, SCORE], entry[e, OWN], entry[e, OTHER]
        lanes[5, i] = entry[e, OFFSET]
        # Sites that have not begun are 0: nothing is taken out for the cavity, and they are not damped.
        lanes[6, i] = entry[e, WEIGHT] if begun else 0.0
        lanes[7, i] = entry[e, LINEAR] if begun else 0.0
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
        entry[base + i, WEIGHT] = lanes[6, i] + step * (lanes[0, i] - lanes[6, i])
        entry[base + i, LINEAR] = lanes[7, i] + step * (lanes[1, i] - lanes[7, i])


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
) -> None:
    """Write precision and linear term of the posterior to `square[FACTOR]`, its lower triangle, and
    `vector[RIGHT]`; sessions marginalised out.
    """
    rank, wide = sizes[RANK], sizes[WIDE]
    dim = rank + 1
    packed = dim * (dim + 1) // 2
    for a in range(wide):
        vector[FIRST, a] = vector[RIGHT, a] = 0.0
        for b in range(wide):
            square[INVERSE, a, b] = 0.0
    for t in range(packed):
        vector[OTHERS, t] = 0.0
    total = rest = 0.0
    for e in range(0, n, 4):
        w0, w1, w2, w3 = entry[e, WEIGHT], entry[e + 1, WEIGHT], entry[e + 2, WEIGHT], entry[e + 3, WEIGHT]
        l0 = entry[e, LINEAR] - w0 * entry[e, BIAS]
        l1 = entry[e + 1, LINEAR] - w1 * entry[e + 1, BIAS]
        l2 = entry[e + 2, LINEAR] - w2 * entry[e + 2, BIAS]
        l3 = entry[e + 3, LINEAR] - w3 * entry[e + 3, BIAS]
        total += (w0 + w1) + (w2 + w3)
        rest += (l0 + l1) + (l2 + l3)
        for a in range(wide):
            vector[FIRST, a] += (w0 * latent[e, a] + w1 * latent[e + 1, a]) + (
                w2 * latent[e + 2, a] + w3 * latent[e + 3, a]
            )
            vector[RIGHT, a] += (l0 * latent[e, a] + l1 * latent[e + 1, a]) + (
                l2 * latent[e + 2, a] + l3 * latent[e + 3, a]
            )
        for a in range(rank):
            f0, f1 = w0 * latent[e, a], w1 * latent[e + 1, a]
            f2, f3 = w2 * latent[e + 2, a], w3 * latent[e + 3, a]
            # Whole registers, some beyond the diagonal.
            for b in range((a + 4) // 4 * 4):
                square[INVERSE, a, b] += (f0 * latent[e, b] + f1 * latent[e + 1, b]) + (
                    f2 * latent[e + 2, b] + f3 * latent[e + 3, b]
                )
        w0, w1 = w0 * entry[e, SCALE], w1 * entry[e + 1, SCALE]
        w2, w3 = w2 * entry[e + 2, SCALE], w3 * entry[e + 3, SCALE]
        for t in range(packed):
            vector[OTHERS, t] += (w0 * code[e, t] + w1 * code[e + 1, t]) + (
                w2 * code[e + 2, t] + w3 * code[e + 3, t]
            )
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
    rank, wide = sizes[RANK], sizes[WIDE]
    dim = rank + 1
    for g in range(groups):
        sitting = group[g, KEY] < 0.0
        group[g, SUM] = 0.0
        group[g, WEIGHTS] = 1.0 / numbers[SITTING_VARIANCE if sitting else SESSION_VARIANCE]
        for a in range(wide + 4):
            load[g, a] = 0.0
    if groups > 0:
        for e in range(n):
            g = session[e]
            if g >= 0:
                w = entry[e, WEIGHT]
                group[g, WEIGHTS] += w
                group[g, SUM] += entry[e, LINEAR] - w * entry[e, BIAS]
                for a in range(rank):
                    load[g, a] += w * latent[e, a]
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
