"""The answer that is written in one piece.

Invariant: status line, headers and body leave together, with nothing in between that could fail.

aiohttp builds each response's headers in a multidict and serialises them. Answers of this service have few
headers, which are known beforehand, so that the bytes up to the body are kept by status, content type and
length of the body.
"""

from asyncio import Transport, timeout
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from time import time

import msgspec
from aiohttp import ClientConnectionResetError, HttpVersion10, web
from aiohttp.abc import AbstractStreamWriter

JSON = "application/json"
# Different lengths of bodies are few; long ones are rare and their heads cheap next to the body.
_HEADS_KEPT = 4096
# A client gets this long to read what is buffered for it: 10,000 predictions in that time are 25 KB a second.
READ_WITHIN_S = 30.0
# As much as `bodies_bytes`: what clients have not read is bounded like what they send.
UNSENT_BYTES = 256 * 2**20


class _Heads:
    """Bytes from the status line to the last standing header, kept for a second because of `Date`."""

    def __init__(self) -> None:
        self._second = 0
        self._date = ""
        self._kept: dict[tuple[int, str, int], bytes] = {}

    def get(self, status: int, content_type: str, length: int) -> bytes:
        """Return the head of an answer; its own headers, an empty line and the body follow."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True)
            self._kept.clear()
        key = (status, content_type, length)
        head = self._kept.get(key)
        if head is None:
            kind = f"Content-Type: {content_type}\r\n" if content_type else ""
            # Of 304 it would be that of the body which the client has.
            bare = status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
            size = "" if bare else f"Content-Length: {length}\r\n"
            status_line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            head = f"{status_line}{kind}{size}Date: {self._date}\r\n".encode("ascii")
            if len(self._kept) < _HEADS_KEPT:
                self._kept[key] = head
        return head


# The date is the same for every answer of a process.
head_of = _Heads().get


class _Unsent:
    """Answers that clients have not read yet: their bytes are bounded, and so is the time to read them."""

    def __init__(self) -> None:
        self.held_bytes = 0

    async def sent(self, drain: Callable[[], Awaitable[None]], transport: Transport, size_bytes: int) -> None:
        """Wait until the client has read on. Drop one that does not, or for which there is no room."""
        self.held_bytes += size_bytes
        try:
            async with timeout(READ_WITHIN_S if self.held_bytes <= UNSENT_BYTES else 0.0):
                await drain()
        except TimeoutError:
            transport.abort()
            raise ClientConnectionResetError("the client does not read") from None
        finally:
            self.held_bytes -= size_bytes


# The connections of a process share its memory.
unsent = _Unsent()
LAST = b"Connection: close\r\n"


class Answer(web.StreamResponse):
    """A whole answer. `fields` are further header lines, each ending in CRLF, already safe to send."""

    # Read by aiohttp after the answer; an instance sets it only where the connection ends.
    _keep_alive = True

    def __init__(
        self, body: bytes | bytearray, status: int = 200, content_type: str = JSON, fields: bytes = b""
    ) -> None:
        # The base's __init__ builds what this class does without: a header multidict, a state dict, a reason.
        self._status = status
        self.payload = body
        self.media_type = content_type
        self.fields = fields

    @property
    def prepared(self) -> bool:
        """Whether it was written."""
        return self._eof_sent

    @property
    def reason(self) -> str:
        """The phrase of the status line."""
        return HTTPStatus(self._status).phrase

    @property
    def body_length(self) -> int:
        """Bytes of the body."""
        return len(self.payload)

    def close_connection(self) -> None:
        """Tell the client that this is the last answer on the connection."""
        self._keep_alive = False

    def last_bytes(self) -> bytes:
        """Return the answer as it is sent without a request, before the connection is closed."""
        head = head_of(self._status, self.media_type, len(self.payload))
        return b"".join((head, self.fields, LAST, b"\r\n", self.payload))

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write everything."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("the client went away")
        fields = self.fields
        if not (self._keep_alive and request.keep_alive):
            self._keep_alive = False
            fields += LAST
        elif request.version == HttpVersion10:
            fields += b"Connection: keep-alive\r\n"
        payload = self.payload
        head = head_of(self._status, self.media_type, len(payload))
        if request.method == "HEAD":
            payload = b""
        # Joining copies the body, which for a small one costs less than a second write.
        if len(payload) < 65536:
            transport.write(b"".join((head, fields, b"\r\n", payload)))
        else:
            transport.write(b"".join((head, fields, b"\r\n")))
            transport.write(payload)
        self._eof_sent = True
        # A client that asks faster than it reads waits here, so that what is buffered for it stays bounded.
        if request.protocol.writing_paused:
            await unsent.sent(request.writer.drain, transport, len(payload))
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


_ENCODE = msgspec.json.Encoder().encode


def json_answer(value: msgspec.Struct, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """Return `status` with `value` as JSON."""
    return Answer(_ENCODE(value), status)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Return `headers` as lines for `Answer.fields`. Their values come from this program alone."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
