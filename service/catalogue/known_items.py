"""All items that are known: those of the catalogue, and those that ratings or other events alone name.
`GET /items?of=all` lists them.

Invariant: what was acknowledged before a page was asked for is in it; a deleted item is in none.
"""

import asyncio
from collections.abc import Sequence

from featurestore.catalogue.catalogue import PAGE_BYTES, READ_AT_ONCE, ItemState
from featurestore.store import Store

# Reads of one page: of many deleted items together it is short, and a call ends all the same.
_MOST_READS = 10


async def known_page(
    store: Store, epoch: int, n: int, *, prefix: bytes, after: bytes
) -> tuple[list[ItemState], bytes | None]:
    """Return up to `n` known items in the order of their ids, which begin with `prefix`, behind `after`; and
    where the next page begins, None at the end. Raises `StoreError`.
    """
    registry, catalogue = store.items(epoch), store.catalogue
    # What other workers have registered.
    await registry.refresh()
    await asyncio.gather(registry.require_whole(), catalogue.require_whole())
    found: list[ItemState] = []
    size = 0
    for _ in range(_MOST_READS):
        most = min(n - len(found), READ_AT_ONCE)
        rated, listed = await asyncio.gather(
            registry.page(most, prefix=prefix, after=after), catalogue.ids(most, prefix=prefix, after=after)
        )
        # An item of the catalogue has no row where there was no room for one.
        ids = sorted({*rated, *listed})[:most]
        for state in await catalogue.states(ids):
            after = state.item_id
            if not state.deleted:
                found.append(state)
                size += len(state.data or b"")
            if size >= PAGE_BYTES:
                return found, after
        if len(ids) < most:
            return found, None
        if len(found) == n:
            break
    return found, after


async def known_ones(store: Store, epoch: int, item_ids: Sequence[bytes]) -> list[ItemState]:
    """Return those of a few items that are known. Raises `StoreError`."""
    rows, states = await asyncio.gather(store.items(epoch).rows(item_ids), store.catalogue.states(item_ids))
    return [
        state
        for state, row in zip(states, rows, strict=True)
        if not state.deleted and (state.data is not None or row is not None)
    ]
