"""The entries and sessions of one history, read into the memory of the loops of `history_kernels`.

Invariant: each pair stands once, with its last value, as after `histories.compress`.

`f` is the latent part of a row of the other side, of `LATENT` numbers, or `[f, -age f, -age]` where rows move
(`motion`): the loops behind see one that stands still. It has `rank` numbers; `d = rank + 1`; `t = d (d + 1)
/ 2`. Entries that hold are read in blocks of `LANES`, so that loops run over the entries of a block: of each
block `entry` (13, LANES) has the numbers below of each, and `latent` (rank, LANES) float64 the `f`, one block
after the other; lanes without an entry are 0. `code` (n, `wide(t)`) float32 has the codes of their
covariances, 0 beyond them. Of each session `group` (n, 8) has the columns below, `load` and `shared` (n, d)
float64 its load and its effect's covariance with the row (`session_effects`). Of the row `square` (4, d, d)
float64 has the posterior covariance, a Cholesky factor and its inverse, and the prior's precision; `vector`
(5, t) float64 the mean, the linear term and sums.
"""

# ruff: noqa: PLR0912, PLR0915, PLR0917  numba takes no keyword-only arguments

import math

from factors.inference.compiled.loading import Array
from factors.inference.compiled.score_kernels import LANES
from factors.inference.motion import FARTHEST_TIME, MOST_AGE
from factors.model.layout import REST_KEY
from factors.model.scale import HALF

# Rows of a block of `entry`, and how many there are.
BIAS, SCALE, OFFSET, BEYOND, WEIGHT, LINEAR, BELOW, ABOVE, TIME = range(9)
SCORE, OWN, OTHER, ENTRY_ROWS = range(9, 13)
# Columns of `group`.
KEY, SUM, WEIGHTS, EFFECT, VARIANCE, TAKEN, SITTING, SHARE, ENTRIES, GROUP_COLUMNS = range(10)
# Rows of `vector`.
MEAN, RIGHT, FIRST, OTHERS, PRIOR = range(5)
# Places in `square`.
COVARIANCE, FACTOR, INVERSE, SECOND = range(4)
# Places in `sizes`.
RANK, SLOTS, OTHER_SLOTS, OTHER_WIDTH, WIDTH, STEPS, ORDINAL = range(7)
COLD, LEARNED, LEVELS, SLOTTED, N_ROWS, N_OTHERS, PLAIN, LATENT = range(7, 15)
MOVING, OTHER_MOVING, SHIFTED, N_SIZES = range(15, 19)
# Places in `numbers`.
ALL_MEAN, NOISE, DAMPING, AT_REST, LOW, PER_LEVEL, COLD_COUNT, KEPT = range(8)
SESSION, SESSION_VARIANCE, OTHER_SESSION, OTHER_VARIANCE, WRAP = range(8, 13)
PER_SITTING, SITTING_VARIANCE, KEPT_SITTING, PER_OTHER_SITTING, ANY_TIME = range(13, 18)
ORIGIN, UNIT, OTHER_ORIGIN, OTHER_UNIT, N_NUMBERS = range(18, 23)
# A prime near 2^31 over the golden ratio: neighbouring numbers are spread evenly over a hash table.
_SPREAD = 1327217885


