"""Many ids at once, without an object an id: as columns of one buffer, the rows of many, and their order.

Invariant: what is computed here of an id depends on its bytes alone; none is mistaken for another.
"""

import asyncio
import heapq
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile

import numpy as np
import numpy.typing as npt

from factors import Int32s, Int64s

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

# An id is compared and mixed as numbers of 64 bits.
WORD_BYTES = 8
# A buffer goes on for so long behind its last id, so that the last word of it can be read whole.
ROOM_BYTES = WORD_BYTES
# An id is filled up with 255, which is no byte of UTF-8: it is like no other.
# What is left as it is and what is filled up of a word, by the bytes of the id that are in it.
_FILL = np.array([(1 << 64) - (1 << 8 * k) for k in range(WORD_BYTES)] + [0], dtype=np.uint64)
# A column of bytes costs as much as the checksum of an id that is an object, and such an object, together
# cost for so many bytes.
_SHORT_BYTES = 40
# Rounds of looking for repeated ids. Each halves, at least, what is left; an id that stays twice does no
# harm.
_ROUNDS = 3
# Longer ids are few, and would make each row of a table take as much room.
_MOST_WORDS = 5
# Ids without a seat are a fifth after the first table, a thousandth after the fourth.
_TABLES = 4
# With one seat an id, more than a third would stay without after the first table.
_SEATS_PER_ID = 2
# Made into words between two looks of other threads at the interpreter.
_AT_ONCE = 8_192
# So few are sorted in 1 ms.
_FEW = 1_000


