"""Which item rows may be shown. Invariant: a mask that was handed out never changes, since a ranking in a
thread may read it; the next one is a copy.
"""

import math
from heapq import heappop, heappush

import numpy as np

from factors import Bools, Float64s

# Spare rows of a table that grows: one that grows row by row is copied seldom.
_SPARE_ROWS = 1024


class Availability:
    """From when and until when each item row may be shown, in seconds since 1970. Rows that nothing was said
    of may always be.
    """

    def __init__(self) -> None:
        self._mask: Bools = np.ones(0, dtype=np.bool_)
        # By row: shown from the first until before the second.
        self._spans: Float64s = np.empty((0, 2))
        self._barred = 0
        # When rows change by themselves; an entry that no longer holds changes nothing.
        self._due: list[tuple[float, int]] = []
        self._now = -math.inf
        self._given: Bools | None = None

    def put(self, row: int, start: float, end: float) -> None:
        """Say when a row may be shown: from `start` until before `end`; from infinity, never."""
        if row >= len(self._mask) and (start, end) == (-math.inf, math.inf):
            # As a row of which nothing was said: most items are such.
            return
        self._grow(row + 1)
        # What waits already is not to wait twice: an item may be put again and again.
        waiting = self._spans[row].tolist()
        self._spans[row] = start, end
        for moment in (start, end):
            if self._now < moment < math.inf and moment not in waiting:
                heappush(self._due, (moment, row))
        self._update(row)

    def mask(self, now: float, n: int) -> Bools | None:
        """Return which of the first `n` rows may be shown at `now` (n,); None where all may.

        The same object as before where nothing has changed. A clock that goes back changes nothing.
        """
        self._now = max(now, self._now)
        while self._due and self._due[0][0] <= self._now:
            self._update(heappop(self._due)[1])
        if not self._barred:
            return None
        self._grow(n)
        if self._given is None or len(self._given) != n:
            self._given = self._mask[:n]
        return self._given

    def shows(self, row: int, now: float) -> bool:
        """Whether a row may be shown at `now`."""
        return row >= len(self._spans) or bool(self._spans[row, 0] <= now < self._spans[row, 1])

    def _update(self, row: int) -> None:
        start, end = self._spans[row]
        shown = bool(start <= self._now < end)
        if shown == self._mask[row]:
            return
        if self._given is not None:
            # 50 us at a million rows, whatever number of changes come before the next mask is asked for.
            self._mask, self._given = self._mask.copy(), None
        self._mask[row] = shown
        self._barred += -1 if shown else 1

    def _grow(self, rows: int) -> None:
        have = len(self._mask)
        if rows <= have:
            return
        more = rows + rows // 8 + _SPARE_ROWS - have
        self._mask = np.append(self._mask, np.ones(more, dtype=np.bool_))
        self._spans = np.append(self._spans, np.tile((-np.inf, np.inf), (more, 1)), axis=0)
        self._given = None
