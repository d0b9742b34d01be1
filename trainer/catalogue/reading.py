"""The catalogue read by the trainer: files of all items and of the attributes of users for a fit, and what
changes after it.

Invariant: what is read of items has every change up to the version that is told with it; nothing of users
stays on the disk: they lie in a file without a name, which is gone when the fit is.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from factors import Attribute
from featurestore.catalogue.catalogue import NO_VERSION, READ_AT_ONCE, Catalogue, ItemState
from featurestore.catalogue.columns import user_attributes_of
from featurestore.catalogue.item import CatalogueItem, unpack_item
from featurestore.errors import RegistryFull, StoreDamaged
from featurestore.item_registry import ItemRegistry
from featurestore.store import Store
from trainer import log
from trainer.errors import archive_errors

# The name of the file in its folder, an item in JSON a line.
_NAME = "items.ndjson"
_OF_USERS = pa.schema([("user_id", pa.binary()), ("value", pa.binary())])
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


async def write_user_attributes(
    store: Store, folder: Path, epoch: int, *, make_known: bool
) -> BinaryIO | None:
    """Write the attributes of all users to a file without a name, on the disk of `folder`; None where there
    were never any. `make_known`: have the epoch know these users. Raises `StoreError`, and
    `ArchiveFailedError` where the file cannot be written.
    """
    # Otherwise all keys of the store would be gone through for nothing.
    if not await store.catalogue.schema.types("users"):
        return None
    with archive_errors(f"write to {folder}"), contextlib.ExitStack() as unless_whole:
        await asyncio.to_thread(folder.mkdir, exist_ok=True)
        file = unless_whole.enter_context(tempfile.TemporaryFile(dir=folder))
        with pa.ipc.new_stream(file, _OF_USERS) as writer:
            async for found in store.attributes.read_all():
                if make_known and found:
                    await store.attributes.make_known(epoch, list(found))
                columns = [pa.array(list(part), pa.binary()) for part in (found, found.values())]
                writer.write_batch(pa.record_batch(columns, schema=_OF_USERS))
        file.flush()
        unless_whole.pop_all()
    return file


def read_user_attributes(descriptor: int, user_ids: pa.StringArray) -> list[Attribute]:
    """Return the attributes of those of `user_ids` (u,) of whom the file has any, each by its row."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        table = pa.ipc.open_stream(file).read_all()
    rows = pc.index_in(table["user_id"], value_set=user_ids.cast(pa.binary())).fill_null(-1).to_pylist()
    values: Iterable[bytes] = table["value"].to_pylist()
    # The last of one that was read twice.
    found = {row: data for row, data in zip(rows, values, strict=True) if row >= 0}
    return user_attributes_of(found.items())


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
