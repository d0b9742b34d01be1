"""Heads of requests as they come in: how large they may be, and how long they may take.

Invariant: what a worker holds of heads that are not whole is bounded for each connection, in all, and in
time.
aiohttp bounds each header and their number alone: 64 of 8 KB on 8,192 connections are 4 GB.
"""

import asyncio
from typing import Any, Protocol

from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD

# As much as Node takes: cookies of several programs on one host fit in.
HEAD_BYTES = 16 * 2**10
# Of all connections; beyond, those that have been coming for longest are closed.
ALL_BYTES = 64 * 2**20
# As nginx of the compose file waits. One that is whole in this time may be sent on a slow line.
HEAD_S = 15.0
SWEEP_S = 1.0  # by so much later a slow one is closed


class Connection(Protocol):
    """What is asked of a connection."""

    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        ...

    def force_close(self) -> None:
        """Close it at once."""
        ...


class Heads:
    """The heads of all connections of a worker that are not whole."""

    def __init__(self) -> None:
        self.held_bytes = 0
        # In the order in which they began: size and moment.
        self._coming: dict[Connection, tuple[int, float]] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, connection: Connection, size: int) -> None:
        """Hold `size` bytes of a head; none where it is whole, or the connection is gone."""
        before, began = self._coming.get(connection, (0, self._loop.time()))
        self.held_bytes += size - before
        if not size:
            self._coming.pop(connection, None)
            return
        self._coming[connection] = size, began
        if self.held_bytes > ALL_BYTES:
            self._close(next(iter(self._coming)))
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        latest = self._loop.time() - HEAD_S
        for connection, (size, began) in list(self._coming.items()):
            if began > latest:
                break
            if connection.is_idle():
                self._close(connection)
            else:
                # It came behind a request that is being answered: its time begins when that is done.
                del self._coming[connection]
                self._coming[connection] = size, self._loop.time()
        if self._coming:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def _close(self, connection: Connection) -> None:
        self.set(connection, 0)
        connection.force_close()


class HeadParser:
    """Stands before aiohttp's `parser` of one connection, and sees what of its heads is not whole."""

    __slots__ = (
        *("_connection", "_feed", "_heads", "_payload", "_size"),
        *("message_consumed", "pause_reading", "set_upgraded"),
    )

    def __init__(self, parser: Any, connection: Connection, heads: Heads) -> None:
        self._feed = parser.feed_data
        self.message_consumed = parser.message_consumed
        self.pause_reading = parser.pause_reading
        self.set_upgraded = parser.set_upgraded
        self._connection = connection
        self._heads = heads
        self._size = 0
        self._payload: Any = EMPTY_PAYLOAD

    def feed_data(self, data: bytes) -> Any:
        """Feed aiohttp's parser. Raises `BadHttpMessage` for a head that is too large, as it does."""
        # Before it is fed: with the end of a body in `data` it is over after that, and what came is no head.
        between = self._payload is EMPTY_PAYLOAD or self._payload.is_eof()
        found = self._feed(data)
        messages = found[0]
        if messages:
            self._payload = messages[-1][1]
            # A head in few bytes cannot be too large.
            if self._size or len(data) > HEAD_BYTES:
                self._whole(messages, len(data))
        elif data and between:
            self._hold(self._size + len(data))
            if self._size > HEAD_BYTES:
                raise BadHttpMessage(f"the head of the request has over {HEAD_BYTES} bytes")
        return found

    def _whole(self, messages: Any, size: int) -> None:
        rest = self._size + size
        for message, payload in messages:
            head = len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if head > HEAD_BYTES:
                raise BadHttpMessage(f"the head of the request has over {HEAD_BYTES} bytes")
            rest -= head + (0 if payload is EMPTY_PAYLOAD else payload.total_bytes)
        # Behind the last of several requests in one piece, a part of the next may have come.
        is_over = self._payload is EMPTY_PAYLOAD or self._payload.is_eof()
        self._hold(rest if is_over and rest > HEAD_BYTES else 0)

    def _hold(self, size: int) -> None:
        self._size = size
        self._heads.set(self._connection, size)
