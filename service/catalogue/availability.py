"""Which item rows may be shown. Invariant: a mask that was handed out never changes, since a ranking in a
thread may read it; the next one is a copy.
"""

import math

import numpy as np

from factors import Bools, Float64s, Int64s

# Spare rows of a table that grows: one that grows row by row is copied seldom.
_SPARE_ROWS = 1024


class Availability:
    """From when and until when each item row may be shown, in seconds since 1970. Rows that nothing was said
    of may always be. `now`: none will be asked for that is earlier.
    """

    def __init__(self, now: float = -math.inf) -> None:
        self._mask: Bools = np.ones(0, dtype=np.bool_)
        # By row: shown from the first until before the second.
        self._spans: Float64s = np.empty((0, 2))
        self._barred = 0
        # When each row changes next, and the earliest of these moments, or an earlier one. Where it has come
        # all rows are looked through: 1 ms for a million.
        self._changes: Float64s = np.empty(0)
        self._next = math.inf
        self._now = now
        self._given: Bools | None = None

    def put(self, rows: Int64s, starts: Float64s, ends: Float64s) -> None:
        """Say when each of `rows` (m,), all different, may be shown: from its start until before its end;
        from infinity, never.
        """
        # Beyond the table as a row of which nothing was said: most items are such.
        said = (rows < len(self._mask)) | (starts > -np.inf) | (ends < np.inf)
        rows, new = rows[said], np.stack([starts[said], ends[said]], axis=1)
        self._grow(int(rows.max(initial=-1)) + 1)
        self._spans[rows] = new
        self._wait(rows)
        self._update(rows)

    def mask(self, now: float, n: int) -> Bools | None:
        """Return which of the first `n` rows may be shown at `now` (n,); None where all may.

        The same object as before where nothing has changed. A clock that goes back changes nothing.
        """
        self._now = max(now, self._now)
        if self._next <= self._now:
            rows = np.flatnonzero(self._changes <= self._now)
            self._wait(rows)
            self._update(rows)
            self._next = float(self._changes.min(initial=np.inf))
        if not self._barred:
            return None
        self._grow(n)
        if self._given is None or len(self._given) != n:
            self._given = self._mask[:n]
            # So that a ranking may remember what it allows.
            self._given.flags.writeable = False
        return self._given

    def _wait(self, rows: Int64s) -> None:
        """Have `rows` looked at when they change next."""
        # Column by column: along the short axis of both it takes four times as long.
        starts, ends = (np.where(self._now < each, each, np.inf) for each in self._spans[rows].T)
        changes = np.minimum(starts, ends)
        self._changes[rows] = changes
        self._next = min(self._next, float(changes.min(initial=np.inf)))

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
        self._changes = np.append(self._changes, np.full(more, np.inf))
        self._given = None
