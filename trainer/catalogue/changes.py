"""How much of the catalogue has changed since a fit. Invariant: bounded work a look, and an item that changes
again and again is one item.
"""

from featurestore.catalogue.catalogue import Catalogue
from featurestore.errors import StoreError
from trainer import log
from trainer.schedule import CatalogueChanges

# How often the version is asked for: a fit takes seconds.
_LOOK_S = 1.0
# When the store did not answer, or said what cannot be read: not a line of the log each second.
_LOOK_AGAIN_S = 5.0
# Changes of one reply: each names up to 256 items.
_CHANGES_AT_ONCE = 16
# Ids that are told apart, some 30 MB; by so many the whole catalogue counts as changed.
_MOST_IDS = 200_000


class ChangedItems:
    """Counts the items that have changed since a version of the catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._fitted: bytes | None = None
        self._version = b""
        self._ids: set[bytes] = set()
        self._look_at = float("-inf")
        self._found = CatalogueChanges()

    async def look(self, now: float, fitted: bytes | None) -> CatalogueChanges:
        """Return what has changed since the version `fitted`, which may be another one each time; None where
        the fit has learned none: nothing counts then. `now`: seconds of a monotonic clock.
        """
        if fitted != self._fitted:
            self._fitted, self._found = fitted, CatalogueChanges()
            self._version = fitted or b""
            self._ids.clear()
        if fitted is None or now < self._look_at:
            return self._found
        self._look_at = now + _LOOK_S
        try:
            await self._take(now)
        except StoreError as exc:
            # The next look goes on from there.
            self._look_at = now + _LOOK_AGAIN_S
            log.warning("catalogue_not_counted", error=str(exc))
        return self._found

    async def _take(self, now: float) -> None:
        """Take in what has changed since the look before."""
        if await self._catalogue.version() == self._version:
            return
        found = await self._catalogue.changes_since(self._version, _CHANGES_AT_ONCE)
        self._version = found.version
        self._ids.update(found.item_ids)
        items = await self._catalogue.require_whole()
        changed = len(self._ids) if found.whole and len(self._ids) < _MOST_IDS else items
        first_at = now if self._found.first_at is None else self._found.first_at
        # What was not told item by item stays counted: all items were.
        self._found = CatalogueChanges(max(changed, self._found.items), items, first_at, now)
