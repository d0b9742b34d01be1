"""Loops over the sessions of rows, for numba to compile and to run as plain Python too.

Invariant: sums and slots are those of `session_effects` but for the rounding of a float32 table.
"""

# ruff: noqa: PLR0917  numba inlines loops, not calls, and takes no keyword-only arguments

from typing import Any

import numpy as np

# Numba reads no annotations, and mypy no arrays of lanes: every argument below is an array or a number.
Array = Any


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
