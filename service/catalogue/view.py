"""The catalogue by item row of one epoch. Invariant: it has every change up to its version, and an item that
gets its row later is placed before the next question.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from factors import Bools
from featurestore.catalogue.catalogue import Catalogue, ItemState
from featurestore.catalogue.item import CatalogueItem
from featurestore.catalogue.schema import Types
from featurestore.errors import StoreDamaged
from featurestore.item_registry import ItemRegistry
from service.catalogue.availability import Availability
from service.rules.columns import Columns, InThread
from service.rules.filters import Filter, Masks, Rows

log = logging.getLogger("foldin.service")

# Versions that a question may have seen while others were taken in: those of some seconds.
_SEEN_KEPT = 1_000
# Items that are put into columns in 2 ms.
_SETTLED_AT_ONCE = 64
_NOTHING = CatalogueItem("")


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
        self._masks = Masks(self.columns)
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
        return await self._masks.mask(wanted, n, rows, in_thread)

    def both(self, passing: Bools, shown: Bools) -> Bools:
        """Return what passes a filter and may be shown (n,), of masks that never change."""
        return self._masks.both(passing, shown)

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
