"""A connection of a client, and what it may send before a request is whole.

Invariant: what a connection holds of a request that is not whole is bounded in bytes and in time, whatever
the client sends; what was whole before it is answered first.

aiohttp bounds a line of a head and the number of lines, which are 1 MB together, and no time.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from service.http.dispatch import problem_answer
from service.http.problems import Problem

# The head of a request in all, as nginx in front takes it. Bytes between two parts of a body, such as
# extensions of chunks and trailers, have the same bound.
HEAD_BYTES = 16 * 2**10
# A head fits into a dozen packets: a client that needs longer for it has gone, or means harm.
HEAD_S = 10.0
# Requests that one read gives at most: aiohttp pauses a connection that has so many waiting.
_AT_ONCE = 32
# aiohttp pauses reading when twice so much of a body waits for its reader.
_READ_BYTES = 64 * 2**10

Message = tuple[Any, StreamReader]
Found = tuple[Sequence[Message], bool, bytes]
_HEAD_END = b"\r\n\r\n"
_NOTHING: Found = ((), False, b"")


class BoundedParser:
    """Stands between a connection and aiohttp's parser, which gets no more than `HEAD_BYTES` at a time."""

    __slots__ = (
        *("_body", "_connection", "_failure", "_feed", "_loop", "_parser", "_paused", "_pending_bytes"),
        *("_rest", "_settled", "_timer", "_told", "body_bytes", "message_consumed", "set_upgraded"),
    )

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._parser = parser = HttpRequestParser(
            connection,
            loop,
            _READ_BYTES,
            payload_exception=web.RequestPayloadError,
            # aiohttp inflates on the event loop, even what follows a 401: 10 bodies of 195 KB, each 200 MB of
            # zeros, stopped a worker for 15 s.
            auto_decompress=False,
            # The parser gives one request at a time: where the next one is no HTTP, it drops what it holds.
            max_msg_queue_size=1,
        )
        self._feed = parser.feed_data
        self.message_consumed = parser.message_consumed
        self.set_upgraded = parser.set_upgraded
        # The body that is not whole yet, and the bytes that came for it, framing included.
        self._body: StreamReader | None = None
        self.body_bytes = 0
        # Bytes since the last request or the last content of a body.
        self._pending_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._rest = b""
        self._failure: HttpProcessingError | None = None
        self._told = False
        # Whether nothing of a request waits here or in the parser.
        self._settled = True

    @property
    def will_fail(self) -> bool:
        """Whether an error waits until the requests before it are taken."""
        return self._failure is not None and not self._told

    def feed_data(self, data: bytes) -> Found:
        """Return the requests in `data`. Raises HttpProcessingError, once, where there is none before the
        error.
        """
        fed: Found | None = None
        if self._settled and len(data) <= HEAD_BYTES:
            # A whole request without a body, as most are, takes no second look.
            try:
                fed = self._feed(data)
            except HttpProcessingError as exc:
                return self._failed(exc, [])
            messages = fed[0]
            if (
                len(messages) == 1
                and messages[0][1] is EMPTY_PAYLOAD
                and messages[0][0].version is HttpVersion11
                and data.find(_HEAD_END) == len(data) - len(_HEAD_END)
                and not fed[1]
            ):
                return fed
        if self._failure is not None:
            return self._fail()
        self._settled = False
        if self._rest:
            data, self._rest = self._rest + data, b""
        self._paused = False
        found: list[Message] = []
        upgraded, tail, end = False, b"", 0
        try:
            while True:
                start, end = end, end + HEAD_BYTES
                upgraded, tail = self._take(data[start:end], found, fed)
                fed = None
                if upgraded:
                    tail += data[end:]
                    break
                if end >= len(data):
                    break
                if self._paused or len(found) >= _AT_ONCE:
                    self._rest = data[end:]
                    break
        except HttpProcessingError as exc:
            return self._failed(exc, found)
        if self._pending_bytes or self._timer is not None:
            self._watch(data)
        elif self._body is None and not self._rest and len(found) < _AT_ONCE:
            self._settled = True
        return found, upgraded, tail

    def _take(self, piece: bytes, found: list[Message], fed: Found | None) -> tuple[bool, bytes]:
        """Add the requests in `piece` to `found`; return whether the last one changes the protocol, and what
        follows it. `fed`: what the parser said of it, where it has it already.
        """
        body, size = self._body, len(piece)
        content = 0 if body is None else body.total_bytes
        self.body_bytes += size
        messages, upgraded, tail = self._feed(piece) if fed is None else fed
        is_new = bool(messages)
        ended = body is not None and body.is_eof()
        while messages or ended:
            for message in messages:
                self._check(message[0], self._pending_bytes + size)
                found.append(message)
                self._body, self.body_bytes = message[1], size
            # The rest of a body that is read too slowly waits in the parser, until aiohttp asks again.
            self._paused = self._paused and self._body is not None and not self._body.is_eof()
            if upgraded or self._paused or len(found) >= _AT_ONCE:
                break
            ended = False
            messages, upgraded, tail = self._feed(b"")
            is_new = is_new or bool(messages)
        if self._body is not None and self._body.is_eof():
            is_plain, self._body = self._body is EMPTY_PAYLOAD, None
            # Something of the next head may follow: after a body this shows only when more of it comes.
            self._pending_bytes = int(is_plain and is_new and not piece.endswith(_HEAD_END))
        elif is_new or (body is not None and body.total_bytes > content):
            self._pending_bytes = 0
        else:
            self._pending_bytes += size
            if self._pending_bytes > HEAD_BYTES:
                raise _too_large()
        return upgraded, tail

    def _check(self, message: Any, came_bytes: int) -> None:
        """Refuse a head that is too large, or of an HTTP or an encoding that is not spoken here."""
        if came_bytes > HEAD_BYTES:
            lines = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if len(message.path) + lines > HEAD_BYTES:
                raise _too_large()
        if message.version is not HttpVersion11 and message.version > HttpVersion11:
            raise HttpProcessingError(code=400, message="send HTTP/1.1")
        if message.chunked and message.headers[hdrs.TRANSFER_ENCODING].strip().lower() != "chunked":
            raise HttpProcessingError(code=400, message="of Transfer-Encoding only `chunked` is taken")

    def _watch(self, data: bytes) -> None:
        """Start or stop the time that a head may take. Empty lines between requests are no head."""
        if self._pending_bytes and self._body is None:
            if self._timer is None and data.strip(b"\r\n"):
                self._timer = self._loop.call_later(HEAD_S, self._late)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        message = f"no whole head of a request in {HEAD_S:g} s"
        self._settled = False
        self._failure = HttpProcessingError(code=HTTPStatus.REQUEST_TIMEOUT, message=message)
        self._connection.data_received(b"")

    def _failed(self, exc: HttpProcessingError, found: list[Message]) -> Found:
        self.end()
        self._settled, self._failure, self._rest = False, exc, b""
        if self._cut(exc.message):
            # The request whose body it is has the answer, which is the last one.
            self._told = True
            # Later: a connection that closes takes no requests, and the one in `found` is not taken yet.
            self._loop.call_soon(self._connection.answer_last)
        elif found:
            self._loop.call_soon(self._connection.data_received, b"")
        else:
            return self._fail()
        return found, False, b""

    def _fail(self) -> Found:
        if self._told or self._failure is None:
            return _NOTHING
        self._told = True
        raise self._failure

    def _cut(self, reason: str) -> bool:
        """End a body that is not whole: its reader gets `reason`. Return whether there is one."""
        body, self._body = self._body, None
        if body is None or body.is_eof():
            return False
        body.set_exception(web.RequestPayloadError(" ".join(reason.split())[:200]))
        body.feed_eof()
        return True

    def feed_eof(self) -> None:
        """Take it that nothing more comes."""
        if self._cut("the client has closed before its end"):
            self._connection.answer_last()

    def end(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_reading(self) -> None:
        """Parse no more of the body until the next call of `feed_data`."""
        self._paused = True
        self._parser.pause_reading()


def _too_large() -> HttpProcessingError:
    return HttpProcessingError(code=400, message=f"the head of a request has {HEAD_BYTES} bytes at most")


class Connection(web.RequestHandler):
    """A connection. What is no HTTP at all gets a problem document too, and no traceback in the log."""

    __slots__ = ("_ended",)
    _parser: Any  # bounded

    def __init__(self, manager: web.Server, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._parser = BoundedParser(self, self._loop)
        # The client has closed its sending half.
        self._ended = False

    @property
    def body_bytes(self) -> int:
        """Bytes that came for the last request, framing of its body included."""
        return 0 if self._parser is None else self._parser.body_bytes

    def answer_last(self) -> None:
        """Close after the next answer."""
        self._close = True

    def is_idle(self) -> bool:
        """Whether every request is answered."""
        waits = self._waiter is not None and not self._waiter.done()
        return waits and not self._messages and not self._parser.will_fail

    def eof_received(self) -> bool | None:  # type: ignore[override] # aiohttp always closes
        """Keep the connection until what the client asked is answered. Over TLS there are no halves."""
        if self.transport is None or self.transport.get_extra_info("ssl_object") is not None:
            return None
        self._parser.feed_eof()
        self._ended = not self.is_idle()
        return self._ended

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the answer. It is the last one where the client has closed and nothing else waits."""
        finished = await super().finish_response(request, resp, start_time)
        if self._ended and not self._messages and self._parser is not None and not self._parser.will_fail:
            self._close = True
        return finished

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        if self._parser is not None:
            self._parser.end()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that could not be read."""
        if isinstance(exc, HttpProcessingError):
            # Its frames hold all that was read, until the collector comes: 100 KB a connection of a flood.
            exc.__traceback__ = None
            # The parser's message quotes what the client sent, over several lines and at any length.
            detail = " ".join((message or exc.message).split())[:200]
            is_late = exc.code == HTTPStatus.REQUEST_TIMEOUT
            code = "request_timeout" if is_late else "malformed_request"
            answer = problem_answer(Problem(code, detail or "not HTTP"), request.headers)
            answer.close_connection()
            return answer
        return super().handle_error(request, status, exc, message)
