"""Loops that fold a row in from one history, for numba to compile ahead and to run as plain Python too.

Invariant: the row is that of `half_step` to the last digits of float32, covariances of items being read as
their codes. Nothing is allocated here, and no error raised, so that the compiled code needs neither numba nor
Python: all memory is the caller's, and a matrix without an inverse is told by the value returned.

All memory that they work in is laid out as `reading_kernels` says.
"""

# ruff: noqa: PLR0912, PLR0917  numba takes no keyword-only arguments

import math

from factors.inference.compiled.loading import Array
from factors.inference.compiled.posterior_kernels import set_prior, solve, sum_entries, take_sites
from factors.inference.compiled.reading_kernels import (
    ANY_TIME,
    AT_REST,
    COLD,
    COVARIANCE,
    EFFECT,
    ENTRIES,
    FIRST,
    KEPT,
    KEPT_SITTING,
    KEY,
    LATENT,
    MEAN,
    MOVING,
    N_ROWS,
    NOISE,
    ORDINAL,
    RANK,
    SESSION_VARIANCE,
    SITTING,
    SITTING_VARIANCE,
    SLOTS,
    STEPS,
    TAKEN,
    VARIANCE,
    WIDTH,
    group_entries,
    read_entries,
)
from factors.model.layout import NO_SESSION, REST_KEY


def write_row(
    groups: int,
    sizes: Array,
    numbers: Array,
    group: Array,
    square: Array,
    vector: Array,
    row: int,
    result: Array,
) -> None:
    """Write the posterior to `row` in `result`, with the latest session, the one of key `KEPT`,
    its sitting, and those of the largest effects.
    """
    latent, bias, slots = sizes[LATENT], sizes[RANK], sizes[SLOTS]
    dim = latent + 1
    t = 2 + dim
    for a in range(dim):
        # Of a row that moves, the velocity stands between its latent part and its bias.
        of = a if a < latent else bias
        result[row, 2 + a] = vector[MEAN, of]
        for b in range(a + 1):
            result[row, t] = square[COVARIANCE, of, b if b < latent else bias]
            t += 1
    if sizes[MOVING]:
        for a in range(dim):
            result[row, sizes[WIDTH] - 1 - dim + a] = vector[MEAN, latent + a]
    for a in range(dim):
        result[row, t + a] = 0.0
    t += dim
    for slot in range(slots):
        # As of `side_moments.prior_rows`.
        result[row, t + slot], result[row, t + slots + slot] = -1.0, 0.0
        result[row, t + 2 * slots + slot] = numbers[SESSION_VARIANCE] + numbers[SITTING_VARIANCE]
    latest = -1.0
    for g in range(groups):
        group[g, TAKEN] = 0.0
        latest = max(latest, group[g, KEY])
    for slot in range(min(slots, groups)):
        best = -1
        most = -1.0
        for g in range(groups):
            key = group[g, KEY]
            matter = group[g, EFFECT]
            # As of `session_effects.matters`.
            outer = int(group[g, SITTING])
            if outer >= 0:
                matter -= group[outer, EFFECT]
            always = key == latest or key == numbers[KEPT] or key == numbers[KEPT_SITTING]
            matter = math.inf if always else abs(matter)
            # Of equal ones the earlier.
            ahead = matter > most or (matter == most and best >= 0 and key < group[best, KEY])
            if group[g, TAKEN] == 0.0 and ahead:
                best, most = g, matter
        if best < 0:
            break
        group[best, TAKEN] = 1.0
        result[row, t + slot] = group[best, KEY]
        result[row, t + slots + slot] = group[best, EFFECT]
        result[row, t + 2 * slots + slot] = group[best, VARIANCE]
        # Of a session in a sitting no more is known.
        if group[best, KEY] < 0.0:
            result[row, t + 2 * slots + slot] += numbers[SESSION_VARIANCE]
    # As of `session_effects.move_to_any_time`.
    if numbers[ANY_TIME] > 0.0 and groups > 0:
        average = 0.0
        for g in range(groups):
            average += group[g, ENTRIES] * group[g, EFFECT]
        average *= numbers[ANY_TIME] / max(result[row, 0], 1.0)
        result[row, 1 + dim] += average
        for slot in range(slots):
            if result[row, t + slot] != NO_SESSION:
                result[row, t + slots + slot] -= average
        last = t + slots - 1
        result[row, last], result[row, last + slots] = REST_KEY, -average
        result[row, last + 2 * slots] = numbers[SESSION_VARIANCE] + numbers[SITTING_VARIANCE]


def fold_in(
    words: Array,
    halves: Array,
    offsets: Array,
    other_row: Array,
    value: Array,
    time: Array,
    shift: Array,
    new: Array,
    base: Array,
    cold_base: Array,
    prior_words: Array,
    prior_halves: Array,
    effect: Array,
    precision: Array,
    cold_precision: Array,
    start: Array,
    units: Array,
    bounds: Array,
    sizes: Array,
    numbers: Array,
    latent: Array,
    code: Array,
    entry: Array,
    group: Array,
    load: Array,
    shared: Array,
    square: Array,
    vector: Array,
    weights: Array,
    lanes: Array,
    table: Array,
    session: Array,
    result: Array,
) -> int:
    """Fold in the rows whose ratings begin at `offsets` (b + 1,), `new` (b,) as in `HalfStepInput`, into
    `result` (b, width); return how many, fewer than b where the next one has no finite posterior.

    `words` (n, ...): the table of the other side and `halves` the same as int16, and `prior_words`,
    `prior_halves` (1, ...) those of an unknown row; `units` (t,): what its codes are worth (`RowCodec`), 1
    where rows are `PLAIN`. `shift`: see `read_entries`. `base`, `cold_base` (b, d): prior means with what
    attributes add; `effect` (d,): of other rows that no fit has learned; `start` (1 + d, d): mean and
    covariance where the fixed point begins.
    """
    dim = sizes[RANK] + 1
    rest = numbers[AT_REST] * math.sqrt(numbers[NOISE])
    for row in range(sizes[N_ROWS]):
        n = read_entries(
            offsets[row], offsets[row + 1], words, halves, other_row, value, time, shift, prior_words,
            prior_halves, effect, units, bounds, sizes, numbers, latent, code, entry, vector, table, session,
            row, result,
        )  # fmt: skip
        groups = group_entries(n, sizes, numbers, entry, group, shared, table, session)
        cold = sizes[COLD] != 0 and (n == 0 or new[row] != 0)
        set_prior(
            n, cold, row, base, cold_base, effect, precision, cold_precision, start, sizes, numbers,
            square, vector,
        )  # fmt: skip
        for step in range(sizes[STEPS]):
            if sizes[ORDINAL]:
                take_sites(
                    n, step > 0, units, sizes, numbers, latent, code, entry, group, shared, session,
                    square, vector, weights, lanes,
                )  # fmt: skip
            sum_entries(
                n, groups, units, sizes, numbers, latent, code, entry, group, load, session, square, vector,
                weights, lanes,
            )  # fmt: skip
            for a in range(dim):
                vector[FIRST, a] = vector[MEAN, a]
            if not solve(groups, sizes, group, load, shared, square, vector):
                return row
            moved = 0.0
            for a in range(dim):
                moved = max(moved, abs(vector[MEAN, a] - vector[FIRST, a]))
            if moved < rest:
                break
        write_row(groups, sizes, numbers, group, square, vector, row, result)
    return int(sizes[N_ROWS])
