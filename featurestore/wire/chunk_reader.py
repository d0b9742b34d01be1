"""Large values read in order, straight from the socket. Invariant: a piece is exactly as long as it must be,
or it is left to the usual reader of replies.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np

from featurestore.errors import GenerationBroken
from featurestore.keys import shown_key
from featurestore.wire.connection import Connection, swallow
from featurestore.wire.resp import ReplyError, UnusualReplies, encode, note_keys

# A megabyte, which keeps the store for a quarter of a millisecond.
CHUNKS_AT_ONCE = 16
# The store fetches while what came before is taken in.
CALLS_AHEAD = 3


# The usual reader copies a value four times before it is an object: out of the socket, to the reader, within
# it as it grows, and into the object. Here it is copied once.
class ChunkReader:
    """Reads the replies to `GET`s of values that are `sizes` long; `pieces` hold once `took` has returned
    bytes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._heads = [b"$%d\r\n" % size for size in sizes]
        self._sizes = sizes
        total = sum(map(len, self._heads)) + sum(sizes) + len(b"\r\n") * len(sizes)
        # Not a bytearray, which would be written with zeros first.
        self._data = np.empty(total, dtype=np.uint8).data
        self._filled = self._at = 0
        self.pieces: list[memoryview] = []

    @property
    def room(self) -> memoryview:
        """Where the bytes that come next belong."""
        return self._data[self._filled :]

    def took(self, count: int) -> bytes | None:
        """`count` bytes have come there. Raises `UnusualReplies` at the first reply of another length."""
        self._filled += count
        while len(self.pieces) < len(self._heads):
            head, size = self._heads[len(self.pieces)], self._sizes[len(self.pieces)]
            seen = self._data[self._at : min(self._at + len(head), self._filled)]
            if seen != head[: len(seen)]:
                raise UnusualReplies(bytes(self._data[: self._filled]))
            if len(seen) < len(head):
                return None
            start = self._at + len(head)
            self.pieces.append(self._data[start : start + size])
            self._at = start + size + len(b"\r\n")
        return b"" if self._filled == len(self._data) else None


async def read_chunks(
    connection: Connection, name: Callable[[int], bytes], sizes: Sequence[int]
) -> AsyncIterator[bytes | memoryview]:
    """The values of `name(0)`, `name(1)`, ..., which are `sizes` long. Raises `GenerationBroken` where one is
    gone, and what a connection raises.
    """
    pending: deque[tuple[range, asyncio.Future[list[Any]], ChunkReader]] = deque()
    starts = iter(range(0, len(sizes), CHUNKS_AT_ONCE))
    try:
        while True:
            while len(pending) < CALLS_AHEAD and (start := next(starts, None)) is not None:
                some = range(start, min(start + CHUNKS_AT_ONCE, len(sizes)))
                reader = ChunkReader([sizes[chunk] for chunk in some])
                payload = b"".join([encode(b"GET", name(chunk)) for chunk in some])
                pending.append((some, connection.execute(payload, len(some), reader=reader), reader))
            if not pending:
                return
            some, future, reader = pending.popleft()
            for chunk, reply in zip(some, await future or reader.pieces, strict=True):
                if isinstance(reply, ReplyError):
                    note_keys(reply, [name(chunk)])
                    raise connection.failure(reply)
                size = 0 if reply is None else len(reply)
                if size != sizes[chunk]:
                    why = f"it has {size} bytes, not {sizes[chunk]}"
                    raise GenerationBroken(why, shown_key(name(chunk)))
                yield reply
    finally:
        for _, future, _ in pending:
            future.add_done_callback(swallow)
