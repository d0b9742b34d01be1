"""The replies of many lookups out of their bytes, without an object for each field.

Invariant: what is taken here is what a reader of RESP finds, and every record counts; anything else is left
to that reader, with all the bytes.

A usual reply is `*2 $d n $l record`: `n` of d < 10 digits, the record of l bytes, which is known. So one
digit says where the next reply begins: a step each finds them, then all are checked at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from factors.tables import Float32s, Int64s
from featurestore.codecs import record_dtype
from featurestore.connection import UnusualReplies

_ARRAY = b"*2\r\n$"
_HEAD_BYTES = len(b"*2\r\n$1\r\n")
# A head as a number: with no digit in it, and where that stands.
_HEAD = np.uint64(int.from_bytes(b"*2\r\n$\0\r\n", "little"))
_SHIFT, _BYTE = np.uint64(8 * len(_ARRAY)), np.uint64(255)
_ZERO = ord("0")
_END = b"\r\n"


class LookupReader:
    """Reads the replies to `count` lookups of records with vectors of `width` float32.

    Once `feed` has returned bytes: `n` int64 (count,), `vectors` float32 (count, width).
    """

    def __init__(self, count: int, width: int) -> None:
        self._dtype = record_dtype(width)
        self._middle = b"\r\n$%d\r\n" % self._dtype.itemsize
        fixed = _HEAD_BYTES + len(self._middle) + self._dtype.itemsize + len(_END)
        # Bytes of a reply by its digit; none where that is no digit.
        self._steps = [0] * 256
        self._steps[_ZERO + 1 : _ZERO + 10] = range(fixed + 1, fixed + 10)
        self._count = count
        self._data = bytearray()
        self._found = 0
        self._starts: list[Int64s] = []
        self._next = 0
        self.n: Int64s = np.empty(0, dtype=np.int64)
        self.vectors: Float32s = np.empty((0, width), dtype=np.float32)

    def feed(self, data: bytes) -> bytes | None:
        """Take what has come: what lies behind the last reply, or None while more is to come.

        Raises `UnusualReplies`.
        """
        self._data += data
        starts = self._walk()
        whole = self._found == self._count
        if starts is None or not (self._unpack() if whole else self._goes_on(starts)):
            raise UnusualReplies(bytes(self._data))
        return bytes(memoryview(self._data)[self._next :]) if whole else None

    def _walk(self) -> Int64s | None:
        """Where further replies start that are whole, if they are usual; None where they are not."""
        data, steps, at, digit = self._data, self._steps, self._next, len(_ARRAY)
        starts: list[int] = []
        try:
            for _ in range(self._count - self._found):
                step = steps[data[at + digit]]
                if not step:
                    return None
                starts.append(at)
                at += step
        except IndexError:
            pass
        self._next = starts.pop() if at > len(data) else at
        self._found += len(starts)
        self._starts.append(np.array(starts, dtype=np.int64))
        return self._starts[-1]

    def _goes_on(self, starts: Int64s) -> bool:
        """Whether the replies that start there look usual, and what has come of the next one: of anything
        else the rest would be waited for in vain.
        """
        if len(starts):
            ends = np.append(starts[1:], self._next)
            middles = ends - (len(self._middle) + self._dtype.itemsize + len(_END))
            if not self._stands(self._middle, middles):
                return False
        begun = bytes(self._data[self._next : self._next + _HEAD_BYTES + 9 + len(self._middle)])
        if len(begun) <= len(_ARRAY):
            return _ARRAY.startswith(begun)
        digits = begun[len(_ARRAY)] - _ZERO
        usual = b"*2\r\n$%d\r\n%b%b" % (digits, begun[_HEAD_BYTES:][:digits], self._middle)
        return usual.startswith(begun[: len(usual)])

    def _unpack(self) -> bool:
        """Read all replies; whether they are usual ones and all records count."""
        starts = np.concatenate(self._starts)
        head = self._fields(starts, "<u8")
        digit = (head >> _SHIFT) & _BYTE
        places, digits = starts + _HEAD_BYTES, digit.astype(np.int64) - _ZERO
        middles = places + digits
        records = middles + len(self._middle)
        ends = records + self._dtype.itemsize
        if not (
            (head == _HEAD + (digit << _SHIFT)).all()
            and self._stands(self._middle, middles)
            and self._stands(_END, ends)
        ):
            return False
        n = np.zeros(self._count, dtype=np.int64)
        for place in range(int(digits.max())):
            value = self._fields(places + place, "u1").astype(np.int64) - _ZERO
            within = place < digits
            if ((value < 0) | (value > 9))[within].any():
                return False
            n = np.where(within, 10 * n + value, n)
        table = self._fields(records, f"V{self._dtype.itemsize}").view(self._dtype)
        self.n, self.vectors = n, table["vector"]
        return bool((table["n"] == n.astype(np.uint64)).all())

    def _stands(self, text: bytes, places: Int64s) -> bool:
        """Whether `text` stands at all of these places."""
        return bool((self._fields(places, f"S{len(text)}") == text).all())

    def _fields(self, places: Int64s, kind: str) -> npt.NDArray[Any]:
        """The field of this type at each of `places`, copied."""
        dtype = np.dtype(kind)
        room = len(self._data) - dtype.itemsize + 1
        return np.ndarray((room,), dtype, self._data, strides=(1,))[places]
