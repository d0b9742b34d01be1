"""Large batches of lookups: written, and their replies read, without an object for each user or field.

Invariant: what is written asks for each id once, in an order that is told; what is taken of the replies is
what a reader of RESP finds. Anything else is left to that reader, with all bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Int64s
from featurestore.id_columns import Ids
from featurestore.keys import partitions_of
from featurestore.wire.resp import UnusualReplies

_ARRAY = b"*2\r\n$"
_HEAD_BYTES = len(b"*2\r\n$1\r\n")
# A head as a number: with no digit in it, and where that stands.
_HEAD = np.uint64(int.from_bytes(b"*2\r\n$\0\r\n", "little"))
_SHIFT, _BYTE = np.uint64(8 * len(_ARRAY)), np.uint64(255)
_ZERO = ord("0")
_END = b"\r\n"
# The length of `n` is one digit: a user with a billion ratings is left to the usual reader.
_MOST_DIGITS = 9

# Places in the buffer: a range where they are evenly spaced.
_Places = range | Int64s


@dataclass(frozen=True, slots=True)
class Lookups:
    """Commands for ids. `order` int64 (m,): which id each command asks for; `ends` int64 (m + 1,): where each
    lies in `payload`.
    """

    order: Int64s
    payload: bytes
    ends: Int64s

    def blocks(self, size: int) -> Iterator[tuple[slice, bytes]]:
        """Up to `size` commands at a time: which, and their bytes."""
        for start in range(0, len(self.order), size):
            stop = min(start + size, len(self.order))
            yield slice(start, stop), self.payload[self.ends[start] : self.ends[stop]]


def write_lookups(ids: Ids, prefixes: tuple[bytes, ...], head: bytes, tail: bytes) -> Lookups:
    """A command for each of `ids`: `head % (length of the key, key)`, `tail`.

    `prefixes`: of keys, by partition; the id follows.
    """
    partition = partitions_of(ids, len(prefixes))
    kinds = sorted(set(map(len, prefixes)))
    kind_of = np.array([kinds.index(len(prefix)) for prefix in prefixes], dtype=np.uint16)
    # Commands of one length after the other, so that they are the rows of a table.
    sort = ids.lengths.astype(np.uint16) * np.uint16(len(kinds)) + kind_of[partition]
    order = np.argsort(sort, kind="stable")
    counts = np.bincount(sort)
    parts, widths, start = [], [], 0
    for value in np.flatnonzero(counts).tolist():
        length, kind = divmod(value, len(kinds))
        some = order[start : start + int(counts[value])]
        start += len(some)
        members = np.flatnonzero(kind_of == kind)
        heads = [head % (len(prefixes[k]) + length, prefixes[k]) for k in members.tolist()]
        place = np.zeros(len(prefixes), dtype=np.int64)
        place[members] = np.arange(len(members))
        pieces = [f"V{size}" for size in (len(heads[0]), length, len(tail))]
        commands = np.empty(len(some), dtype=",".join(pieces))
        commands["f0"] = np.frombuffer(b"".join(heads), dtype=pieces[0])[place[partition[some]]]
        commands["f1"] = _anywhere(ids.data, pieces[1])[ids.starts[some]]
        commands["f2"] = np.frombuffer(tail, dtype=pieces[2])[0]
        parts.append(commands.tobytes())
        widths.append(np.full(len(some), commands.itemsize))
    ends = np.zeros(len(order) + 1, dtype=np.int64)
    if widths:
        np.cumsum(np.concatenate(widths), out=ends[1:])
    return Lookups(order, b"".join(parts), ends)


def _anywhere(data: Any, kind: str | np.dtype[Any]) -> npt.NDArray[Any]:
    """The field of this type that begins at each byte of `data`."""
    dtype = np.dtype(kind)
    return np.ndarray((len(data) - dtype.itemsize + 1,), dtype, data, strides=(1,))


# A usual reply is `*2 $d n $l record`: `n` of d < 10 digits, the record of l bytes, which is known. So one
# digit says where the next reply begins: a step each finds them, or one comparison where all digits are the
# same, then all are checked at once.
class LookupReader:
    """Reads the replies to lookups of records into `n` int64 (count,) and the `records` (count,), of
    `codecs.record_dtype`, which hold once `took` has returned bytes.
    """

    def __init__(self, n: Int64s, records: npt.NDArray[Any]) -> None:
        self._n, self._records = n, records
        self._record_bytes = records.itemsize
        self._middle = b"\r\n$%d\r\n" % self._record_bytes
        # Bytes of a reply but for those of `n`.
        self._fixed = _HEAD_BYTES + len(self._middle) + self._record_bytes + len(_END)
        # Bytes of a reply by its digit; none where that is no digit.
        self._steps = [0] * 256
        self._steps[_ZERO + 1 : _ZERO + 1 + _MOST_DIGITS] = range(
            self._fixed + 1, self._fixed + 1 + _MOST_DIGITS
        )
        self._count = len(n)
        self._data = bytearray()
        self._filled = 0
        self._found = 0
        self._starts: list[_Places] = []
        self._next = 0

    @property
    def room(self) -> memoryview:
        """Where the bytes that come next belong."""
        if not self._data:
            # As long as the longest usual replies: where it is full, they are all there.
            self._data = bytearray(self._count * (self._fixed + _MOST_DIGITS))
        return memoryview(self._data)[self._filled :]

    def took(self, count: int) -> bytes | None:
        """`count` bytes have come there: what lies behind the last reply, or None while more is to come.

        Raises `UnusualReplies`.
        """
        self._filled += count
        starts = self._walk()
        whole = self._found == self._count
        if starts is None or not (self._unpack() if whole else self._goes_on(starts)):
            raise UnusualReplies(self._bytes(0, self._filled))
        return self._bytes(self._next, self._filled) if whole else None

    def _bytes(self, start: int, stop: int) -> bytes:
        return bytes(memoryview(self._data)[start:stop])

    def _walk(self) -> _Places | None:
        """Where further replies start that are whole, if they are usual; None where they are not."""
        at, left = self._next, self._count - self._found
        starts: _Places
        if (evenly := self._evenly(at, left)) is not None:
            starts = evenly
            at += len(evenly) * evenly.step
        else:
            found: list[int] = []
            data, steps, filled, digit = self._data, self._steps, self._filled, len(_ARRAY)
            while left > len(found) and at + digit < filled:
                step = steps[data[at + digit]]
                if not step:
                    return None
                found.append(at)
                at += step
            starts = np.array(found, dtype=np.int64)
        if at > self._filled:
            starts, at = starts[:-1], int(starts[-1])
        self._next = at
        self._found += len(starts)
        if len(starts):
            self._starts.append(starts)
        return starts

    def _evenly(self, at: int, left: int) -> range | None:
        """Where up to `left` replies start from `at` on whose digit has come, if it is the same for all."""
        place = at + len(_ARRAY)
        step = self._steps[self._data[place]] if place < self._filled else 0
        if not step:
            return None
        seen = min(left, (self._filled - place - 1) // step + 1)
        starts = range(at, at + seen * step, step)
        same = self._fields(_moved(starts, len(_ARRAY)), "u1") == self._data[place]
        return starts if same.all() else None

    def _goes_on(self, starts: _Places) -> bool:
        """Whether the replies that start there look usual, and what has come of the next one: of anything
        else the rest would be waited for in vain.
        """
        if len(starts):
            behind = len(self._middle) + self._record_bytes + len(_END)
            if isinstance(starts, range):
                middles: _Places = _moved(starts, starts.step - behind)
            else:
                middles = np.append(starts[1:], self._next) - behind
            if not self._stands(self._middle, middles):
                return False
        stop = min(self._filled, self._next + _HEAD_BYTES + _MOST_DIGITS + len(self._middle))
        begun = self._bytes(self._next, stop)
        if len(begun) <= len(_ARRAY):
            return _ARRAY.startswith(begun)
        digits = begun[len(_ARRAY)] - _ZERO
        usual = b"*2\r\n$%d\r\n%b%b" % (digits, begun[_HEAD_BYTES:][:digits], self._middle)
        return usual.startswith(begun[: len(usual)])

    def _unpack(self) -> bool:
        """Read all replies; whether they are usual ones."""
        starts = _together(self._starts)
        head = self._fields(starts, "<u8")
        digit = (head >> _SHIFT) & _BYTE
        digits = digit.astype(np.int64) - _ZERO
        if isinstance(starts, range):
            middles: _Places = _moved(starts, _HEAD_BYTES + starts.step - self._fixed)
        else:
            middles = starts + _HEAD_BYTES + digits
        records = _moved(middles, len(self._middle))
        if not (
            (head == _HEAD + (digit << _SHIFT)).all()
            and self._stands(self._middle, middles)
            and self._stands(_END, _moved(records, self._record_bytes))
        ):
            return False
        n = np.zeros(self._count, dtype=np.int64)
        for place in range(int(digits.max())):
            value = self._fields(_moved(starts, _HEAD_BYTES + place), "u1").astype(np.int64) - _ZERO
            within = place < digits
            if ((value < 0) | (value > 9))[within].any():
                return False
            n = np.where(within, 10 * n + value, n)
        self._n[:] = n
        row = f"V{self._record_bytes}"
        self._records.view(row)[:] = self._fields(records, row)
        return True

    def _stands(self, text: bytes, places: _Places) -> bool:
        """Whether `text` stands at all of these places."""
        start = 0
        while start < len(text):
            # As numbers, which are compared several at a time.
            size = next(size for size in (8, 4, 2, 1) if size <= len(text) - start)
            number = int.from_bytes(text[start : start + size], "little")
            if not (self._fields(_moved(places, start), f"<u{size}") == number).all():
                return False
            start += size
        return True

    def _fields(self, places: _Places, kind: str) -> npt.NDArray[Any]:
        """The field of this type at each of `places`; a view where they are evenly spaced."""
        if isinstance(places, range):
            dtype = np.dtype(kind)
            return np.ndarray((len(places),), dtype, self._data, places.start, (places.step,))
        return _anywhere(self._data, kind)[places]


def _moved(places: _Places, by: int) -> Any:
    """`places`, all `by` further."""
    if isinstance(places, range):
        return range(places.start + by, places.stop + by, places.step)
    return places + by


def _together(places: Sequence[_Places]) -> _Places:
    """Places that begin each where the ones before end."""
    first = places[0]
    if isinstance(first, range) and all(
        isinstance(each, range) and each.step == first.step for each in places
    ):
        return range(first.start, first.start + first.step * sum(map(len, places)), first.step)
    return np.concatenate(
        [np.arange(each.start, each.stop, each.step) if isinstance(each, range) else each for each in places]
    )
