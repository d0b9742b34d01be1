"""The catalogue by item row of one epoch. Invariant: it has every change up to its version, and an item that
gets its row later is placed before the next question.
"""

import logging
import math

from factors import Bools
from featurestore.catalogue.catalogue import Catalogue, ItemState
from featurestore.errors import StoreDamaged
from featurestore.item_registry import ItemRegistry
from service.catalogue.availability import Availability

log = logging.getLogger("foldin.service")

# Versions that a question may have seen while others were taken in: those of some seconds.
_SEEN_KEPT = 1_000


class CatalogueView:
    """What a worker knows of the catalogue's items in an epoch."""

    def __init__(self, catalogue: Catalogue, registry: ItemRegistry) -> None:
        self._catalogue = catalogue
        self._registry = registry
        # The registry has another list once it was cleared: then rows may be those of other items.
        self._ids = registry.ids
        self._availability = Availability()
        # What is known of items that have no row yet, and up to which row these were looked for.
        self._unplaced: dict[bytes, ItemState] = {}
        self._placed = 0
        self._seen: dict[bytes, None] = {}
        self.version = b""
        self.damaged = 0

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

    def put(self, state: ItemState, row: int | None) -> None:
        """Take in what is stored of an item; `row` None: it has none yet."""
        if row is None:
            self._unplaced[state.item_id] = state
            return
        start, end = self._span(state)
        self._availability.put(row, start, end)

    def _span(self, state: ItemState) -> tuple[float, float]:
        if state.data is None:
            return (math.inf if state.deleted else -math.inf), math.inf
        try:
            item = self._catalogue.read(state.data)
        except StoreDamaged as exc:
            # It may have been hidden: an item of which that cannot be read is not shown.
            self.damaged += 1
            log.error("an item of the catalogue is left out: %s", exc)
            return math.inf, math.inf
        if item.hidden:
            return math.inf, math.inf
        start = -math.inf if item.available_from is None else item.available_from
        return start, math.inf if item.available_until is None else item.available_until

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
                    self.put(state, row)
        self._placed = known
