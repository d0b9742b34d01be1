"""The bytes of records and histories. Invariant: what is read is exactly what was written, or
`RecordCorrupt`.

Little endian throughout; nothing is ever unpickled.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float32s, Float64s, Histories, Int32s, Int64s, Scale

ENTRY = struct.Struct("<Idd")
COUNTER = struct.Struct("<Q")
ENTRY_BYTES = ENTRY.size  # 20
FORGOTTEN_ROW = 0xFFFFFFFF
"""The `item_row` of an event that says: this user was forgotten."""

ENTRY_DTYPE = np.dtype([("item_row", "<u4"), ("rating", "<f8"), ("time", "<f8")])
# Seconds since 1970 beyond which a timestamp is no time: milliseconds by mistake pass, nanoseconds do not.
MAX_TIMESTAMP = 1e15
# An import of version 0.1.0 or before took as much.
MAX_STORED_TIME = 1e16

# A row is an int32 wherever it is counted with.
MAX_ITEM_ROW = 2**31 - 1

# A history is rewritten without what was superseded when that is more than half of it and worth the write.
COMPACT_ENTRIES = 64


class RecordCorrupt(ValueError):  # noqa: N818 - says what happened
    """Bytes of the wrong length. The caller treats the record as missing and folds it in again."""


@dataclass(frozen=True, slots=True)
class History:
    """The ratings of one user that hold, each item once, in the order in which they were made.

    `item_row`: int32 (m,); `rating`: float64 (m,); `time`: float64 (m,), seconds since 1970, NaN if unknown.
    """

    item_row: Int32s
    rating: Float64s
    time: Float64s

    def __len__(self) -> int:
        return len(self.item_row)


@lru_cache(maxsize=64)
def record_dtype(width: int) -> np.dtype[Any]:
    """A record with a vector of `width` float32: the user's `n` that it has seen, then the vector."""
    return np.dtype([("n", "<u8"), ("vector", "<f4", (width,))])


def pack_records(n: Int64s, vectors: Float32s) -> list[bytes]:
    """Records of `n` (u,) and `vectors` (u, width) as bytes, one a user."""
    table = np.empty(len(n), dtype=record_dtype(vectors.shape[1]))
    table["n"], table["vector"] = n, vectors
    data, stride = table.tobytes(), table.itemsize
    return [data[start : start + stride] for start in range(0, len(data), stride)]


def unpack_records(records: Sequence[bytes], width: int) -> tuple[npt.NDArray[np.uint64], Float32s]:
    """Records as `n` uint64 (u,) and vectors float32 (u, width), views of one buffer.

    Raises `RecordCorrupt`.
    """
    size = record_dtype(width).itemsize
    if set(map(len, records)) - {size}:
        raise RecordCorrupt(f"a record that is not {size} bytes long")
    table = np.frombuffer(b"".join(records), record_dtype(width))
    return table["n"], table["vector"]


def pack_entry(item_row: int, rating: float, time: float) -> bytes:
    """A history entry; a NaN `rating` takes the item's rating back."""
    return ENTRY.pack(item_row, rating, time)


def pack_history(history: History) -> bytes:
    """A history as entries."""
    table = np.empty(len(history), dtype=ENTRY_DTYPE)
    table["item_row"], table["rating"], table["time"] = history.item_row, history.rating, history.time
    return table.tobytes()


def unpack_history(data: bytes, scale: Scale) -> History:
    """The effective history of stored bytes: the last entry of an item wins, one with NaN takes it away.
    `scale`: of the ratings.

    In the order of the entries that survive. Raises `RecordCorrupt` for bytes that are no entries.
    """
    whole, rest = divmod(len(data), ENTRY_BYTES)
    if rest:
        raise RecordCorrupt(f"{len(data)} bytes are no entries of {ENTRY_BYTES}")
    table = np.frombuffer(data, dtype=ENTRY_DTYPE, count=whole)
    items = table["item_row"]
    # Stable, so that of the entries of an item the last written stands last.
    order = items.argsort(kind="stable")
    ordered = items[order]
    last = np.ones(whole, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    order = order[last]
    order.sort()
    kept = table[order]
    kept = kept[~np.isnan(kept["rating"])]
    if impossible(kept, scale).any():
        raise RecordCorrupt("an entry that no rating has")
    return History(
        kept["item_row"].astype(np.int32),
        np.ascontiguousarray(kept["rating"]),
        np.ascontiguousarray(kept["time"]),
    )


def impossible(entries: npt.NDArray[Any], scale: Scale) -> npt.NDArray[np.bool_]:
    """Say of each of `entries` (m,) whether no rating of `scale` can have it."""
    rating, time = entries["rating"], entries["time"]
    # NaN is a rating that was taken back, and a time that is not known: no comparison holds for it.
    found: npt.NDArray[np.bool_] = (rating < scale.low) | (rating > scale.high)
    found |= (entries["item_row"] > MAX_ITEM_ROW) | (np.abs(time) > MAX_STORED_TIME)
    return found


def pack_histories(histories: Sequence[History]) -> Histories:
    """Histories in the compressed form that `factors` folds in."""
    offsets = np.zeros(len(histories) + 1, dtype=np.int64)
    np.cumsum([len(history) for history in histories], out=offsets[1:])
    if not histories:
        return Histories(offsets, np.empty(0, np.int32), np.empty(0), np.empty(0))
    return Histories(
        offsets,
        np.concatenate([history.item_row for history in histories]),
        np.concatenate([history.rating for history in histories]),
        np.concatenate([history.time for history in histories]),
    )


def worth_compacting(data: bytes, history: History) -> bool:
    """Whether more than half of the stored entries, and at least 64, are superseded."""
    superseded = len(data) // ENTRY_BYTES - len(history)
    return superseded >= COMPACT_ENTRIES and superseded * ENTRY_BYTES * 2 > len(data)
