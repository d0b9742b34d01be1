"""The short way of GET /predict: from the parser into the turn and back, without a task or a request object.

Invariant: a client sees no difference but the time. One request is on its short way at a time; what comes
meanwhile is held back until it is answered, so that answers leave in the order of the requests.

aiohttp reads every byte, and what it says that is anything else than one whole plain request on an idle
connection goes on as ever. It costs half as much as the way through aiohttp's tasks, which is for every kind
of request. Only what stands in `INSIDE` is used of aiohttp that it does not promise to keep.
"""

import asyncio
import contextlib
from typing import Any

from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD

from service.http.dispatch import Edge, EdgeProtocol, Headers, echoed_id
from service.http.response import JSON, LAST, unsent, whole

# All are attributes of `web.RequestHandler` as it is locked; where one is missing there is no short way.
INSIDE = (
    *("_manager", "_parser", "_messages", "_waiter", "_request_count", "_close", "_upgraded", "_paused"),
    *("_keepalive_timeout", "_next_keepalive_close_time", "_process_keepalive"),
    *("_pause_reading_for_buffer", "_resume_reading_for_buffer", "_buffer_paused", "_drain_helper"),
)
POSSIBLE = all(hasattr(web.RequestHandler, name) for name in INSIDE)


class Asked:
    """A request on its short way. Answers once; telling it again has no effect."""

    __slots__ = ("_connection", "_headers")

    def __init__(self, connection: "ShortWay", headers: Headers) -> None:
        self._connection: ShortWay | None = connection
        self._headers = headers

    def answered(self, body: bytes) -> None:
        """Write the answer with `body`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.write_answer(body, 200, JSON, echoed_id(self._headers))

    def failed(self, exc: Exception) -> None:
        """Write the problem that `exc` is."""
        connection, self._connection = self._connection, None
        if connection is not None:
            answer = connection.edge.failure(exc, self._headers)
            connection.write_answer(answer.payload, answer.status, answer.media_type, answer.fields)


class _Said:
    """Stands for the parser, once, to pass on what it said of bytes that it has read already."""

    def __init__(self, said: Any) -> None:
        self._said = said

    def feed_data(self, _: bytes) -> Any:
        if isinstance(self._said, HttpProcessingError):
            raise self._said
        return self._said


class ShortWay(EdgeProtocol):
    """A connection whose plain GET /predict goes the short way through `edge`."""

    __slots__ = ("_asked", "_held", "_settled", "_until_read", "edge")

    def __init__(self, manager: web.Server, *, edge: Edge, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self.edge = edge
        self._asked = False
        self._held = b""
        self._settled: asyncio.Future[None] | None = None
        self._until_read: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Take a plain request the short way; all else as aiohttp does."""
        if self._asked:
            # Reading pauses, so that no more than what the event loop had read already is held.
            self._held += data
            if not self._buffer_paused:
                self._pause_reading_for_buffer()
            return
        waiter, parser = self._waiter, self._parser
        # Waiting for a message means that all messages before are answered.
        if waiter is None or waiter.done() or parser is None or self._upgraded or self._paused:
            super().data_received(data)
            return
        said: Any
        try:
            said = parser.feed_data(data)
        except HttpProcessingError as exc:
            said = exc
        else:
            messages = said[0]
            if len(messages) == 1:
                message, payload = messages[0]
                if (
                    message.method == "GET"
                    and payload is EMPTY_PAYLOAD
                    and message.version == HttpVersion11
                    and not (message.should_close or message.upgrade or said[1])
                    and self.edge.enter(message.path, Asked(self, message.headers))
                ):
                    self._asked = True
                    self._request_count += 1
                    if self._manager is not None:
                        self._manager.requests_count += 1
                    parser.message_consumed()
                    return
            elif not messages and not said[1]:
                return
        self._parser = _Said(said)  # type: ignore[assignment]  # has all that is asked of it in this call
        try:
            super().data_received(data)
        finally:
            self._parser = parser

    def write_answer(self, body: bytes | bytearray, status: int, media_type: str, fields: bytes) -> None:
        """Write the answer to the request on its short way, and read on."""
        self.edge.in_flight -= 1
        transport = self.transport
        if transport is None or transport.is_closing():
            self._settle()
            return
        last = self._close or self.edge.draining
        if last:
            fields += LAST
        transport.write(whole(body, status, media_type, fields))
        if last:
            self.force_close()
        elif self._paused:
            # Until the client has read, nothing more of it is taken.
            waiting = self._wait_until_read(transport, len(body))
            self._until_read = self._loop.create_task(waiting, name="wait until a client reads")
            return
        self._settle()

    async def _wait_until_read(self, transport: asyncio.Transport, size_bytes: int) -> None:
        # Either it was dropped or it went by itself.
        with contextlib.suppress(ClientConnectionResetError, ConnectionError):
            await unsent.sent(self._drain_helper, transport, size_bytes)
        self._until_read = None
        self._settle()

    def _settle(self) -> None:
        """The request is over: the connection is idle, or goes on with what was held back."""
        self._asked = False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        if self._buffer_paused:
            held, self._held = self._held, b""
            self._resume_reading_for_buffer()
            if self.transport is not None:
                self.data_received(held)

    def _process_keepalive(self) -> None:
        if self._asked:
            # To aiohttp this connection is idle.
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 -- aiohttp's signature
        """Close; when a request is on its short way, after its answer or `timeout` seconds."""
        if self._asked:
            self._close = True
            self._settled = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._settled
        await super().shutdown(timeout)
        if self._until_read is not None:
            self._until_read.cancel()
