"""The bytes of contexts of ratings: what was told with a rating, up to 32 numbers and categories.

A context is float32 (k,) in the order of the fields of the namespace's schema, NaN where a field was not
given; fields are only ever appended, so one of an older schema is shorter. As bytes it is its numbers that
were given, then a mask of their fields (uint32). An entry of a user's contexts has item row and time of its
rating before the mask, 16 bytes at its end, so that the latest entries can be read from the end. Where a
field from the 33rd on is given, a second mask stands behind the numbers; an entry says so by the highest bit
of its item row.

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

# As many as two masks have bits: those of a rating, and as many that the store had before.
MAX_FIELDS = 64
# Given with one rating: those that a store has at a time.
MOST_GIVEN = 32
# Of an entry without a field: item row, time, mask.
LEAST_BYTES = 16
# Of one with as many fields as may be given, and a second mask.
MOST_BYTES = LEAST_BYTES + 4 * MOST_GIVEN + 4
_FOOT = LEAST_BYTES // 4
_WORD = np.dtype("<u4")
_FIELDS = np.arange(MAX_FIELDS, dtype=np.uint64)
# Of an item row with a second mask: of ratings the bits above those of rows are free.
_SECOND = np.uint32(1 << 31)
# Odd: item rows and owners spread over all bits of the keys (multiples of 2^64 over the golden ratio, and of
# a prime of xxHash).
_OF_ROW, _OF_OWNER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)

Words = npt.NDArray[np.uint32]
Masks = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
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
    feet = np.empty((len(item_row), _FOOT - 1), dtype=_WORD)
    feet[:, 0] = item_row
    feet[:, 1:] = np.ascontiguousarray(time, dtype="<f8").view(_WORD).reshape(-1, 2)
    words, stops = _packed(context, feet)
    data, edges = words.tobytes(), 4 * np.concatenate([[0], stops])[np.asarray(ends)]
    return [data[start:stop] for start, stop in pairwise(edges.tolist())]


def pack_cells(context: Float32s) -> tuple[bytes, Int64s]:
    """Return contexts (m, k) one behind the other, and where each ends (m,), in bytes; one of which nothing
    was given takes none.
    """
    given = ~np.isnan(context).all(axis=1)
    words, stops = _packed(context[given], np.zeros((int(given.sum()), 0), dtype=_WORD))
    ends = np.concatenate([[0], stops])[np.cumsum(given)]
    return words.tobytes(), 4 * ends


def unpack_cells(data: bytes, ends: Int64s) -> Float32s:
    """Return the contexts (m, k) of `pack_cells`, all NaN where there is none. Raises `ValueError` for bytes
    that are no contexts.
    """
    sizes = np.diff(ends, prepend=0)
    if (sizes % 4).any() or len(data) % 4:
        raise ValueError("a context whose length is none")
    words, there = np.frombuffer(data, dtype=_WORD), np.flatnonzero(sizes)
    stops, lengths = ends[there] // 4, sizes[there] // 4
    # With a second mask its length is more than the first one accounts for, whatever that is.
    second = (_counts(words[stops - 1]) + 1 != lengths) & (lengths > 1)
    masks = _masks(words, stops - 1, stops - 2, second)
    if (_counts(masks) + 1 + second != lengths).any():
        raise ValueError("a context whose length is not that of its fields")
    found, _ = _values(words, stops - 1 - second, masks)
    table = np.full((len(ends), found.shape[1]), np.nan, dtype=np.float32)
    table[there] = found
    return table


def unpack(data: bytes, *, whole: bool = True) -> Contexts:
    """Return entries; `whole`: all that there are, not only the latest, of which the first may be cut."""
    words = np.frombuffer(data, dtype=_WORD, offset=len(data) % 4)
    # Of each word, as if an entry ended with it.
    sizes, second = _counts(words) + _FOOT, np.zeros(len(words), dtype=np.bool_)
    second[_FOOT - 1 :] = words[: 1 - _FOOT] & _SECOND > 0
    sizes += second
    sizes[_FOOT:] += np.where(second[_FOOT:], _counts(words[:-_FOOT]), 0)
    lengths, stops, at = sizes.tolist(), list[int](), len(words)
    while at > 0:
        stops.append(at)
        at -= lengths[at - 1]
    if at < 0:
        stops.pop()
    ends = np.array(stops[::-1], dtype=np.int64)
    more = second[ends - 1]
    value, finite = _values(words, ends - _FOOT - more, _masks(words, ends - 1, ends - _FOOT - 1, more))
    feet = words[ends[:, None] + np.arange(-_FOOT, -1)]
    time = np.ascontiguousarray(feet[:, 1:]).view("<f8").reshape(-1).astype(np.float64)
    sound = finite and not (whole and (at < 0 or len(data) % 4))
    return Contexts((feet[:, 0] & ~_SECOND).astype(np.int64), time, value, sound)


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


def _packed(context: Float32s, feet: Words) -> tuple[Words, Int64s]:
    """Return contexts (m, k), each followed by its foot and its mask, and where each ends, in words."""
    given = ~np.isnan(context)
    masks = (given.astype(np.uint64) << _FIELDS[: given.shape[1]]).sum(axis=1, dtype=np.uint64)
    first, others = masks.astype(_WORD), (masks >> np.uint64(32)).astype(_WORD)
    second, counts, tail = others > 0, given.sum(axis=1), feet.shape[1] + 1
    stops = np.cumsum(counts + tail + second)
    words = np.empty(int(stops[-1]) if len(stops) else 0, dtype=_WORD)
    words[stops - 1] = first
    words[stops[second] - tail - 1] = others[second]
    words[stops[:, None] + np.arange(-tail, -1)] = feet
    if feet.shape[1]:
        words[stops[second] - tail] |= _SECOND
    words[_places(stops - tail - second, counts)] = context[given].astype("<f4").view(_WORD)
    return words, stops


def _masks(words: Words, first: Int64s, others: Int64s, second: Bools) -> Masks:
    """Return the mask of each context (c,), of up to 64 fields, whose words stand at `first`, and where there
    is a `second` one at `others`.
    """
    masks = words[first].astype(np.uint64)
    masks[second] |= words[others[second]].astype(np.uint64) << np.uint64(32)
    return masks


def _values(words: Words, stops: Int64s, masks: Masks) -> tuple[Float32s, bool]:
    """Return the contexts (c, k) whose numbers end at `stops`, and whether each is a number; others count as
    not given.
    """
    width = int(masks.max(initial=0)).bit_length()
    given = ((masks[:, None] >> _FIELDS[:width]) & np.uint64(1)).astype(np.bool_)
    table = np.full((len(masks), width), np.nan, dtype=np.float32)
    numbers = words[_places(stops, _counts(masks))].view("<f4")
    table[given] = numbers
    infinite = np.isinf(table)
    table[infinite] = np.nan
    return table, not infinite.any() and not np.isnan(numbers).any()


def _places(stops: Int64s, counts: Int64s) -> Int64s:
    """Return the places of `counts` (c,) words before each of `stops` (c,)."""
    before = np.cumsum(counts) - counts
    places: Int64s = np.repeat(stops - counts - before, counts) + np.arange(int(counts.sum()))
    return places


def _counts(masks: Words | Masks) -> Int64s:
    return np.bitwise_count(masks).astype(np.int64)


def _keys(item_row: Rows, time: Float64s, owner: Int64s | int) -> npt.NDArray[np.uint64]:
    """Return 64 bits by which ratings are told apart."""
    keys: npt.NDArray[np.uint64] = np.asarray(item_row).astype(np.uint64) * _OF_ROW
    keys ^= time.view(np.uint64)
    keys += np.asarray(owner, dtype=np.int64).astype(np.uint64) * _OF_OWNER
    return keys