def read_other(
    n: int,
    row: int,
    time: float,
    words: Array,
    halves: Array,
    effect: Array,
    sizes: Array,
    numbers: Array,
    latent: Array,
    code: Array,
    entry: Array,
    vector: Array,
) -> None:
    """Read the `row` of the other side into entry `n`, whose rating is of this `time`: as items are stored,
    or as it is where rows are `PLAIN`.
    """
    rank, bias = sizes[LATENT], sizes[RANK]
    dim = rank + 1
    packed = dim * (dim + 1) // 2
    codes = 2 * (3 + dim)
    implicit = 2 + dim + packed if sizes[PLAIN] else 3 + dim + (packed + 1) // 2
    of, lane = n // LANES * ENTRY_ROWS, n % LANES
    at = n // LANES * bias
    for a in range(rank):
        latent[at + a, lane] = words[row, 2 + a]
    entry[of + BIAS, lane] = words[row, 2 + rank]
    if sizes[OTHER_MOVING]:
        last = sizes[OTHER_WIDTH] - 1
        age = age_at(time, words[row, last], numbers[OTHER_ORIGIN], numbers[OTHER_UNIT])
        for a in range(rank):
            latent[at + a, lane] -= age * words[row, last - dim + a]
        entry[of + BIAS, lane] -= age * words[row, last - 1]
    # Of an index that may be below 0, for all that is known, a loop would run one number at a time.
    read = code[n]
    if sizes[PLAIN]:
        entry[of + SCALE, lane] = 1.0
        plain = words[row, 2 + dim : implicit]
        for t in range(packed):
            read[t] = plain[t]
    else:
        entry[of + SCALE, lane] = words[row, 2 + dim]
        stored = halves[row, codes : codes + packed]
        for t in range(packed):
            read[t] = stored[t]
    said, prior = words[row, implicit : implicit + dim], vector[PRIOR]
    learned = sizes[LEARNED] == 0
    if not learned:
        for a in range(dim):
            learned = learned or said[a] != 0.0
    for a in range(dim):
        of_row = a if a < rank else bias
        prior[of_row] += said[a] if learned else effect[of_row]
    entry[of + OFFSET, lane] = numbers[ALL_MEAN]
    entry[of + BEYOND, lane] = 0.0
    entry[of + TIME, lane] = time
    slots = sizes[OTHER_SLOTS]
    if slots > 0:
        entry[of + BEYOND, lane] = numbers[OTHER_VARIANCE]
        at = time / numbers[OTHER_SESSION]
        if math.isfinite(at):
            key = math.floor(at)
            key -= math.floor(key / numbers[WRAP]) * numbers[WRAP]
            around = key
            if numbers[PER_OTHER_SITTING] > 0.0:
                around = -2.0 - math.floor(key / numbers[PER_OTHER_SITTING])
            first = implicit + dim
            # Of a session that is not kept its sitting may be.
            last = slots - 1 if words[row, first + slots - 1] == REST_KEY else -1
            found = last
            for slot in range(slots):
                if words[row, first + slot] == key or (found == last and words[row, first + slot] == around):
                    found = slot
                    if words[row, first + slot] == key:
                        break
            if found >= 0:
                entry[of + OFFSET, lane] += words[row, first + slots + found]
                entry[of + BEYOND, lane] = words[row, first + 2 * slots + found]


def counted(time: float, origin: float, unit: float) -> float:
    """Return `time` as `motion` counts it."""
    return min(max((time - origin) / unit, -FARTHEST_TIME), FARTHEST_TIME)


def age_at(time: float, anchor: float, origin: float, unit: float) -> float:
    """Return the age of `time` at `anchor`, as `motion.ages`."""
    return min(max(anchor - counted(time, origin, unit), 0.0), MOST_AGE) if math.isfinite(time) else 0.0


def shift_entry(
    n: int, e: int, shift: Array, units: Array, sizes: Array, latent: Array, code: Array, entry: Array
) -> None:
    """Move what was read into entry `n` by the context of rating `e`, as `ContextShifts.move_other`."""
    rank, bias = sizes[LATENT], sizes[RANK]
    of, at, lane = n // LANES * ENTRY_ROWS + BIAS, n // LANES * bias, n % LANES
    entry[of, lane] += shift[e, rank]
    if sizes[PLAIN]:
        for a in range(rank):
            latent[at + a, lane] += shift[e, a]
        return
    first, whole = rank * (rank + 1) // 2, bias * (bias + 1) // 2
    both = 0.0
    for a in range(rank):
        entry[of, lane] += shift[e, a] * latent[at + a, lane]
        moved = 0.0
        for b in range(rank):
            t = max(a, b) * (max(a, b) + 1) // 2 + min(a, b)
            moved += units[t] * code[n, t] * shift[e, b]
        unit = units[whole + a]
        both += shift[e, a] * (2.0 * unit * code[n, first + a] + moved)
        code[n, first + a] += moved / unit
    code[n, first + rank] += both / units[whole + bias]


