"""Attributes of users as a fit reads them. Invariant: nothing of them stays on the disk: they lie in a file
without a name, which is gone when the fit is.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from factors import Attribute
from featurestore.catalogue.columns import user_attributes_of
from featurestore.store import Store
from trainer.errors import archive_errors

_SCHEMA = pa.schema([("user_id", pa.binary()), ("value", pa.binary())])


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
        with pa.ipc.new_stream(file, _SCHEMA) as writer:
            async for found in store.attributes.read_all():
                if make_known and found:
                    await store.attributes.make_known(epoch, list(found))
                columns = [pa.array(list(part), pa.binary()) for part in (found, found.values())]
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
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
