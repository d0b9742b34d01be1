"""The bytes of records and histories. Invariant: what is read is exactly what was written, or
`RecordCorrupt`.

An entry is an event: `type_code` 0 is a rating; the `rating` of another type is the value of the event. Of
the entries of an item and a type the last one wins. Little endian throughout; nothing is ever unpickled.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from factors import TYPE_CODES, Float32s, Float64s, Histories, Int32s, Int64s, Scale, UInt8s, typed_items
from featurestore.contexts import codec as context_codec

ENTRY = struct.Struct("<IBdd")
COUNTER = struct.Struct("<Q")
ENTRY_BYTES = ENTRY.size  # 21
CHECK = struct.Struct("<I")
# Of bytes behind which their own CRC-32 stands, whatever they are.
SOUND = 0x2144DF1C
# Of a record, whose length and CRC-32 tell it: of another one the user is folded in again.
RECORD_FORMAT = 1
# What stands before a record that is to be behind, as if it had seen nothing.
_OUTDATED = COUNTER.pack(0)
FORGOTTEN_ROW = 0xFFFFFFFF
"""The `item_row` of an event that says: this user was forgotten."""

ENTRY_DTYPE = np.dtype([("item_row", "<u4"), ("type_code", "u1"), ("rating", "<f8"), ("time", "<f8")])
# Seconds since 1970 beyond which a timestamp is no time: milliseconds by mistake pass, nanoseconds do not.
MAX_TIMESTAMP = 1e15

# 134 million items, beyond what an item table in memory can have.
MAX_ITEM_ROW = 2**32 // TYPE_CODES - 1
# 0 is a rating.
MAX_TYPE_CODE = TYPE_CODES - 1

# A history is rewritten without what was superseded when that is more than half of it and worth the write.
COMPACT_ENTRIES = 64


class RecordCorrupt(ValueError):  # noqa: N818 - says what happened
    """Bytes that were not written so. The caller treats the record as missing and folds it in again."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """The events of one user that are no ratings and hold, each type of an item once, in their order.

    `item_row`: int32 (e,); `type_code`: uint8 (e,), from 1; `value`, `time`: float64 (e,), `time` in seconds
    since 1970, NaN if unknown; `place`: int64 (e,), how many of the user's ratings stand before the event.
    """

    item_row: Int32s
    type_code: UInt8s
    value: Float64s
    time: Float64s
    place: Int64s

    def __len__(self) -> int:
        return len(self.item_row)


NO_FEEDBACK = Feedback(
    np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
)


@dataclass(frozen=True, slots=True)
class History:
    """The ratings of one user that hold, each item once, in the order in which they were made, and the other
    events of the user.

    `item_row`: int32 (m,); `rating`: float64 (m,); `time`: float64 (m,), seconds since 1970, NaN if unknown.
    `context`: float32 (m, k), NaN what was not given (`contexts/codec.py`); None where nothing was.
    """

    item_row: Int32s
    rating: Float64s
    time: Float64s
    feedback: Feedback = NO_FEEDBACK
    context: Float32s | None = None

    def __len__(self) -> int:
        return len(self.item_row)

    def only(self, ratings: Int64s, events: Int64s) -> "History":
        """Return the same with the ratings and the other events at these positions, ascending, alone."""
        feedback = self.feedback
        part = Feedback(
            feedback.item_row[events],
            feedback.type_code[events],
            feedback.value[events],
            feedback.time[events],
            np.searchsorted(ratings, feedback.place[events]),
        )
        context = None if self.context is None else self.context[ratings]
        return History(self.item_row[ratings], self.rating[ratings], self.time[ratings], part, context)

    @property
    def entries(self) -> int:
        """How many entries hold: ratings and other events."""
        return len(self.item_row) + len(self.feedback)

    def seen(self, consumed: Sequence[int]) -> Int32s:
        """Return the rows of the items that were rated, or of which there is an event of a type with one of
        these codes; a row may come several times.
        """
        feedback = self.feedback
        if not len(feedback):
            return self.item_row
        events = feedback.item_row[np.isin(feedback.type_code, consumed)]
        return np.concatenate([self.item_row, events])


@lru_cache(maxsize=64)
def record_dtype(width: int) -> np.dtype[Any]:
    """A record with a vector of `width` float32: the user's `n` that it has seen, the vector, and the CRC-32
    of both.
    """
    return np.dtype([("n", "<u8"), ("vector", "<f4", (width,)), ("check", "<u4")])


def record_table(n: Int64s, vectors: Float32s) -> npt.NDArray[Any]:
    """Records of `n` (u,) and `vectors` (u, width), `record_dtype` (u,)."""
    table = np.empty(len(n), dtype=record_dtype(vectors.shape[1]))
    table["n"], table["vector"] = n, vectors
    size, data = table.itemsize, table.view(np.uint8).data
    table["check"] = [crc32(data[end - size : end - CHECK.size]) for end in range(size, len(data) + 1, size)]
    return table


def pack_records(n: Int64s, vectors: Float32s) -> list[bytes]:
    """Records of `n` (u,) and `vectors` (u, width) as bytes, one a user."""
    table = record_table(n, vectors)
    data, stride = table.tobytes(), table.itemsize
    return [data[start : start + stride] for start in range(0, len(data), stride)]


def read_record(stored: bytes, size: int) -> bytes | None:
    """Return a stored record as `size` bytes: one that is to be behind with `n` 0; None if it is damaged."""
    outdated = len(stored) == size + COUNTER.size
    body = stored.removeprefix(_OUTDATED) if outdated else stored
    if len(body) != size or crc32(body) != SOUND:
        return None
    if not outdated:
        return body
    body = _OUTDATED + body[COUNTER.size : -CHECK.size]
    return body + CHECK.pack(crc32(body))


def damaged_records(data: bytes | memoryview, size: int) -> list[int]:
    """Return which of the records of `size` bytes in `data`, one behind the other, are not what was written.

    All are looked at together, one by one only where any is damaged: the CRC-32 of what goes on behind a
    sound record does not depend on what that record says.
    """
    count = len(data) // size
    if crc32(data) == _sound_together(size, count):
        return []
    return [k for k in range(count) if crc32(data[k * size : (k + 1) * size]) != SOUND]


# Each number of records that is read at once, of the generations of a process.
@lru_cache(maxsize=8192)
def _sound_together(size: int, count: int) -> int:
    """Return the CRC-32 of any `count` sound records of `size` bytes, one behind the other."""
    body = bytes(size - CHECK.size)
    return crc32((body + CHECK.pack(crc32(body))) * count)


def unpack_records(records: Sequence[bytes], width: int) -> tuple[npt.NDArray[np.uint64], Float32s]:
    """Records as `n` uint64 (u,) and vectors float32 (u, width), views of one buffer.

    Raises `RecordCorrupt`.
    """
    size = record_dtype(width).itemsize
    data = b"".join(records)
    if set(map(len, records)) - {size} or damaged_records(data, size):
        raise RecordCorrupt(f"a record that is not {size} bytes long, or has another CRC-32 than it says")
    table = np.frombuffer(data, record_dtype(width))
    return table["n"], table["vector"]


def has_events(data: bytes) -> bool:
    """Say whether stored entries have any that is no rating; the rest of a torn one is not looked at."""
    entries = np.frombuffer(data, dtype=ENTRY_DTYPE, count=len(data) // ENTRY_BYTES)
    return bool(entries["type_code"].any())


def has_ratings(data: bytes) -> bool:
    """Say whether stored entries have any that is a rating, or takes one back."""
    entries = np.frombuffer(data, dtype=ENTRY_DTYPE)
    return not entries["type_code"].all()


def rated_items(entries: npt.NDArray[Any]) -> Int64s:
    """Return the item rows of `entries` (m,), by which contexts are found; -1 where one is no rating."""
    return np.where(entries["type_code"] == 0, entries["item_row"].astype(np.int64), -1)


def pack_entry(item_row: int, rating: float, time: float, type_code: int = 0) -> bytes:
    """A history entry; a NaN `rating` takes the item's rating, or its event of this type, back."""
    return ENTRY.pack(item_row, type_code, rating, time)


