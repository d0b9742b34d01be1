"""Loops that find the candidates of a list, for numba to compile and to run as plain Python too.

Invariant: they look at what `blended` looks at in numpy, and leave out no item that may stand in the list.
"""

# ruff: noqa: C901, PLR0912, PLR0915, PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math

import numpy as np

from factors.inference.compiled.loading import Array


def reach(
    items: Array,
    said: Array,
    indptr: Array,
    item_row: Array,
    weight: Array,
    exclude: Array,
    rows: Array,
    added: Array,
) -> int:
    """Write what the history `items` (h,), which says `said` (h,), adds to other rows: `rows` and `added`,
    each long enough for all; of rows in `exclude` -inf. Return how many they are.
    """
    total = len(exclude)
    for h in range(len(items)):
        total += indptr[items[h] + 1] - indptr[items[h]]
    bits = 4
    while (1 << bits) < 2 * total:
        bits += 1
    # An open hash table of places in `rows`.
    table = np.full(1 << bits, -1, dtype=np.int32)
    count = 0
    for h in range(-1, len(items)):
        # The first round is that of what is excluded: -inf stays whatever is added.
        first = 0 if h < 0 else indptr[items[h]]
        last = len(exclude) if h < 0 else indptr[items[h] + 1]
        for s in range(first, last):
            row = np.int64(exclude[s] if h < 0 else item_row[s])
            term = -math.inf if h < 0 else said[h] * weight[s]
            # Multiplicative hashing (Knuth): the upper bits of a product are spread well.
            at = ((row * 2654435761) & 0xFFFFFFFF) >> (32 - bits)
            while table[at] >= 0 and rows[table[at]] != row:
                at = (at + 1) & ((1 << bits) - 1)
            if table[at] < 0:
                table[at] = count
                rows[count] = row
                added[count] = 0.0
                count += 1
            added[table[at]] += term
    return count


def look(
    user: Array,
    means: Array,
    positions: Array,
    starts: Array,
    n_items: int,
    lists_of: Array,
    lists: Array,
    allowed: Array,
    allowed_starts: Array,
    mask: Array,
    masked: bool,
    rows: Array,
    added: Array,
    where: Array,
    relevance: Array,
) -> int:
    """Write position and relevance of all items in `lists` and of those that the sparse term reaches, `rows`
    and `added`; `where` and `relevance` are long enough. Return how many they are.

    `means`, `positions`, `starts`: of a `MeanTable` of `n_items`; `lists_of`: the list of each of its first
    rows, the others are in the last one. Where `masked` only positions `allowed`, those of a list from
    `allowed_starts` on, and rows of the `mask`.
    """
    rank = means.shape[1]
    newer = len(starts) - 1
    begins = np.full(newer + 1, -1, dtype=np.int64)
    count = 0
    for k in range(len(lists)):
        one = lists[k]
        begins[one] = count
        if masked:
            first, last = allowed_starts[one], len(allowed) if one == newer else allowed_starts[one + 1]
        else:
            first, last = starts[one], n_items if one == newer else starts[one + 1]
        for p in range(first, last):
            position = allowed[p] if masked else p
            total = np.float32(0.0)
            for a in range(rank):
                total += means[position, a] * user[a]
            where[count] = position
            relevance[count] = total
            count += 1
    apart = 0
    for k in range(len(rows)):
        row, position = rows[k], positions[rows[k]]
        if masked and (row >= len(mask) or not mask[row]):
            continue
        one = lists_of[row] if row < len(lists_of) else newer
        at = begins[one]
        if at >= 0:
            if masked:
                low, high = allowed_starts[one], len(allowed)
                while low < high:
                    middle = (low + high) // 2
                    if allowed[middle] < position:
                        low = middle + 1
                    else:
                        high = middle
                relevance[at + low - allowed_starts[one]] += added[k]
            else:
                relevance[at + position - starts[one]] += added[k]
        elif added[k] > -math.inf:
            where[count + apart] = position
            relevance[count + apart] = added[k]
            apart += 1
    # In a loop of its own, in which several are fetched from memory at a time.
    for k in range(count, count + apart):
        total = np.float32(0.0)
        for a in range(rank):
            total += means[where[k], a] * user[a]
        relevance[k] += total
    return count + apart


def choose(
    where: Array,
    relevance: Array,
    rows_at: Array,
    n: int,
    some: int,
    user: Array,
    base: float,
    means: Array,
    positions: Array,
    n_rated: int,
    rounded: float,
    factors: Array,
    start: float,
    width: float,
    slack: float,
    chosen: Array,
    limits: Array,
) -> tuple[int, float]:
    """Write the places in `where` of the items that may be the best `n`, and the scores that these do not
    exceed, to `chosen` and `limits`. Return how many, and what no other's score exceeds; -1 where they are
    more than there is room for, or fewer than `n` are relevant.

    `where`, `relevance` (m,): of `look`; `rows_at`: the row of each position. The rating of a row has the
    score `base` and the product of `user` with the row's `means`, but for what is `rounded` off in
    proportion, and counts not more than `factors` at that score, `width` apart from `start` on. Of the
    `some` most relevant, the n-th highest limit tells what may be left out: `slack` times that.
    """
    dim, m, last = means.shape[1], len(where), len(factors) - 1
    # The smallest stands first of each heap.
    top = np.full(some, 0.0)
    best = np.full(n, 0.0)
    highest, rest, found = factors[last], 0.0, 0
    for k in range(m):
        if relevance[k] > top[0]:
            at, value = 0, relevance[k]
            while True:
                child = 2 * at + 1
                if child + 1 < some and top[child + 1] < top[child]:
                    child += 1
                if child >= some or top[child] >= value:
                    break
                top[at] = top[child]
                at = child
            top[at] = value
    for turn in range(2):
        for k in range(m):
            value = relevance[k]
            # The most relevant first: they tell what is worth a look.
            if value <= 0.0 or (value >= top[0]) != (turn == 0):
                continue
            least = best[0] * slack
            if value * highest < least:
                rest = max(rest, value * highest)
                continue
            row = rows_at[where[k]]
            limit = value * highest
            if row < n_rated:
                product, position = np.float32(0.0), positions[row]
                for a in range(dim):
                    product += means[position, a] * user[a]
                score = base + product
                score += rounded * (1.0 + abs(score))
                cell = math.ceil((score - start) / width)
                limit = value * factors[min(max(cell, 0), last)]
            if limit < least:
                rest = max(rest, limit)
                continue
            if found == len(chosen):
                return -1, 0.0
            chosen[found] = k
            limits[found] = limit
            found += 1
            if limit > best[0]:
                at = 0
                while True:
                    child = 2 * at + 1
                    if child + 1 < n and best[child + 1] < best[child]:
                        child += 1
                    if child >= n or best[child] >= limit:
                        break
                    best[at] = best[child]
                    at = child
                best[at] = limit
    if best[0] <= 0.0:
        return -1, 0.0
    # What was worth a look before better ones were found.
    kept, least = 0, best[0] * slack
    for k in range(found):
        if limits[k] >= least:
            chosen[kept] = chosen[k]
            limits[kept] = limits[k]
            kept += 1
        else:
            rest = max(rest, limits[k])
    return kept, rest
