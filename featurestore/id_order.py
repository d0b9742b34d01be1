"""Ids in the order of their bytes, to be read page by page. Invariant: a page is found in the logarithm of
how many ids there are; what grows with them is sorted in a thread that leaves the interpreter to others.
"""

import asyncio
import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice, takewhile

import numpy as np

from factors import Int32s
from featurestore.id_columns import WORD_BYTES

# So few are sorted in 1 ms.
_FEW = 1_000
# Made into numbers between two looks of other threads at the interpreter.
_AT_ONCE = 8_192


class IdOrder:
    """The order of `ids`, a list that only grows. 4 bytes an id, once it was asked for; sorting takes 1 to 2
    microseconds an id of up to 16 bytes.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        self._ids = ids
        # Places of ids, those of a run in the order of the ids. Each run goes on where the one before ends
        # and is less than half as long, so that there are few, and an id is sorted a few times in all.
        self._runs: list[Int32s] = []
        self._growing = asyncio.Lock()

    async def grow(self) -> None:
        """Take in all ids that the list has by now."""
        async with self._growing:
            start, stop = sum(map(len, self._runs)), len(self._ids)
            if start == stop:
                return
            runs = self._runs[:]
            while runs and len(runs[-1]) <= 2 * (stop - start):
                start -= len(runs.pop())
            if stop - start <= _FEW:
                run = _in_order(self._ids, start, stop)
            else:
                run = await asyncio.to_thread(_in_order, self._ids, start, stop)
            self._runs = [*runs, run]

    def page(self, n: int, *, prefix: bytes = b"", after: bytes = b"") -> list[bytes]:
        """Return up to `n` of the ids that were taken in, which begin with `prefix`, behind `after`."""
        found = [self._of_run(run, n, prefix, after) for run in self._runs]
        return list(islice(heapq.merge(*found), n))

    def _of_run(self, run: Int32s, n: int, prefix: bytes, after: bytes) -> list[bytes]:
        id_at = self._ids.__getitem__
        if after and after >= prefix:
            first = bisect_right(run, after, key=id_at)
        else:
            first = bisect_left(run, prefix, key=id_at)
        ids = map(id_at, run[first : first + n].tolist())
        return list(takewhile(lambda item_id: item_id.startswith(prefix), ids))


def _in_order(ids: Sequence[bytes], start: int, stop: int) -> Int32s:
    """Return the places from `start` to `stop` in the order of the ids there."""
    parts = [(at, min(at + _AT_ONCE, stop)) for at in range(start, stop, _AT_ONCE)]
    lengths = np.concatenate([[len(item_id) for item_id in ids[first:last]] for first, last in parts])
    # By words from the last to the first, each time keeping the order among equals. One that ends before is
    # filled up with zeros, which ids may have, too: of two that are equal then the shorter one comes first.
    order = np.argsort(lengths, kind="stable")
    for at in reversed(range(0, int(lengths.max()), WORD_BYTES)):
        words = np.empty(stop - start, dtype=np.uint64)
        for first, last in parts:
            part = np.array([item_id[at : at + WORD_BYTES] for item_id in ids[first:last]], dtype="S8")
            words[first - start : last - start] = part.view(">u8")
        order = order[np.argsort(words[order], kind="stable")]
    return (order + start).astype(np.int32)
