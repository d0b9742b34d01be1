"""Which item rows may be shown. Invariant: a mask that was handed out never changes, since a ranking in a
thread may read it; the next one is a copy.
"""

import math
from heapq import heappop, heappush

import numpy as np

from factors import Bools, Float64s, Int64s

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

    def put(self, rows: Int64s, starts: Float64s, ends: Float64s) -> None:
        """Say when each of `rows` (m,), all different, may be shown: from its start until before its end;
        from infinity, never.
        """
        # Beyond the table as a row of which nothing was said: most items are such.
        said = (rows < len(self._mask)) | (starts > -np.inf) | (ends < np.inf)
        rows, new = rows[said], np.stack([starts[said], ends[said]], axis=1)
        self._grow(int(rows.max(initial=-1)) + 1)
        old = self._spans[rows]
        self._spans[rows] = new
        # What waits already is not to wait twice: an item may be put again and again.
        waits = (self._now < new) & (new < np.inf) & (new != old[:, :1]) & (new != old[:, 1:])
        for place, side in zip(*np.nonzero(waits), strict=True):
            heappush(self._due, (float(new[place, side]), int(rows[place])))
        self._update(rows)

    def mask(self, now: float, n: int) -> Bools | None:
        """Return which of the first `n` rows may be shown at `now` (n,); None where all may.

        The same object as before where nothing has changed. A clock that goes back changes nothing.
        """
        self._now = max(now, self._now)
        due = set[int]()
        while self._due and self._due[0][0] <= self._now:
            due.add(heappop(self._due)[1])
        if due:
            self._update(np.array(list(due), dtype=np.int64))
        if not self._barred:
            return None
        self._grow(n)
        if self._given is None or len(self._given) != n:
            self._given = self._mask[:n]
        return self._given

    def shows(self, row: int, now: float) -> bool:
        """Whether a row may be shown at `now`."""
        return row >= len(self._spans) or bool(self._spans[row, 0] <= now < self._spans[row, 1])

    def _update(self, rows: Int64s) -> None:
        starts, ends = self._spans[rows].T
        shown = (starts <= self._now) & (self._now < ends)
        changed = shown != self._mask[rows]
        if not changed.any():
            return
        if self._given is not None:
            # 50 us at a million rows, whatever number of changes come before the next mask is asked for.
            self._mask, self._given = self._mask.copy(), None
        self._mask[rows[changed]] = shown[changed]
        self._barred += int((~shown[changed]).sum()) - int(shown[changed].sum())

    def _grow(self, rows: int) -> None:
        have = len(self._mask)
        if rows <= have:
            return
        more = rows + rows // 8 + _SPARE_ROWS - have
        self._mask = np.append(self._mask, np.ones(more, dtype=np.bool_))
        self._spans = np.append(self._spans, np.tile((-np.inf, np.inf), (more, 1)), axis=0)
        self._given = None
