"""Loops over who chose what, for numba to compile and to run as plain Python too: neighbours of items, and
lists.

Invariant: what they write is what `factors/ranking/` does in numpy, but for rounding.
"""

# ruff: noqa: PLR0912, PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math

import numpy as np

from factors.inference.compiled.loading import Array

# A cosine of 1 as it is kept.
ONE = 65535


def find_cosines(
    start: int,
    stop: int,
    most: Array,
    root: Array,
    indptr: Array,
    other: Array,
    value: Array,
    item_indptr: Array,
    item_user: Array,
    item_value: Array,
    table: Array,
    near: Array,
    n_near: Array,
) -> None:
    """Write the cosines of the items `start` to `stop` with all before them, and their nearest items.

    `most` (n_items,): so many of these; `root` (n_items,): one over the root of each item's co-occurrences
    with itself; `indptr`, `other`, `value` and `item_indptr`, `item_user`, `item_value`: the events by user
    and by item. `table` uint16: of item `i` those with the items `j < i` at `i (i - 1) / 2 + j`, times `ONE`;
    `near` (n_items, k), of which `n_near` (n_items,) are used, ascending: the items of the highest cosines,
    of equal ones the first.
    """
    n_items = len(root)
    row = np.empty(n_items, dtype=value.dtype)
    keys = np.empty(n_items, dtype=np.int32)
    high, low = np.empty(256, dtype=np.int64), np.empty(256, dtype=np.int64)
    for item in range(start, stop):
        row[:] = 0.0
        for entry in range(item_indptr[item], item_indptr[item + 1]):
            user, own = item_user[entry], item_value[entry]
            for k in range(indptr[user], indptr[user + 1]):
                row[other[k]] += own * value[k]
        for j in range(n_items):
            cosine = min(row[j] * root[j] * root[item], np.float32(1.0))
            keys[j] = np.int32(cosine * ONE + np.float32(0.5))
        first = item * (item - 1) // 2
        for j in range(item):
            table[first + j] = keys[j]
        keys[item] = 0
        # The least cosine that is near: its upper eight bits, then the lower ones.
        high[:] = 0
        low[:] = 0
        for j in range(n_items):
            high[keys[j] >> 8] += 1
        left, upper = most[item], 255
        while upper > 0 and high[upper] < left:
            left -= high[upper]
            upper -= 1
        for j in range(n_items):
            if keys[j] >> 8 == upper:
                low[keys[j] & 255] += 1
        lower = 255
        while lower > 0 and low[lower] < left:
            left -= low[lower]
            lower -= 1
        least, used = (upper << 8) + lower, 0
        for j in range(n_items):
            if keys[j] > 0 and keys[j] >= least and used < most[item]:
                if keys[j] == least:
                    if left <= 0:
                        continue
                    left -= 1
                near[item, used] = j
                used += 1
        n_near[item] = used


def fit_neighbours(
    start: int,
    stop: int,
    ridge: float,
    damping: float,
    root: Array,
    table: Array,
    near: Array,
    n_near: Array,
    weight: Array,
) -> None:
    """Write the `weight` (n_items, k) of the `near` items in the regressions of the items `start` to `stop`.

    With the co-occurrences `G = D C D`, `D` the roots of the diagonal, the regression is that of the cosines
    `C`, with `ridge D^-2 + damping I`, in the units of `D`.
    """
    most = near.shape[1]
    system, linear = np.empty((most, most), dtype=root.dtype), np.empty(most, dtype=root.dtype)
    unit = np.float32(1.0 / ONE)
    for item in range(start, stop):
        n = n_near[item]
        for a in range(n):
            i = np.int64(near[item, a])
            first = i * (i - 1) // 2
            for b in range(a):
                system[a, b] = unit * np.float32(table[first + near[item, b]])
            system[a, a] = 1.0 + damping + ridge * root[i] * root[i]
            place = first + item if item < i else item * (item - 1) // 2 + i
            linear[a] = unit * np.float32(table[place])
        # Cholesky, by rows, and the two triangular systems.
        for a in range(n):
            for b in range(a):
                total = system[a, b]
                for c in range(b):
                    total -= system[a, c] * system[b, c]
                system[a, b] = total * system[b, b]
            total = system[a, a]
            for c in range(a):
                total -= system[a, c] * system[a, c]
            # The inverse of the root stands on the diagonal.
            system[a, a] = 1.0 / math.sqrt(total)
        for a in range(n):
            total = linear[a]
            for c in range(a):
                total -= system[a, c] * linear[c]
            linear[a] = total * system[a, a]
        for a in range(n - 1, -1, -1):
            linear[a] *= system[a, a]
            for c in range(a):
                linear[c] -= system[a, c] * linear[a]
        for a in range(n):
            weight[item, a] = linear[a] * root[near[item, a]] / root[item]


def add_neighbours(
    start: int,
    stop: int,
    indptr: Array,
    other: Array,
    said: Array,
    term_indptr: Array,
    term_row: Array,
    term_weight: Array,
    scores: Array,
) -> None:
    """Add to the `scores` (b, n_items) of the users `start` to `stop` what the neighbours of their items say.

    `indptr`, `other`, `said`: what the users chose, and how much each event says; the rest as `Neighbours`.
    """
    for user in range(start, stop):
        row = user - start
        for entry in range(indptr[user], indptr[user + 1]):
            item, own = other[entry], said[entry]
            for k in range(term_indptr[item], term_indptr[item + 1]):
                scores[row, term_row[k]] += own * term_weight[k]


def find_places(
    start: int,
    stop: int,
    indptr: Array,
    seen: Array,
    wanted_indptr: Array,
    wanted: Array,
    scores: Array,
    before: Array,
) -> None:
    """Write how many items stand `before` (m,) each `wanted` one (m,) of the users `start` to `stop`, by
    `scores` (b, n_items), which are overwritten; what was `seen` (n,) is in no list.

    Equal scores count as ranked before.
    """
    for user in range(start, stop):
        row = user - start
        for entry in range(indptr[user], indptr[user + 1]):
            scores[row, seen[entry]] = -np.inf
        for entry in range(wanted_indptr[user], wanted_indptr[user + 1]):
            own, n = scores[row, wanted[entry]], 0
            for j in range(scores.shape[1]):
                n += scores[row, j] >= own
            before[entry] = n - 1
