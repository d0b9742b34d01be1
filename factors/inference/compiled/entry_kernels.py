"""Loops over the entries of a half-step, for what is known of each before its row is solved, and over the
sessions of rows, for numba to compile and to run as plain Python too.

Invariant: ages, sessions and contexts of entries are those of `motion`, `side_moments` and `context`; sums
and slots of sessions are those of `session_effects`, but for the rounding of float32 tables.
"""

# ruff: noqa: PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math

import numpy as np

from factors.inference.compiled.loading import Array
from factors.model.layout import REST_KEY


def match_sessions(
    start: int,
    stop: int,
    columns: Array,
    time: Array,
    rows: Array,
    dim: int,
    slots: int,
    session_length: float,
    sessions_a_sitting: float,
    wrap: float,
    effect: Array,
    variance: Array,
) -> None:
    """Write effect and variance of the session of entries `start` to `stop` whose other row keeps it, or its
    sitting.
    """
    key_at = 2 + 2 * dim + dim * (dim + 1) // 2
    for e in range(start, stop):
        if not math.isfinite(time[e]):
            continue
        key = math.floor(time[e] / session_length)
        # As `numpy.mod`, which is not below 0.
        key -= math.floor(key / wrap) * wrap
        # Of a session that is not kept its sitting may be; without sittings no row has this key.
        around = -2.0 - math.floor(key / sessions_a_sitting) if sessions_a_sitting > 0.0 else -2.0
        j = columns[e]
        # What has no slot has the last one, where that says so.
        last = slots - 1
        if rows[j, key_at + last] == REST_KEY:
            effect[e] = rows[j, key_at + slots + last]
            variance[e] = rows[j, key_at + 2 * slots + last]
        for slot in range(slots):
            own = rows[j, key_at + slot] == key
            if own or rows[j, key_at + slot] == around:
                effect[e] = rows[j, key_at + slots + slot]
                variance[e] = rows[j, key_at + 2 * slots + slot]
            if own:
                break


def look_back(
    start: int,
    stop: int,
    indptr: Array,
    columns: Array,
    time: Array,
    origin: float,
    unit: float,
    farthest: float,
    most: float,
    own: bool,
    anchor_time: Array,
    back: Array,
) -> None:
    """Write to `back` (n,) minus the age of each entry of rows `start` to `stop` (`motion.ages`), at the
    `anchor_time` of its other row, or with `own` at that of its row, which is written then (rows,).
    """
    for row in range(start, stop):
        if own:
            latest = -np.inf
            for e in range(indptr[row], indptr[row + 1]):
                if math.isfinite(time[e]):
                    latest = max(latest, time[e])
            # A row without a known time stands at the origin.
            counted = (latest - origin) / unit if math.isfinite(latest) else 0.0
            anchor_time[row] = min(max(counted, -farthest), farthest)
        for e in range(indptr[row], indptr[row + 1]):
            back[e] = 0.0
            if math.isfinite(time[e]):
                at = min(max((time[e] - origin) / unit, -farthest), farthest)
                anchor = anchor_time[row if own else columns[e]]
                back[e] = -min(max(anchor - at, 0.0), most)


def move_entries(
    start: int,
    stop: int,
    context: Array,
    numbers: Array,
    number_effects: Array,
    codes: Array,
    code_effects: Array,
    farthest: float,
    moved: Array,
) -> None:
    """Write to `moved` (n, d) by how much the `context` (n, fields) of entries `start` to `stop` moves their
    users: a number by its column times its effects, a category by the effects of its code
    (`ContextEncoding`).
    """
    dim = moved.shape[1]
    for e in range(start, stop):
        moved[e, :] = 0.0
        for at in range(len(numbers)):
            value = np.float64(context[e, int(numbers[at, 0])])
            if not math.isnan(value):
                value = min(max((value - numbers[at, 1]) / numbers[at, 2], -farthest), farthest)
                for a in range(dim):
                    moved[e, a] += value * number_effects[at, a]
        for at in range(len(codes)):
            if context[e, int(codes[at, 0])] == codes[at, 1]:
                for a in range(dim):
                    moved[e, a] += code_effects[at, a]


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
    back: Array,
    velocity: Array,
    moved: Array,
    of_other: bool,
    dim: int,
    prior_variance: float,
    load: Array,
    scale: Array,
    surprise: Array,
) -> None:
    """`load`, `scale` and `surprise` of the sessions `start` to `stop`, whose `entries` begin at
    `indptr`; the other arguments as in `solve_rows`.
    """
    rank, moving = dim - 1, load.shape[1] > dim
    packed = dim * (dim + 1) // 2
    features = packed - dim
    local = np.zeros(dim)
    for g in range(start, stop):
        total = 1.0 / prior_variance
        rest = 0.0
        load[g, :] = 0.0
        for at in range(indptr[g], indptr[g + 1]):
            e = entries[at]
            j = columns[e]
            w = unit if len(weight) == 0 else np.float64(weight[e])
            seen = unit * (target[e] - shift) if len(weight) == 0 else np.float64(linear[e])
            for a in range(dim):
                local[a] = table[j, features + a]
            bias = np.float64(table[j, packed + rank])
            if len(moved) > 0 and not of_other:
                for a in range(dim):
                    bias += local[a] * moved[e, a]
            elif of_other:
                local[rank] = bias
                for a in range(dim):
                    if len(velocity) > 0:
                        local[a] += back[e] * velocity[j, a]
                    if len(moved) > 0:
                        local[a] += moved[e, a]
                bias = local[rank]
                local[rank] = 1.0
            total += w
            rest += seen - w * bias
            for a in range(dim):
                load[g, a] += w * local[a]
                if moving:
                    load[g, dim + a] += w * back[e] * local[a]
        scale[g] = total
        surprise[g] = rest


def write_sessions(
    start: int,
    stop: int,
    groups: Array,
    keys: Array,
    matter: Array,
    effect: Array,
    variance: Array,
    dim: int,
    slots: int,
    result: Array,
) -> None:
    """Write to the slots of rows `start` to `stop` of `result` the latest of their sessions and those that
    `matter` most.
    """
    key_at = 2 + 2 * dim + dim * (dim + 1) // 2
    for row in range(start, stop):
        first, last = groups[row], groups[row + 1]
        for slot in range(min(slots, last - first)):
            best = last - 1
            # The latest session has the first slot, the largest effects the others.
            if slot > 0:
                best = -1
                for g in range(first, last - 1):
                    taken = False
                    for before in range(1, slot):
                        taken = taken or result[row, key_at + before] == keys[g]
                    if not taken and (best < 0 or matter[g] > matter[best]):
                        best = g
            result[row, key_at + slot] = keys[best]
            result[row, key_at + slots + slot] = effect[best]
            result[row, key_at + 2 * slots + slot] = variance[best]
