"""Reads request bodies.

Invariant: the bytes of all bodies that a worker holds at once are bounded, and so is the wait.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from service.http.problems import Problem

_JSON_TYPES = ("", "application/json", "application/octet-stream")
_LINES_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")


class BodyReader:
    """Reads whole bodies of at most `limit_bytes`; all that are held at once stay under `budget_bytes`."""

    def __init__(self, *, limit_bytes: int, budget_bytes: int, timeout_s: float) -> None:
        self.limit_bytes = limit_bytes
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def read(
        self, request: web.BaseRequest, limit_bytes: int | None = None
    ) -> AsyncIterator[bytearray]:
        """Read the body; it counts as held until the block ends.

        Raises `body_too_large`, `request_timeout`, or `overloaded` where the budget is spent.
        """
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        # Bytes count as they come, not as they are announced: a client that only promises takes no room.
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    async for chunk in request.content.iter_any():
                        if len(body) + len(chunk) > limit:
                            raise too_large(limit)
                        if self._held_bytes + len(chunk) > self._budget_bytes:
                            raise Problem("overloaded", "too many large bodies at once", retry_after_s=1)
                        body += chunk
                        self._held_bytes += len(chunk)
            except TimeoutError:
                raise Problem("request_timeout", f"no whole body in {self._timeout_s:g} s") from None
            except web.RequestPayloadError as exc:
                raise Problem("malformed_request", f"the body cannot be read: {exc}") from exc
            yield body
        finally:
            self._held_bytes -= len(body)


def too_large(limit_bytes: int) -> Problem:
    """Return the problem of a body above `limit_bytes`."""
    return Problem("body_too_large", f"one call takes {limit_bytes} bytes")


def is_lines(request: web.BaseRequest) -> bool:
    """Whether the body is declared as one JSON value a line. Raises `unsupported_media_type`."""
    # Forms and plain text, which a web page of any origin may send, are refused: there is no login that would
    # tell the page's author from its visitor.
    kind = request.content_type if "Content-Type" in request.headers else ""
    charset = request.charset
    if charset is not None and charset.lower() not in ("utf-8", "utf8"):
        raise Problem("unsupported_media_type", f"the body must be UTF-8, not {charset}")
    if kind in _LINES_TYPES:
        return True
    if kind in _JSON_TYPES or kind.endswith("+json"):
        return False
    raise Problem("unsupported_media_type", f"send application/json, not {kind}")


def require_json(request: web.Request) -> None:
    """Raise `unsupported_media_type` unless the body is declared as one JSON value."""
    if is_lines(request):
        raise Problem("unsupported_media_type", "send application/json")
