"""Many ids as columns: where each lies in one buffer, without an object an id.

Invariant: what is computed here of an id depends on its bytes alone; none is mistaken for another.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from factors import Int64s

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


@lru_cache(maxsize=64)
def _keys(count: int) -> Words:
    return random_keys(count, np.random.default_rng())


def random_keys(count: int, rng: np.random.Generator) -> Words:
    """Keys of `mixed` for ids of up to `count` words: random, so that no caller can choose ids that meet."""
    return rng.integers(0, 1 << 63, count + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
