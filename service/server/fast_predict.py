"""GET /predict past aiohttp's tasks: from the parser into the batch and back, without a task or a request
object. Two lines of `worker`, its import and its use, name it: with a plain `Connection` in these, this
file can be deleted.

Invariant: a client sees no difference but the time. A connection has one such request at a time; what comes
meanwhile is held back until it is answered, so that answers leave in the order of the requests.

aiohttp reads every byte, and whatever is not one whole plain request on an idle connection goes on as ever.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import msgspec
from aiohttp import ClientConnectionResetError, HttpVersion11, web
from aiohttp.http import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD

from service.context import ServiceContext
from service.http.access import READ
from service.http.connection import Connection
from service.http.dispatch import ID_HEADER, Headers, echoed_id, failure_answer
from service.http.parsing import MAX_ID_BYTES
from service.http.problems import Problem
from service.http.response import JSON, LAST, Answer, head_of, unsent
from service.prediction_json import OnePrediction
from service.routes.predict import parse_pair_query

# Of aiohttp, all that is used and not promised to stay: attributes of `web.RequestHandler` as it is locked.
INSIDE = (
    *("_manager", "_parser", "_messages", "_waiter", "_request_count", "_close", "_upgraded", "_paused"),
    *("_keepalive_timeout", "_next_keepalive_close_time", "_process_keepalive"),
    *("_pause_reading_for_buffer", "_resume_reading_for_buffer", "_buffer_paused", "_drain_helper"),
)
POSSIBLE = all(hasattr(web.RequestHandler, name) for name in INSIDE)

_ROUTE = "/predict"
# Ids that need no decoding, in the usual order: reading these takes a tenth of what `parse_pair_query` takes.
_PLAIN = re.compile(
    rf"/predict\?user(?:_id)?=([\w.~-]{{1,{MAX_ID_BYTES}}})&item(?:_id)?=([\w.~-]{{1,{MAX_ID_BYTES}}})",
    re.ASCII,
)
_ENCODE = msgspec.json.Encoder().encode


def fast_connections(context: ServiceContext) -> Callable[..., Connection]:
    """Return what makes the connections of a worker: fast ones where this aiohttp has all of `INSIDE`, and no
    trace is to be made of requests.
    """
    fast = POSSIBLE and context.store.tracing is None
    return partial(FastConnection, fast=FastPredict(context)) if fast else Connection


class FastPredict:
    """Keeps account of the requests that all connections of a worker take into batches."""

    def __init__(self, context: ServiceContext) -> None:
        self.traffic = context.traffic
        self._counts = context.counts
        self._batcher = context.batcher
        self._admit = context.access.admit
        self._loop = asyncio.get_running_loop()
        # Answers of this turn of the event loop, and the arrival of the first of them.
        self._answers = 0
        self._began = 0.0

    def take(self, connection: "FastConnection", headers: Headers, pair: tuple[bytes, bytes]) -> bool:
        """Take a request into the batch; return False where the client may not ask, which the handler tells
        it.
        """
        try:
            self._admit(headers, READ)
        except Problem:
            return False
        connection.begin()
        self.traffic.in_flight += 1
        self._batcher.submit_for(_Request(self, connection, headers), *pair)
        return True

    def answered(self, began: float) -> None:
        """Account for a request that was answered with 200."""
        self.traffic.in_flight -= 1
        # Counted once a turn: one by one costs each request as much as reading its query. The first of a
        # batch waited longest; the others are counted as if they had come with it.
        if not self._answers:
            self._began = began
            self._loop.call_soon(self._count)
        self._answers += 1

    def _count(self) -> None:
        self._counts.request(_ROUTE, 200, perf_counter() - self._began, self._answers)
        self._answers = 0

    def failed(self, exc: Exception, headers: Headers) -> Answer:
        """Account for a request with `headers` that failed with `exc`, and return its answer."""
        self.traffic.in_flight -= 1
        answer = failure_answer(exc, headers, _ROUTE, self._counts)
        self._counts.request(_ROUTE, answer.status, 0.0)
        return answer


def _unusual_pair(path: str) -> tuple[bytes, bytes] | None:
    """Return the ids of a query that is not in the usual form; None leaves it to aiohttp's way."""
    if not path.startswith("/predict?"):
        return None
    try:
        query = parse_pair_query(path)
    except Problem:
        # The handler tells the client what is wrong.
        return None
    return (query.user_id, query.item_id) if query.plain else None


