"""Where on a disk something of a user is left: in every file below a folder, of Parquet by its values."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.ratings.log import NewRating
from trainer.archive.files import TEMPORARY
from trainer.errors import SegmentGoneError


def traces(
    folder: Path, user_id: bytes, ratings: Sequence[NewRating], values: Sequence[float | str] = ()
) -> dict[str, set[str]]:
    """What is found of a user, `id`, `rating`, `time` or `value`, by file. `values`: of attributes and
    contexts, which no other user has. Store with `--rdbcompression no`: what is compressed does not have its
    bytes.
    """
    wanted = {
        "id": [user_id],
        "rating": [struct.pack("<d", each.rating) for each in ratings],
        "time": [struct.pack("<d", each.time) for each in ratings],
        "value": [form for value in values for form in _forms(value)],
    }
    found: dict[str, set[str]] = {}
    # Folders may go meanwhile, for which `rglob` fails.
    for path in sorted(Path(top) / name for top, _, names in os.walk(folder) for name in names):
        try:
            content = path.read_bytes() if path.is_file() else b""
            if b"PAR1" in content[:4]:
                content += _plain(path)
        except (FileNotFoundError, SegmentGoneError):
            # Merged or rewritten just now: what came of it is another file.
            continue
        except pa.ArrowInvalid:
            # One that is being written; there after a kill only, and removed at the next start.
            if not path.name.endswith(TEMPORARY):
                raise
        kinds = {kind for kind, parts in wanted.items() if any(part in content for part in parts)}
        if kinds:
            found[str(path.relative_to(folder))] = kinds
    return found


def _forms(value: float | str) -> list[bytes]:
    """How a value may lie in a file: as text, and a number also in four and in eight bytes."""
    if isinstance(value, str):
        return [value.encode()]
    return [repr(value).encode(), struct.pack("<d", value), struct.pack("<f", value)]


def _plain(path: Path) -> bytes:
    """The values of a Parquet file, which compresses them."""
    values = [value for column in pq.read_table(path).columns for value in column.to_pylist()]
    return b"\n".join(struct.pack("<d", v) if isinstance(v, float) else str(v).encode() for v in values)