def pack_history(history: History) -> bytes:
    """A history as entries."""
    feedback = history.feedback
    table = np.empty(history.entries, dtype=ENTRY_DTYPE)
    event = _event_places(history)
    rated = np.ones(len(table), dtype=np.bool_)
    rated[event] = False
    for name, of_ratings, of_events in (
        ("item_row", history.item_row, feedback.item_row),
        ("type_code", 0, feedback.type_code),
        ("rating", history.rating, feedback.value),
        ("time", history.time, feedback.time),
    ):
        table[name][rated], table[name][event] = of_ratings, of_events
    return table.tobytes()


def _event_places(history: History) -> Int64s:
    """Return at which place (e,) among all entries each event that is no rating stands."""
    return history.feedback.place + np.arange(len(history.feedback))


def pack_contexts(history: History) -> bytes:
    """The contexts of a history as entries; nothing where it has none."""
    if history.context is None:
        return b""
    given = np.flatnonzero(~np.isnan(history.context).all(axis=1))
    columns = history.item_row[given], history.time[given], history.context[given]
    return context_codec.pack_entries(*columns, [0, len(given)])[0]


def with_contexts(history: History, contexts: context_codec.Contexts) -> History:
    """Return a history whose ratings have their contexts among these."""
    found = context_codec.match(history.item_row, history.time, contexts)
    return history if found is None else replace(history, context=found)


