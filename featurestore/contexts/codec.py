"""The bytes of contexts of ratings: what was told with a rating, up to 32 numbers and categories.

A context is float32 (k,) in the order of the fields of the namespace's schema, NaN where a field was not
given; fields are only ever appended, so one of an older schema is shorter. An entry of a user's contexts is
the k numbers, then item row and time of its rating, then k, so that the latest entries can be read from the
end.

Invariant: a context belongs to the ratings of its item row and time, bit by bit, and the last one wins; one
that is of no rating, or that is damaged, counts as not given. Little endian throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float32s, Float64s, Int64s

# Of a schema: those that a store has at a time, and as many that were deleted.
MAX_FIELDS = 64
# Of an entry without a field: item row, time, k.
LEAST_BYTES = 16
_FOOT = LEAST_BYTES // 4
_WORD = np.dtype("<u4")
# Odd: item rows and owners spread over all bits of the keys (multiples of 2^64 over the golden ratio, and of
# a prime of xxHash).
_OF_ROW, _OF_OWNER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)

Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Contexts:
    """Entries as written, the last one last. `item_row` int64 (c,), as history entries have it; `time`
    float64 (c,); `value` float32 (c, k). `sound`: nothing among the bytes was damaged, as far as they tell.
    """

    item_row: Int64s
    time: Float64s
    value: Float32s
    sound: bool = True


def pack_entries(item_row: Rows, time: Float64s, context: Float32s, ends: Sequence[int]) -> list[bytes]:
    """Return the entries of ratings: those `ends[j]` to `ends[j + 1]` as one piece, for each j. `item_row`,
    `time` (m,); `context` (m, k), with an entry also for a rating without any.
    """
    rows, width = context.shape
    words = np.empty((rows, width + _FOOT), dtype=_WORD)
    words[:, :width] = np.ascontiguousarray(context, dtype="<f4").view(_WORD)
    words[:, width] = item_row
    words[:, width + 1 : -1] = np.ascontiguousarray(time, dtype="<f8").view(_WORD).reshape(-1, 2)
    words[:, -1] = width
    return [words[start:stop].tobytes() for start, stop in pairwise(ends)]


def pack_cells(context: Float32s) -> tuple[bytes, Int64s]:
    """Return contexts (m, k) one behind the other, and where each ends (m,), in bytes; one of which nothing
    was given takes none.
    """
    given = ~np.isnan(context).all(axis=1)
    return context[given].astype("<f4").tobytes(), 4 * context.shape[1] * np.cumsum(given)


def unpack_cells(data: bytes, ends: Int64s) -> Float32s:
    """Return the contexts (m, k) of `pack_cells`, of one batch or of several, all NaN where there is none.
    Raises `ValueError` for bytes that are no contexts.
    """
    sizes = np.diff(ends, prepend=0)
    if (
        (sizes % 4).any()
        or (sizes < 0).any()
        or (sizes > 4 * MAX_FIELDS).any()
        or len(data) != ends[-1:].sum()
    ):
        raise ValueError("a context whose length is none")
    table, _ = _values(np.frombuffer(data, dtype=_WORD), ends // 4, sizes // 4)
    return table


def unpack(data: bytes, *, whole: bool = True) -> Contexts:
    """Return entries; `whole`: all that there are, not only the latest, of which the first may be cut."""
    words = np.frombuffer(data, dtype=_WORD, offset=len(data) % 4)
    widths, stops, at = words.tolist(), list[int](), len(words)
    while at > 0 and widths[at - 1] <= MAX_FIELDS:
        stops.append(at)
        at -= widths[at - 1] + _FOOT
    if at < 0:
        stops.pop()
    ends = np.array(stops[::-1], dtype=np.int64)
    value, finite = _values(words, ends - _FOOT, words[ends - 1].astype(np.int64))
    feet = words[ends[:, None] + np.arange(-_FOOT, -1)]
    time = np.ascontiguousarray(feet[:, 1:]).view("<f8").reshape(-1).astype(np.float64)
    sound = finite and at <= 0 and not (whole and (at < 0 or len(data) % 4))
    return Contexts(feet[:, 0].astype(np.int64), time, value, sound)


def match(
    item_row: Rows,
    time: Float64s,
    contexts: Contexts,
    owners: tuple[Int64s, Int64s] | None = None,
) -> Float32s | None:
    """Return the context of each rating (m,), (m, k), NaN where it has none; None where none has any.
    `owners`: position of the user of each rating, and of each of the entries, where there are several.
    """
    if not len(contexts.item_row) or not len(item_row):
        return None
    of_ratings, of_entries = owners or (0, 0)
    wanted = _keys(item_row, time, of_ratings)
    keys = _keys(contexts.item_row, contexts.time, of_entries)
    # Stable, so that of the entries of a rating the last written stands last.
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys, wanted, side="right", sorter=order) - 1
    entry = order[np.maximum(place, 0)]
    # Two that share 64 bits without being the same: once in a great while, and it counts as not given.
    same = (keys[entry] == wanted) & (contexts.item_row[entry] == item_row)
    same &= contexts.time.view(np.uint64)[entry] == time.view(np.uint64)
    found = np.where(same[:, None], contexts.value[entry], np.float32(np.nan))
    return trimmed(found)


def trimmed(context: Float32s) -> Float32s | None:
    """Return contexts (m, k) up to the last field that any of them gives; None where none gives any."""
    fields = np.flatnonzero(~np.isnan(context).all(axis=0))
    return np.ascontiguousarray(context[:, : fields[-1] + 1]) if len(fields) else None


def joined(parts: Sequence[tuple[int, Float32s | None]]) -> Float32s | None:
    """Return the contexts of several columns of ratings, one behind the other: how many ratings each has, and
    their contexts. None where none has any.
    """
    width = max((part.shape[1] for _, part in parts if part is not None), default=0)
    if not width:
        return None
    table = np.full((sum(count for count, _ in parts), width), np.nan, dtype=np.float32)
    start = 0
    for count, part in parts:
        if part is not None:
            table[start : start + count, : part.shape[1]] = part
        start += count
    return table


def digests(count: int, context: Float32s | None) -> npt.NDArray[np.uint64]:
    """Return 64 bits of each context (m,), 0 where nothing was given; `count`: how many they are."""
    found = np.zeros(count, dtype=np.uint64)
    for field, column in enumerate([] if context is None else context.T):
        number = (np.ascontiguousarray(column).view(_WORD).astype(np.uint64) + np.uint64(1)) * _OF_ROW
        number ^= number >> np.uint64(29)
        found += np.where(np.isnan(column), np.uint64(0), number * (_OF_OWNER + np.uint64(2 * field)))
    return found


def of_users(pieces: Sequence[bytes], owner: Sequence[int]) -> tuple[Contexts, Int64s]:
    """Return the entries of several users, and the user of each: `pieces[j]` are all of `owner[j]`."""
    parts = [unpack(piece) for piece in pieces]
    counts = [len(part.item_row) for part in parts]
    value = joined([(count, part.value) for count, part in zip(counts, parts, strict=True)])
    every = Contexts(
        np.concatenate([np.zeros(0, np.int64), *[part.item_row for part in parts]]),
        np.concatenate([np.zeros(0), *[part.time for part in parts]]),
        np.zeros((sum(counts), 0), np.float32) if value is None else value,
        all(part.sound for part in parts),
    )
    return every, np.repeat(np.asarray(owner, dtype=np.int64), counts)


def _values(words: npt.NDArray[np.uint32], stops: Int64s, widths: Int64s) -> tuple[Float32s, bool]:
    """Return the contexts (c, k) of so many numbers that end at `stops`, and whether none is infinite, which
    counts as not given.
    """
    table = np.full((len(stops), int(widths.max(initial=0))), np.nan, dtype=np.float32)
    before = np.cumsum(widths) - widths
    places = np.repeat(stops - widths - before, widths) + np.arange(int(widths.sum()))
    table[np.arange(table.shape[1]) < widths[:, None]] = words[places].view("<f4")
    infinite = np.isinf(table)
    table[infinite] = np.nan
    return table, not infinite.any()


def _keys(item_row: Rows, time: Float64s, owner: Int64s | int) -> npt.NDArray[np.uint64]:
    """Return 64 bits by which ratings are told apart."""
    keys: npt.NDArray[np.uint64] = np.asarray(item_row).astype(np.uint64) * _OF_ROW
    keys ^= time.view(np.uint64)
    keys += np.asarray(owner, dtype=np.int64).astype(np.uint64) * _OF_OWNER
    return keys
