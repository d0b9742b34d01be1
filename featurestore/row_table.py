"""Rows of many ids at once, without an object an id.

Invariant: a row that is found is that of the id; one that is not found may still be there, and the registry's
dictionary knows.

An id takes a seat by its hash. Of ids that want the same seat one has it, and the others go on to the next,
smaller table. Hashes are keyed at random, so that no caller can choose ids that meet.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from factors import Int64s
from featurestore.id_columns import WORD_BYTES, Ids, Words, mixed, random_keys

# Longer ids are few, and would make each take as much room.
_MOST_WORDS = 5
# Ids without a seat are a fifth after the first table, a thousandth after the fourth.
_TABLES = 4
# With one seat an id, more than a third would stay without after the first table.
_SEATS_PER_ID = 2
# Read, and made into words, between two looks of other threads at the interpreter.
_AT_ONCE = 8_192

_Seats = npt.NDArray[np.int32]


class RowTable:
    """The rows of ids that stand in their order: `ids[row]`. 20 to 30 bytes an id of up to 8 bytes.

    Building takes 0.1 to 0.2 microseconds an id and may be done in a thread.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        self._count = len(ids)
        longest = min(_MOST_WORDS, -(-max(map(len, ids), default=0) // WORD_BYTES))
        self._keys = random_keys(longest, np.random.default_rng())
        self._words = np.empty((longest, len(ids)), dtype=np.uint64)
        hashes = np.empty(len(ids), dtype=np.uint64)
        seated = np.empty(len(ids), dtype=np.bool_)
        for start in range(0, len(ids), _AT_ONCE):
            some = Ids.of(ids[start : start + _AT_ONCE])
            part = slice(start, start + len(some))
            words = self._words[:, part] = some.words(longest)
            seated[part] = some.lengths <= longest * WORD_BYTES
            hashes[part] = mixed(words, self._keys)
        self._tables: list[_Seats] = []
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