def unpack_history(data: bytes, scale: Scale) -> History:
    """The effective history of stored bytes: the last entry of an item wins, one with NaN takes it away.
    `scale`: of the ratings. Contexts are not in these bytes: see `with_contexts`.

    In the order of the entries that survive. Raises `RecordCorrupt` for bytes that are no entries.
    """
    whole, rest = divmod(len(data), ENTRY_BYTES)
    if rest:
        raise RecordCorrupt(f"{len(data)} bytes are no entries of {ENTRY_BYTES}")
    table = np.frombuffer(data, dtype=ENTRY_DTYPE, count=whole)
    items, codes = table["item_row"], table["type_code"]
    typed = codes.any()
    if typed:
        items = typed_items(items, codes)
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
    if not typed:
        return _ratings_of(kept, NO_FEEDBACK)
    rated = kept["type_code"] == 0
    events = kept[~rated]
    feedback = Feedback(
        events["item_row"].astype(np.int32),
        np.ascontiguousarray(events["type_code"]),
        np.ascontiguousarray(events["rating"]),
        np.ascontiguousarray(events["time"]),
        np.cumsum(rated)[~rated],
    )
    return _ratings_of(kept[rated], feedback)


def _ratings_of(entries: npt.NDArray[Any], feedback: Feedback) -> History:
    return History(
        entries["item_row"].astype(np.int32),
        np.ascontiguousarray(entries["rating"]),
        np.ascontiguousarray(entries["time"]),
        feedback,
    )


def impossible(entries: npt.NDArray[Any], scale: Scale) -> npt.NDArray[np.bool_]:
    """Say of each of `entries` (m,) whether no rating of `scale`, and no other event, can have it."""
    rating, time, code = entries["rating"], entries["time"], entries["type_code"]
    # NaN is a rating that was taken back, and a time that is not known: no comparison holds for it.
    found: npt.NDArray[np.bool_] = (rating < scale.low) | (rating > scale.high)
    if code.any():
        # The value of an event is any number.
        found = np.where(code > 0, np.isinf(rating) | (code > MAX_TYPE_CODE), found)
    found |= (entries["item_row"] > MAX_ITEM_ROW) | (np.abs(time) > MAX_TIMESTAMP)
    return found


def pack_histories(histories: Sequence[History]) -> Histories:
    """The ratings of histories in the compressed form that `factors` folds in."""
    packed = _compressed([(each.item_row, each.rating, each.time) for each in histories])
    if all(each.context is None for each in histories):
        return packed
    return replace(packed, context=context_codec.joined([(len(each), each.context) for each in histories]))


def pack_feedback(histories: Sequence[History]) -> Histories:
    """Histories with the events of all types, in their order, as the ranking head folds them in; where all
    are ratings, what `pack_histories` gives.
    """
    if not any(len(each.feedback) for each in histories):
        return pack_histories(histories)
    tables = [np.frombuffer(pack_history(each), dtype=ENTRY_DTYPE) for each in histories]
    packed = _compressed([(each["item_row"], each["rating"], each["time"]) for each in tables])
    codes = np.concatenate([each["type_code"] for each in tables])
    return replace(packed, other_row=packed.other_row.astype(np.int32), type_code=codes)


def _compressed(parts: Sequence[tuple[npt.NDArray[Any], Float64s, Float64s]]) -> Histories:
    """Return parts (item rows, values, times) one behind the other."""
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(rows) for rows, _, _ in parts], out=offsets[1:])
    if not parts:
        return Histories(offsets, np.empty(0, np.int32), np.empty(0), np.empty(0))
    rows, values, times = zip(*parts, strict=True)
    return Histories(offsets, np.concatenate(rows), np.concatenate(values), np.concatenate(times))


def worth_compacting(data: bytes, history: History) -> bool:
    """Whether more than half of the stored entries, and at least 64, are superseded."""
    superseded = len(data) // ENTRY_BYTES - history.entries
    return superseded >= COMPACT_ENTRIES and superseded * ENTRY_BYTES * 2 > len(data)