@dataclass(frozen=True, slots=True)
class Ids:
    """m ids in `data` uint8, which goes on for `ROOM_BYTES` behind the last one; `starts`, `lengths` int64
    (m,).
    """

    data: Bytes
    starts: Int64s
    lengths: Int64s

    @classmethod
    def of(cls, ids: Sequence[bytes]) -> "Ids":
        """Ids that are objects."""
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        data = np.frombuffer(b"".join([*ids, bytes(ROOM_BYTES)]), dtype=np.uint8)
        return cls(data, np.cumsum(lengths) - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[bytes]:
        data = self.data.tobytes()
        starts = self.starts.tolist()
        return iter(
            [
                data[start : start + length]
                for start, length in zip(starts, self.lengths.tolist(), strict=True)
            ]
        )

    def take(self, places: Int64s | slice) -> "Ids":
        """Those at `places`."""
        return Ids(self.data, self.starts[places], self.lengths[places])

    def words(self, count: int | None = None) -> Words:
        """The bytes of each as numbers (w, m), filled up so that they differ where the ids do. `count`: of
        them, in place of as many as the longest one needs.
        """
        if count is None:
            count = -(-int(self.lengths.max(initial=0)) // WORD_BYTES)
        words = np.empty((count, len(self)), dtype=np.uint64)
        at = np.ndarray((len(self.data) - WORD_BYTES + 1,), np.dtype("<u8"), self.data, strides=(1,))
        for number in range(count):
            # Of an id that ends before, any word: it is filled up as a whole.
            begin = np.minimum(number * WORD_BYTES, self.lengths)
            within = np.minimum(self.lengths - begin, WORD_BYTES)
            np.bitwise_or(at[self.starts + begin], _FILL.take(within), out=words[number])
        return words


def mixed(words: Words, keys: Words) -> Words:
    """A number (m,) of each id of `words` (w, m) that looks random; `keys` (> w,) are odd numbers."""
    number: Words = words[0] * keys[0]
    for word, key in zip(words[1:], keys[1:], strict=False):
        number ^= number >> np.uint64(29)
        number += word
        number *= key
    number ^= number >> np.uint64(32)
    number *= keys[-1]
    return number


def distinct(ids: Ids) -> tuple[Ids, Int64s | None]:
    """Ids, hardly any of them twice, and where each of `ids` stands in there; None: as before."""
    m = len(ids)
    if m < 2:
        return ids, None
    words = ids.words()
    bits = max(4, (4 * m - 1).bit_length())
    hashes = mixed(words, _keys(len(words)))
    stands_for = np.arange(m)
    left = stands_for
    seats = np.empty(1 << bits, dtype=np.int64)
    for number in range(_ROUNDS):
        seat = (hashes[left] << np.uint64(number * 12)) >> np.uint64(64 - bits)
        # One of those that come to a seat has it.
        seats[seat] = left
        has = seats[seat]
        same = np.ones(len(left), dtype=np.bool_)
        for word in words:
            same &= word[has] == word[left]
        stands_for[left[same]] = has[same]
        left = left[~same]
        if not len(left):
            break
    first = np.flatnonzero(stands_for == np.arange(m))
    if len(first) == m:
        return ids, None
    place = np.empty(m, dtype=np.int64)
    place[first] = np.arange(len(first))
    return ids.take(first), place[stands_for]


def checksums(ids: Ids | Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """`zlib.crc32` of each id (m,)."""
    if not isinstance(ids, Ids) or (longest := int(ids.lengths.max(initial=0))) > _SHORT_BYTES:
        return np.fromiter(map(zlib.crc32, ids), dtype=np.uint32, count=len(ids))
    by_distance, whole = _checksum_tables()
    sums = whole.take(ids.lengths)
    for distance in range(longest):
        # The last byte, the one before, ...; of an id that is over nothing is added.
        has = ids.lengths > distance
        byte = ids.data.take(np.where(has, ids.starts + ids.lengths - 1 - distance, 0))
        part = by_distance[distance].take(byte)
        sums ^= part if has.all() else np.where(has, part, np.uint32(0))
    return sums


@lru_cache(maxsize=1)
def _checksum_tables() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """What a byte adds to a checksum by its distance from the end, (40, 256), and what the length alone adds.

    A cyclic redundancy check is linear, so that the sum of a text is the sum of those of its bytes.
    """
    whole = np.array([zlib.crc32(bytes(length)) for length in range(_SHORT_BYTES + 1)], dtype=np.uint32)
    parts = np.array(
        [
            [zlib.crc32(bytes([byte, *bytes(distance)])) for byte in range(256)]
            for distance in range(_SHORT_BYTES)
        ],
        dtype=np.uint32,
    )
    return parts ^ whole[1:, None], whole


def _random_keys(count: int) -> Words:
    """Keys of `mixed` for ids of up to `count` words: random, so that no caller can choose ids that meet."""
    words = np.random.default_rng().integers(0, 1 << 63, count + 1, dtype=np.uint64)
    return words * np.uint64(2) + np.uint64(1)


_keys = lru_cache(maxsize=64)(_random_keys)


class RowTable:
    """The rows of ids that stand in their order: `ids[row]`. 20 to 30 bytes an id of up to 8 bytes.

    A row that is found is that of the id; one that is not found may still be there, and the registry's
    dictionary knows. An id takes a seat by its hash. Of ids that want the same seat one has it, and the
    others go on to the next, smaller table.

    Building takes 0.1 to 0.2 microseconds an id and may be done in a thread.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        self._count = len(ids)
        longest = min(_MOST_WORDS, -(-max(map(len, ids), default=0) // WORD_BYTES))
        self._keys = _random_keys(longest)
        self._words = np.empty((longest, len(ids)), dtype=np.uint64)
        hashes = np.empty(len(ids), dtype=np.uint64)
        seated = np.empty(len(ids), dtype=np.bool_)
        for start in range(0, len(ids), _AT_ONCE):
            some = Ids.of(ids[start : start + _AT_ONCE])
            part = slice(start, start + len(some))
            words = self._words[:, part] = some.words(longest)
            seated[part] = some.lengths <= longest * WORD_BYTES
            hashes[part] = mixed(words, self._keys)
        self._tables: list[Int32s] = []
        left = np.flatnonzero(seated)
        for number in range(_TABLES):
            seats = np.full(1 << max(4, (_SEATS_PER_ID * len(left)).bit_length()), -1, dtype=np.int32)
            seat = _seat(hashes[left], number, len(seats))
            seats[seat] = left
            left = left[seats[seat] != left]
            self._tables.append(seats)

    def __len__(self) -> int:
        return self._count

    def find(self, ids: Ids) -> Int64s:
        """The row of each (m,), -1 where it is not found."""
        rows = np.full(len(ids), -1, dtype=np.int64)
        if not self._count:
            return rows
        words = ids.words(len(self._words))
        fits = ids.lengths <= len(words) * WORD_BYTES
        hashes = mixed(words, self._keys)
        left: Int64s | None = None if fits.all() else np.flatnonzero(fits)
        for number, seats in enumerate(self._tables):
            hashed = hashes if left is None else hashes[left]
            found = seats.take(_seat(hashed, number, len(seats)))
            same = found >= 0
            for known, wanted in zip(self._words, words, strict=True):
                # A free seat says -1: the last row, which does no harm.
                same &= known[found] == (wanted if left is None else wanted[left])
            mine = np.flatnonzero(same) if left is None else left[same]
            rows[mine] = found[same]
            left = np.flatnonzero(~same) if left is None else left[~same]
            if not len(left):
                break
        return rows


def _seat(hashes: Words, number: int, seats: int) -> Int64s:
    """Where each of `hashes` wants to sit in table `number` of so many `seats`, a power of two."""
    again = hashes * np.uint64((0x9E3779B97F4A7C15 << number | 1) & 0xFFFFFFFFFFFFFFFF) if number else hashes
    return (again >> np.uint64(65 - seats.bit_length())).view(np.int64)


class IdOrder:
    """The order of `ids`, a list that only grows, read page by page: a page is found in the logarithm of how
    many there are. 4 bytes an id, once it was asked for; sorting, which a thread does that leaves the
    interpreter to others, takes 1 to 2 microseconds an id of up to 16 bytes.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        self._ids = ids
        # Places of ids, those of a run in the order of the ids. Each run goes on where the one before ends
        # and is less than half as long, so that there are few, and an id is sorted a few times in all.
        self._runs: list[Int32s] = []
        self._growing = asyncio.Lock()

    async def grow(self) -> None:
        """Take in all ids that the list has by now."""
        async with self._growing:
            start, stop = sum(map(len, self._runs)), len(self._ids)
            if start == stop:
                return
            runs = self._runs[:]
            while runs and len(runs[-1]) <= 2 * (stop - start):
                start -= len(runs.pop())
            if stop - start <= _FEW:
                run = _in_order(self._ids, start, stop)
            else:
                run = await asyncio.to_thread(_in_order, self._ids, start, stop)
            self._runs = [*runs, run]

    def page(self, n: int, *, prefix: bytes = b"", after: bytes = b"") -> list[bytes]:
        """Return up to `n` of the ids that were taken in, which begin with `prefix`, behind `after`."""
        found = [self._of_run(run, n, prefix, after) for run in self._runs]
        return list(islice(heapq.merge(*found), n))

    def _of_run(self, run: Int32s, n: int, prefix: bytes, after: bytes) -> list[bytes]:
        id_at = self._ids.__getitem__
        if after and after >= prefix:
            first = bisect_right(run, after, key=id_at)
        else:
            first = bisect_left(run, prefix, key=id_at)
        ids = map(id_at, run[first : first + n].tolist())
        return list(takewhile(lambda item_id: item_id.startswith(prefix), ids))


def _in_order(ids: Sequence[bytes], start: int, stop: int) -> Int32s:
    """Return the places from `start` to `stop` in the order of the ids there."""
    parts = [(at, min(at + _AT_ONCE, stop)) for at in range(start, stop, _AT_ONCE)]
    lengths = np.concatenate([[len(item_id) for item_id in ids[first:last]] for first, last in parts])
    # By words from the last to the first, each time keeping the order among equals. One that ends before is
    # filled up with zeros, which ids may have, too: of two that are equal then the shorter one comes first.
    order = np.argsort(lengths, kind="stable")
    for at in reversed(range(0, int(lengths.max()), WORD_BYTES)):
        words = np.empty(stop - start, dtype=np.uint64)
        for first, last in parts:
            part = np.array([item_id[at : at + WORD_BYTES] for item_id in ids[first:last]], dtype="S8")
            words[first - start : last - start] = part.view(">u8")
        order = order[np.argsort(words[order], kind="stable")]
    return (order + start).astype(np.int32)