class _Request:
    """A request that waits for its prediction (a `Waiter`)."""

    __slots__ = ("_began", "_connection", "_fast", "_headers")

    def __init__(self, fast: FastPredict, connection: "FastConnection", headers: Headers) -> None:
        self._fast = fast
        self._connection: FastConnection | None = connection
        self._headers = headers
        self._began = perf_counter()

    def done(self) -> bool:
        """Whether it was answered."""
        return self._connection is None

    def set_result(self, prediction: OnePrediction) -> None:
        """Write the answer."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._fast.answered(self._began)
            echo = echoed_id(self._headers) if ID_HEADER in self._headers else b""
            connection.write_answer(_ENCODE(prediction), 200, JSON, echo)

    def set_exception(self, exc: Exception) -> None:
        """Write the problem that `exc` is."""
        connection, self._connection = self._connection, None
        if connection is not None:
            answer = self._fast.failed(exc, self._headers)
            connection.write_answer(answer.payload, answer.status, answer.media_type, answer.fields)


class _ReadAlready:
    """Stands for the parser, once, to pass on what it found in bytes that it has read already."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def feed_data(self, _: bytes) -> Any:
        if isinstance(self._found, HttpProcessingError):
            raise self._found
        return self._found


class FastConnection(Connection):
    """A connection whose plain GET /predict goes through `fast`."""

    __slots__ = ("_fast", "_settled", "_until_read", "held", "waiting")

    def __init__(self, manager: web.Server, *, fast: FastPredict, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._fast = fast
        # Whether a request of this connection waits for its prediction, and the bytes that came meanwhile.
        self.waiting = False
        self.held = b""
        self._settled: asyncio.Future[None] | None = None
        self._until_read: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Give a plain request to `fast`, and all else to aiohttp."""
        if self.waiting:
            # Reading pauses, so that no more than what the event loop had read already is held.
            self.held += data
            if not self._buffer_paused:
                self._pause_reading_for_buffer()
            return
        waiter, parser = self._waiter, self._parser
        # Waiting for a message means that all messages before are answered.
        if waiter is None or waiter.done() or parser is None or self._upgraded or self._paused:
            super().data_received(data)
            return
        found: Any
        try:
            found = parser.feed_data(data)
        except HttpProcessingError as exc:
            found = exc
        else:
            messages, upgraded, _ = found
            if not messages and not upgraded:
                return
            fast = self._fast
            traffic = fast.traffic
            if len(messages) == 1 and not traffic.draining:
                message, payload = messages[0]
                if (
                    message.method == "GET"
                    and payload is EMPTY_PAYLOAD
                    and message.version == HttpVersion11
                    and not (message.should_close or message.upgrade or upgraded)
                ):
                    plain = _PLAIN.fullmatch(message.path)
                    pair = (plain[1].encode(), plain[2].encode()) if plain else _unusual_pair(message.path)
                    if pair is not None and fast.take(self, message.headers, pair):
                        return
        self._parser = _ReadAlready(found)  # has all that is called of it here
        try:
            super().data_received(data)
        finally:
            self._parser = parser

    def begin(self) -> None:
        """Wait for the answer to the request that was read."""
        self.waiting = True
        self._request_count += 1
        if self._manager is not None:
            self._manager.requests_count += 1
        self._parser.message_consumed()

    def write_answer(self, body: bytes | bytearray, status: int, media_type: str, fields: bytes) -> None:
        """Write the answer to the request that waits, and read on."""
        transport = self.transport
        if transport is None or transport.is_closing():
            self._settle()
            return
        ended = self._ended and not (self.held or self._parser.will_fail)
        last = self._close or ended or self._fast.traffic.draining
        if last:
            fields += LAST
        transport.write(b"".join((head_of(status, media_type, len(body)), fields, b"\r\n", body)))
        if last:
            self.force_close()
        elif self._paused:
            # Until the client has read, nothing more of it is taken.
            until_read = self._wait_until_read(transport, len(body))
            self._until_read = self._loop.create_task(until_read, name="wait until a client reads")
            return
        self._settle()

    async def _wait_until_read(self, transport: asyncio.Transport, size_bytes: int) -> None:
        # A client that was dropped, or that went by itself, is no error.
        with contextlib.suppress(ClientConnectionResetError, ConnectionError):
            await unsent.sent(self._drain_helper, transport, size_bytes)
        self._until_read = None
        self._settle()

    def _settle(self) -> None:
        """The request is over: the connection is idle, or goes on with what was held back."""
        self.waiting = False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        if self._buffer_paused:
            held, self.held = self.held, b""
            self._resume_reading_for_buffer()
            if self.transport is not None:
                self.data_received(held)
        if self._ended and self.is_idle():
            self.force_close()

    def is_idle(self) -> bool:
        """Whether every request is answered."""
        return not self.waiting and super().is_idle()

    def _process_keepalive(self) -> None:
        if self.waiting:
            # To aiohttp this connection is idle.
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 -- aiohttp's signature
        """Close; where a request waits, after its answer or `timeout` seconds."""
        if self.waiting:
            self._close = True
            self._settled = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._settled
        await super().shutdown(timeout)
        if self._until_read is not None:
            self._until_read.cancel()
