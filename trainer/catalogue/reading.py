"""The catalogue read by the trainer: a file of all items for a fit, and what changes after it. Invariant:
what is read has every change up to the version that is told with it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.catalogue.catalogue import NO_VERSION, READ_AT_ONCE, Catalogue, ItemState
from featurestore.catalogue.item import CatalogueItem, unpack_item
from featurestore.errors import RegistryFull, StoreDamaged
from featurestore.item_registry import ItemRegistry
from trainer import log
from trainer.errors import archive_errors

# The name of the file in its folder, an item in JSON a line.
_NAME = "items.ndjson"
# Changes of one reply: each names up to 256 items, which are then read.
_CHANGES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Changed:
    """Items that have changed up to `version`, each with its row; one that was deleted is an item without
    attributes. `more`: there are further changes.
    """

    version: bytes
    items: list[tuple[int, CatalogueItem]]
    more: bool


async def write_catalogue(catalogue: Catalogue, registry: ItemRegistry, folder: Path) -> tuple[Path, str]:
    """Write all items to a file in `folder`; return it, and the version that has them. Items without a row
    get one. A catalogue that nothing was ever put into gives an empty file. Raises `StoreError`, and
    `ArchiveFailedError` where the file cannot be written.
    """
    path = folder / _NAME
    # First: what changes while the items are read is told as a change after it.
    version = await catalogue.version()
    with archive_errors(f"write {path}"):
        await asyncio.to_thread(folder.mkdir, exist_ok=True)
        with path.open("wb") as file:
            async for states in _all_items(catalogue, version):
                lines = [state.data for state in states if state.data is not None]
                await asyncio.to_thread(file.write, b"".join(line + b"\n" for line in lines))
                await _rows(registry, [state.item_id for state in states])
    return path, version.decode()


def read_catalogue(path: Path, item_ids: pa.StringArray) -> list[tuple[int, CatalogueItem]]:
    """Return the items of the file `write_catalogue` wrote that are among `item_ids`, each with its row."""
    items: list[CatalogueItem] = []
    with path.open("rb") as file:
        for line in file:
            try:
                items.append(unpack_item(line, path.name))
            except StoreDamaged as exc:
                # It is rated as an item without attributes; the service says what is wrong with it.
                log.warning("item_unreadable", error=str(exc))
    ids = pa.array([item.item_id for item in items], type=pa.string())
    rows = pc.index_in(ids, value_set=item_ids).fill_null(-1).to_pylist()
    # The last of one that was read twice, as its page began anew.
    found = {row: item for row, item in zip(rows, items, strict=True) if row >= 0}
    return list(found.items())


async def read_changes(catalogue: Catalogue, registry: ItemRegistry, version: bytes) -> Changed | None:
    """Return what has changed since a version; None where that is no longer kept. Raises `StoreError`."""
    found = await catalogue.changes_since(version, _CHANGES_AT_ONCE)
    if not found.whole:
        return None
    states = await catalogue.states(found.item_ids)
    rows = await _rows(registry, [state.item_id for state in states])
    items = [
        (row, _item(catalogue, state)) for row, state in zip(rows, states, strict=True) if row is not None
    ]
    return Changed(found.version, items, more=found.version != version)


async def read_all(
    catalogue: Catalogue, registry: ItemRegistry
) -> AsyncIterator[list[tuple[int, CatalogueItem]]]:
    """Yield all items, some at a time, each with its row. Raises `StoreError`."""
    async for states in _all_items(catalogue, await catalogue.version()):
        rows = await _rows(registry, [state.item_id for state in states])
        yield [
            (row, _item(catalogue, state)) for row, state in zip(rows, states, strict=True) if row is not None
        ]


async def _all_items(catalogue: Catalogue, version: bytes) -> AsyncIterator[list[ItemState]]:
    after = b""
    # One that never had a change has no items: nothing is asked for.
    while version != NO_VERSION and (ids := await catalogue.ids(READ_AT_ONCE, after=after)):
        yield await catalogue.states(ids)
        after = ids[-1]


async def _rows(registry: ItemRegistry, item_ids: Sequence[bytes]) -> list[int | None]:
    """Return the row of each item; those that have none get one, while there is room."""
    rows = await registry.rows(item_ids)
    new = [item_id for item_id, row in zip(item_ids, rows, strict=True) if row is None]
    if not new:
        return rows
    try:
        await registry.register(new)
    except RegistryFull:
        # They are in no list until there is room.
        return rows
    return await registry.rows(item_ids)


def _item(catalogue: Catalogue, state: ItemState) -> CatalogueItem:
    try:
        if state.data is not None:
            return catalogue.read(state.data)
    except StoreDamaged as exc:
        log.warning("item_unreadable", error=str(exc))
    return CatalogueItem(state.item_id.decode("utf-8", "replace"))
