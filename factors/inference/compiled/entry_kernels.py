"""Loops over the entries of a half-step that say what is known of each before its row is solved, for numba to
compile and to run as plain Python too.

Invariant: ages, sessions and contexts of entries are those of `motion`, `side_moments` and `context`.
"""

# ruff: noqa: PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

import math
from typing import Any

import numpy as np

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
