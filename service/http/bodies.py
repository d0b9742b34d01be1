"""Takes request bodies in: reads them, and bounds how many large ones are worked on.

Invariant: the bytes of all bodies that a worker holds at once are bounded, and so is the wait for each. Of
large ones, so many are worked on and so many bytes wait; one more is refused at once.

A call of 10,000 pairs takes as long as a thousand of one pair, and holds thirty times its body while it is
worked on. Were they not bounded, a few clients that send more than a worker can carry would make all others
wait for seconds.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import NamedTuple

from aiohttp import hdrs, web

from service.http.connection import HEAD_BYTES, Connection
from service.http.problems import Problem
from service.metrics import Counts

_JSON_TYPE = "application/json"
_OTHER_JSON = re.compile(r"[\w.-]+/[\w.+-]+\+json", re.ASCII)
_CHARSET = re.compile(r';[ \t]*charset="?([^";\s]*)', re.I)
_LINES_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
# With the option of curl, whose -d alone says that the body is a form.
_SEND_JSON = "send Content-Type: application/json (curl --json, or -H 'content-type: application/json')"
# A body that is worked on in less than half a millisecond: some 100 pairs.
SMALL_BYTES = 2_048
# While one waits for the store, another is worked on; each more makes the turns of the event loop longer.
AT_ONCE = 2


class Admission:
    """Calls of one kind: two are worked on at a time, or more if their bodies have up to `at_once_bytes`
    together; others wait, with bodies of up to `waiting_bytes`, or one of any size.
    """

    def __init__(self, counts: Counts, *, at_once_bytes: int, waiting_bytes: int) -> None:
        self._counts = counts
        self._at_once_bytes = at_once_bytes
        self._most_waiting_bytes = waiting_bytes
        self._calls = self._working = 0
        self._waiting = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def admit(self, size: int) -> AsyncIterator[None]:
        """Work on a body of `size` bytes in the block, in the order of arrival; on a small one at once.

        Raises `overloaded` where too much waits already.
        """
        # A small call does not queue behind large calls.
        if size <= SMALL_BYTES:
            yield
            return
        # A call that would fit waits too while others do: else large ones would never have their turn.
        if self._queue or not self._fits(size):
            await self._wait(size)
        else:
            self._begin(size)
        try:
            yield
        finally:
            self._end(size)

    def _fits(self, size: int) -> bool:
        return self._calls < AT_ONCE or self._working + size <= self._at_once_bytes

    def _begin(self, size: int) -> None:
        self._calls += 1
        self._working += size

    def _end(self, size: int) -> None:
        self._calls -= 1
        self._working -= size
        self._admit()

    async def _wait(self, size: int) -> None:
        if self._queue and self._waiting + size > self._most_waiting_bytes:
            self._counts.overloads += 1
            detail = f"{len(self._queue)} such calls of {self._waiting} bytes wait already"
            raise Problem("overloaded", detail, retry_after_s=1)
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, admitted)
        self._queue.append(entry)
        self._waiting += size
        try:
            await admitted
        except asyncio.CancelledError:
            # A call that gives up leaves no trace, whether it waited or had just been let in.
            if entry in self._queue:
                self._queue.remove(entry)
                self._waiting -= size
                self._admit()
            else:
                self._end(size)
            raise

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            size, admitted = self._queue.popleft()
            self._waiting -= size
            self._begin(size)
            admitted.set_result(None)


class Received(NamedTuple):
    """A body, and whether it is declared as one JSON value a line."""

    raw: bytearray
    lines: bool


class BodyReader:
    """Reads whole bodies of at most `limit_bytes`; all that are held at once stay under `budget_bytes`."""

    def __init__(self, *, limit_bytes: int, budget_bytes: int, timeout_s: float) -> None:
        self._limit_bytes = limit_bytes
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def read(
        self,
        request: web.BaseRequest,
        admission: Admission | None,
        *,
        takes_lines: bool = False,
        limit_bytes: int | None = None,
    ) -> AsyncIterator[Received]:
        """Read the body and wait until `admission` lets it in; it counts as held until the block ends.

        Raises `unsupported_media_type`, `body_too_large`, `request_timeout`, or `overloaded` where the budget
        is spent.
        """
        # Before the body is read: one of a wrong type need not come. No body is of no type.
        lines = request.body_exists and _declares_lines(request)
        if lines and not takes_lines:
            raise Problem("unsupported_media_type", _SEND_JSON)
        limit = self._limit_bytes if limit_bytes is None else limit_bytes
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        # Bytes count as they come, not as they are announced: a client that only promises takes no room.
        body = bytearray()
        connection = request.protocol
        assert isinstance(connection, Connection)
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    async for chunk in request.content.iter_any():
                        # A chunk brings its length and perhaps extensions, which count beyond a head's worth.
                        framed = connection.body_bytes - HEAD_BYTES
                        if max(len(body) + len(chunk), framed) > limit:
                            raise _too_large(limit)
                        if self._held_bytes + len(chunk) > self._budget_bytes:
                            raise Problem("overloaded", "too many large bodies at once", retry_after_s=1)
                        body += chunk
                        self._held_bytes += len(chunk)
            except TimeoutError:
                raise Problem("request_timeout", f"no whole body in {self._timeout_s:g} s") from None
            except (web.RequestPayloadError, ConnectionError) as exc:  # the second: the client has left
                raise Problem("malformed_request", f"the body cannot be read: {exc}") from exc
            async with admission.admit(len(body)) if admission else nullcontext():
                yield Received(body, lines)
        finally:
            self._held_bytes -= len(body)


def _too_large(limit_bytes: int) -> Problem:
    return Problem("body_too_large", f"one call takes {limit_bytes} bytes")


def _declares_lines(request: web.BaseRequest) -> bool:
    # Forms, plain text and bodies without a type are what a web page of any origin can make a browser send
    # without asking the service first.
    if hdrs.CONTENT_TYPE not in request.headers:
        raise Problem("unsupported_media_type", _SEND_JSON)
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        # It is not echoed: any text may stand there.
        raise Problem("unsupported_media_type", "send the body without Content-Encoding")
    # aiohttp reads it as a header of e-mail: comments within comments, in time that grows with the square.
    kind, _, parameters = request.headers[hdrs.CONTENT_TYPE].partition(";")
    if any(charset.lower() not in {"utf-8", "utf8"} for charset in _CHARSET.findall(f";{parameters}")):
        raise Problem("unsupported_media_type", "the body must be UTF-8")
    kind = kind.strip().lower()
    if kind in _LINES_TYPES:
        return True
    if kind == _JSON_TYPE or _OTHER_JSON.fullmatch(kind):
        return False
    raise Problem("unsupported_media_type", _SEND_JSON)
