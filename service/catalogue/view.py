"""The catalogue by item row of one epoch. Invariant: it has every change up to its version, and an item that
gets its row later is placed before the next question.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from factors import Bools, Float64s, Int64s
from featurestore.catalogue.catalogue import Catalogue, ItemState
from featurestore.catalogue.item import CatalogueItem
from featurestore.catalogue.schema import Types
from featurestore.errors import StoreDamaged
from featurestore.item_registry import ItemRegistry
from service.rules.columns import Columns, InThread
from service.rules.filters import Filter, Masks, Rows

log = logging.getLogger("foldin.service")

# Versions that a question may have seen while others were taken in: those of some seconds.
_SEEN_KEPT = 1_000
# Items that are put into columns in 2 ms.
_SETTLED_AT_ONCE = 64
# Spare rows of a table that grows: one that grows row by row is copied seldom.
_SPARE_ROWS = 1024
_NOTHING = CatalogueItem("")


class Availability:
    """From when and until when each item row may be shown, in seconds since 1970. Rows that nothing was said
    of may always be. `now`: none will be asked for that is earlier.

    Invariant: a mask that was handed out never changes, since a ranking in a thread may read it; the next one
    is a copy.
    """

    def __init__(self, now: float) -> None:
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


class CatalogueView:
    """What a worker knows of the catalogue's items in an epoch."""

    def __init__(self, catalogue: Catalogue, registry: ItemRegistry) -> None:
        self._catalogue = catalogue
        self._registry = registry
        # The registry has another list once it was cleared: then rows may be those of other items.
        self._ids = registry.ids
        # Most times are past when a catalogue is loaded: no row is to wait for these.
        self._availability = Availability(time.time())
        # Threads read the columns, so that they may lack what was put last: it waits by row.
        self.columns = Columns()
        self.masks = Masks(self.columns)
        self._unsettled: dict[int, CatalogueItem] = {}
        self._settling = asyncio.Lock()
        # What is known of items that have no row yet, and up to which row these were looked for.
        self._unplaced: dict[bytes, ItemState] = {}
        self._placed = 0
        self._seen: dict[bytes, None] = {}
        self.version = b""
        # Of the attributes of items, as a rule has last needed them. A view is made anew when one goes.
        self.types: Types = {}

    @property
    def valid(self) -> bool:
        """Whether the rows are still those of the registry."""
        return self._ids is self._registry.ids

    def has(self, version: bytes) -> bool:
        """Whether all changes up to a version are in it."""
        return version == self.version or version in self._seen

    def reached(self, version: bytes) -> None:
        """Say that all changes up to a version are in it."""
        self._seen[self.version] = None
        self.version = version
        while len(self._seen) > _SEEN_KEPT:
            del self._seen[next(iter(self._seen))]

    async def read_types(self) -> Types:
        """Return the types of the attributes of items, as the store has them now. Raises `StoreError`."""
        self.types = await self._catalogue.schema.types("items")
        return self.types

    def put(self, states: Sequence[ItemState], rows: Sequence[int | None]) -> None:
        """Take in what is stored of different items; `rows`: None where there was none when it was asked
        for.
        """
        # Before it is asked for rows, so that none is passed over that is given meanwhile.
        known = len(self._ids)
        placed: dict[int, CatalogueItem | None] = {}
        spans: list[tuple[float, float]] = []
        for state, given in zip(states, rows, strict=True):
            # It may have got one since, and then its row is no longer looked for.
            row = self._registry.row(state.item_id) if given is None else given
            if row is None:
                if not self._unplaced:
                    self._placed = max(self._placed, known)
                self._unplaced[state.item_id] = state
                continue
            # What was known before it had a row must not replace this.
            self._unplaced.pop(state.item_id, None)
            placed[row] = item = self._item(state)
            spans.append(_span(state, item))
            self._unsettled[row] = item or _NOTHING
        if placed:
            starts, ends = np.array(spans).T
            self._availability.put(np.fromiter(placed, dtype=np.int64), starts, ends)

    def fill(self, states: Sequence[ItemState], rows: Sequence[int | None]) -> None:
        """Take in what is stored of items, in a view that no answer has yet: in any thread."""
        self.put(states, rows)
        self._settle_some(len(self._unsettled))

    async def settle(self) -> None:
        """Bring the columns up to date with what was put, in small steps."""
        if not self._unsettled:
            return
        async with self._settling:
            while self._unsettled:
                async with self.columns.lock.writing():
                    self._settle_some(_SETTLED_AT_ONCE)
                await asyncio.sleep(0)

    def _settle_some(self, most: int) -> None:
        some = [self._unsettled.popitem() for _ in range(min(len(self._unsettled), most))]
        self.columns.put([row for row, _ in some], [item for _, item in some])

    async def mask(
        self, wanted: Filter, n: int, rows: Rows, in_thread: InThread = asyncio.to_thread
    ) -> Bools:
        """Return which of the first `n` item rows pass a filter (n,), not to be written to. `rows`: of the
        ids that it names; `in_thread`: where it is made if that takes long.
        """
        await self.settle()
        return await self.masks.mask(wanted, n, rows, in_thread)

    def _item(self, state: ItemState) -> CatalogueItem | None:
        """Return the item that is stored, None where there is none or it is damaged."""
        if state.data is None:
            return None
        try:
            return self._catalogue.read(state.data)
        except StoreDamaged as exc:
            # It may have been hidden: an item of which that cannot be read is not shown.
            log.error("an item of the catalogue is left out: %s", exc)
            return None

    def allowed(self, now: float, n: int) -> Bools | None:
        """Return which of the first `n` item rows may be shown (n,), None where all may."""
        self._place()
        return self._availability.mask(now, n)

    def _place(self) -> None:
        """Place items whose row has become known."""
        known = len(self._ids)
        if self._unplaced:
            for row in range(self._placed, known):
                if (state := self._unplaced.pop(self._ids[row], None)) is not None:
                    self.put([state], [row])
        self._placed = known


def _span(state: ItemState, item: CatalogueItem | None) -> tuple[float, float]:
    """Return from when and until when an item may be shown. `item`: None for none that can be read."""
    # One that was never in the catalogue may be shown.
    if item is None or item.hidden:
        return (-math.inf if state.data is None and not state.deleted else math.inf), math.inf
    start, end = item.available_from, item.available_until
    return (-math.inf if start is None else start), (math.inf if end is None else end)