def move_entries(n: int, sizes: Array, numbers: Array, latent: Array, code: Array, entry: Array) -> float:
    """Make of the `f` of each entry `[f, -age f, -age]`, and of its codes those of that; return when the row
    stood at its mean, that of its latest rating.
    """
    rank, bias = sizes[LATENT], sizes[RANK]
    origin, unit = numbers[ORIGIN], numbers[UNIT]
    latest = -math.inf
    for e in range(n):
        time = entry[e // LANES * ENTRY_ROWS + TIME, e % LANES]
        if math.isfinite(time):
            latest = max(latest, time)
    anchor = counted(latest, origin, unit) if latest > -math.inf else 0.0
    first, last = rank * (rank + 1) // 2, bias * (bias + 1) // 2
    for e in range(n):
        at, lane = e // LANES * bias, e % LANES
        power = -age_at(entry[e // LANES * ENTRY_ROWS + TIME, lane], anchor, origin, unit)
        for a in range(rank):
            latent[at + rank + a, lane] = power * latent[at + a, lane]
        latent[at + bias - 1, lane] = power
        # Packed rows of what moves come to stand where the bias had its own: that goes first, behind them.
        code[e, last + bias] = code[e, first + rank]
        code[e, last + bias - 1] = 0.0
        for a in range(rank):
            code[e, last + a] = code[e, first + a]
            code[e, last + rank + a] = power * code[e, first + a]
        for a in range(bias):
            code[e, last - bias + a] = 0.0
        for a in range(rank):
            of = (rank + a) * (rank + a + 1) // 2
            for b in range(rank):
                inner = code[e, max(a, b) * (max(a, b) + 1) // 2 + min(a, b)]
                code[e, of + b] = power * inner
                if b <= a:
                    code[e, of + rank + b] = power * power * inner
    return anchor


def read_entries(
    first: int,
    last: int,
    words: Array,
    halves: Array,
    other_row: Array,
    value: Array,
    time: Array,
    shift: Array,
    prior_words: Array,
    prior_halves: Array,
    effect: Array,
    units: Array,
    bounds: Array,
    sizes: Array,
    numbers: Array,
    latent: Array,
    code: Array,
    entry: Array,
    vector: Array,
    table: Array,
    session: Array,
    own_row: int,
    result: Array,
) -> int:
    """Read the ratings `first` to `last` that hold, the latest first; return how many.

    The sum of their implicit effects goes to `vector[PRIOR]`, count, mean and when it stood there, where rows
    move, to `own_row` in `result`. `shift` (., LATENT + 1): what the context of each does, where it does.
    """
    rank = sizes[RANK]
    dim = rank + 1
    size = 16
    while size < 2 * (last - first):
        size *= 2
    for place in range(size):
        table[place] = -1
    for a in range(dim):
        vector[PRIOR, a] = 0.0
    n = 0
    total = 0.0
    for e in range(last - 1, first - 1, -1):
        j = int(other_row[e])
        # Open addressing; what stands in the table is the position of the rating.
        place = ((j * _SPREAD) >> 9) & (size - 1)
        while table[place] >= 0 and other_row[table[place]] != j:
            place = (place + 1) & (size - 1)
        if table[place] >= 0:
            continue
        table[place] = e
        if math.isnan(value[e]):
            continue
        total += value[e]
        if 0 <= j < sizes[N_OTHERS]:
            read_other(n, j, time[e], words, halves, effect, sizes, numbers, latent, code, entry, vector)
        else:
            read_other(
                n, 0, time[e], prior_words, prior_halves, effect, sizes, numbers, latent, code, entry, vector
            )
        if sizes[SHIFTED]:
            shift_entry(n, e, shift, units, sizes, latent, code, entry)
        of, lane = n // LANES * ENTRY_ROWS, n % LANES
        if sizes[ORDINAL]:
            level = (value[e] - numbers[LOW]) * numbers[PER_LEVEL] + HALF
            level = int(min(max(level, 0.0), sizes[LEVELS] - 1.0))
            entry[of + BELOW, lane], entry[of + ABOVE, lane] = bounds[level], bounds[level + 1]
        else:
            entry[of + WEIGHT, lane] = 1.0 / numbers[NOISE]
            entry[of + LINEAR, lane] = (value[e] - entry[of + OFFSET, lane]) / numbers[NOISE]
        session[n] = -1
        n += 1
    result[own_row, 0] = n
    result[own_row, 1] = total / max(n, 1)
    if sizes[MOVING]:
        result[own_row, sizes[WIDTH] - 1] = move_entries(n, sizes, numbers, latent, code, entry)
    # Whole registers of a block are read; those beyond the last entry weigh nothing.
    for e in range(n, filled(n)):
        for k in range(ENTRY_ROWS):
            entry[n // LANES * ENTRY_ROWS + k, e % LANES] = 0.0
        for a in range(rank):
            latent[n // LANES * rank + a, e % LANES] = 0.0
    return n


def wide(packed: int) -> int:
    """Return `packed` in the steps of loops over so many float32 numbers: four registers of AVX2."""
    return -(-packed // 32) * 32


def filled(n: int) -> int:
    """Return `n` in whole registers of AVX-512."""
    return -(-n // 8) * 8


def group_entries(
    n: int,
    sizes: Array,
    numbers: Array,
    entry: Array,
    group: Array,
    shared: Array,
    table: Array,
    session: Array,
) -> int:
    """Give each entry of known time its session, in `session` (n,), and each session its sitting, behind them
    all, with the effect of the prior; return how many sessions and sittings there are.
    """
    if sizes[SLOTTED] == 0:
        return 0
    size = 16
    while size < 2 * n:
        size *= 2
    for place in range(size):
        table[place] = -1
    groups = 0
    for e in range(n):
        at = entry[e // LANES * ENTRY_ROWS + TIME, e % LANES] / numbers[SESSION]
        if not math.isfinite(at):
            continue
        key = math.floor(at)
        key -= math.floor(key / numbers[WRAP]) * numbers[WRAP]
        place = place_of(key, key, size, table, group)
        if table[place] < 0:
            table[place] = groups
            begin_group(groups, key, sizes, numbers, group, shared)
            groups += 1
        session[e] = table[place]
        group[table[place], ENTRIES] += 1.0
    if numbers[PER_SITTING] == 0.0:
        return groups
    for place in range(size):
        table[place] = -1
    for g in range(groups):
        sitting = math.floor(group[g, KEY] / numbers[PER_SITTING])
        key = -2.0 - sitting
        place = place_of(sitting, key, size, table, group)
        if table[place] < 0:
            table[place] = groups
            begin_group(groups, key, sizes, numbers, group, shared)
            groups += 1
        group[g, SITTING] = table[place]
    return groups


def place_of(number: float, key: float, size: int, table: Array, group: Array) -> int:
    """Return the place in the hash table of the group with this `key`, or the free one for it; `number` is
    what is spread.
    """
    place = ((int(number) * _SPREAD) >> 9) & (size - 1)
    while table[place] >= 0 and group[table[place], KEY] != key:
        place = (place + 1) & (size - 1)
    return place


def begin_group(g: int, key: float, sizes: Array, numbers: Array, group: Array, shared: Array) -> None:
    """Begin session or sitting `g` of this `key` with the effect of the prior."""
    group[g, KEY] = key
    group[g, EFFECT] = 0.0
    group[g, VARIANCE] = numbers[SESSION_VARIANCE] + numbers[SITTING_VARIANCE]
    group[g, SITTING] = -1.0
    group[g, ENTRIES] = 0.0
    for a in range(sizes[RANK] + 1):
        shared[g, a] = 0.0
