"""The order of ratings by pair, and columns in an order: where there are many, by several threads.

Invariant: what comes out is the same for any number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.model.types import Int64s

Rows = npt.NDArray[np.integer[Any]]

# From so many entries on, packing row, column and position into one number saves more than it costs.
_MANY = 1 << 14
# With fewer for each thread, starting them takes longer than they save.
_FEWEST = 1 << 18


def order_by_pair(row: Rows, other: Rows, *, threads: int = 1) -> Int64s:
    """Return the order of entries (n,) by `row`, which is not below 0, then by `other`, then as written."""
    n = len(row)
    if n < _MANY:
        # Stable, so that of equal pairs the last written stands last.
        return np.lexsort((other, row))
    least = int(other.min(initial=0))
    bits = [int(size).bit_length() for size in (row.max(initial=0), int(other.max(initial=0)) - least, n)]
    # The sign bit and one to spare: more do not fit an int64.
    if sum(bits) > 62:
        return np.lexsort((other, row))
    # All three in one number each: sorting numbers takes a tenth of the time of finding an order.
    packed = row.astype(np.int64)
    packed <<= bits[1]
    packed += other
    packed -= least
    packed <<= bits[2]
    packed += np.arange(n)
    if _in_parts(n, threads, lambda part: packed[part].sort()) > 1:
        # Runs that ascend are merged.
        packed.sort(kind="stable")
    packed &= (1 << bits[2]) - 1
    return packed


def taken(column: npt.NDArray[Any], order: Rows, *, threads: int = 1) -> npt.NDArray[Any]:
    """Return `column` (n,) at the places `order` (m,), each from 0 to n - 1."""
    if len(order) < _MANY or column.ndim != 1 or not column.flags.c_contiguous:
        return column[order]
    found = np.empty(len(order), dtype=column.dtype)

    def take(part: slice) -> None:
        # No place is outside: to look for one would take half as long again, with the interpreter's lock.
        np.take(column, order[part], out=found[part], mode="clip")

    _in_parts(len(order), threads, take)
    return found


def _in_parts(n: int, threads: int, work: Callable[[slice], None]) -> int:
    """Do `work` for all of n entries, a part by each of at most so many `threads`; return how many parts."""
    n_parts = max(1, min(threads, n // _FEWEST))
    if n_parts == 1:
        work(slice(0, n))
        return 1
    edges = np.linspace(0, n, n_parts + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(n_parts, thread_name_prefix="order") as pool:
        list(pool.map(work, map(slice, edges[:-1], edges[1:])))
    return n_parts
