"""The items of an epoch as a file in its archive: the id of each item row. Invariant: it is written whole or
not at all, and says what the store's registry said when it was written.

A fit joins archived events by item id with it, and items that no one has rated survive their store.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.archive.events import string_array
from trainer.archive.files import open_file, whole_file
from trainer.archive.segments import METADATA_KEY
from trainer.errors import ArchiveFailedError, archive_errors, other_format

# Not `*.parquet`, which it is: those are the segments.
NAME = "items.list"
# Grows when a file of today could not be read by an older trainer.
FORMAT = 1


def write_items(directory: Path, ids: Sequence[bytes]) -> Path:
    """Write the ids by item row; return the file, which is on disk then. Raises `ArchiveFailedError`."""
    path = directory / NAME
    header = json.dumps({"format": FORMAT, "rows": len(ids)}).encode()
    table = pa.table({"item_id": string_array(ids)})
    with archive_errors(f"write {path}"), whole_file(path) as file:
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: header}),
            file,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_page_checksum=True,
        )
    return path


def read_items(path: Path) -> pa.StringArray:
    """Return the ids by item row; none where there is no file.

    Raises `ArchiveFailedError` where it cannot be read, `ArchiveRefusedError` for another format.
    """
    try:
        with open_file(path) as file:
            table = pq.read_table(file, page_checksum_verification=True)
        header = json.loads((table.schema.metadata or {})[METADATA_KEY])
        number, rows = int(header["format"]), int(header["rows"])
        if number != FORMAT:
            raise other_format(path, number, FORMAT)
        ids = table["item_id"].combine_chunks()
    except FileNotFoundError:
        return pa.array([], type=pa.string())
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as exc:
        raise ArchiveFailedError(f"{path} is damaged ({type(exc).__name__})") from exc
    if len(ids) != rows:
        raise ArchiveFailedError(f"{path} is damaged: it has {len(ids)} items, not {rows}")
    return ids
