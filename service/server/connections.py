"""The connections of a worker: how many there may be, and what each speaks.

Invariant: memory for connections is bounded; one too many is refused at once.
"""

import asyncio
import secrets
from typing import Any, cast

from aiohttp import web

from service.context import CONTEXT
from service.http.dispatch import Dispatcher
from service.http.problems import CONTENT_TYPE, Problem
from service.http.response import header_lines
from service.server.fast_predict import fast_connections


class _Refusal(asyncio.Protocol):
    """A connection beyond the limit: it gets `answer`, whatever it sends, and is closed."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer and close."""
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._answer)
        transport.close()


class Server(web.Server):
    """Serves `app`, which has started, on up to `most` connections at a time with `settings` each.

    `template`: the server that aiohttp would take for it.
    """

    def __init__(
        self, app: web.Application, template: web.Server, settings: dict[str, Any], *, most: int
    ) -> None:
        self._context = context = app[CONTEXT]
        addresses = [resource.canonical for resource in app.router.resources()]
        dispatcher = Dispatcher(
            template.request_handler, addresses, context.counts, context.traffic, context.audit
        )
        super().__init__(dispatcher, request_factory=template.request_factory)
        # For each connection: aiohttp's server would give them to its own class.
        self._settings = settings
        self._most = most
        # A plain `Connection` serves every request; these answer GET /predict faster.
        self._connect = fast_connections(context)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        if len(self.connections) >= self._most:
            # No aiohttp protocol: it takes memory, which is what is short. All that the
            # event loop asks of a protocol is there.
            return cast("web.RequestHandler", _Refusal(self._refusal()))
        return self._connect(self, loop=self._loop, **self._settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection in."""
        super().connection_made(handler, transport)
        self._context.traffic.connections += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection out."""
        super().connection_lost(handler, exc)
        self._context.traffic.connections -= 1

    def _refusal(self) -> bytes:
        self._context.counts.overloads += 1
        problem = Problem("overloaded", f"{self._most} connections are open", retry_after_s=1)
        request_id = secrets.token_hex(8)
        body = problem.document(request_id)
        fields = {
            "Content-Type": CONTENT_TYPE,
            "Content-Length": str(len(body)),
            **problem.headers,
            "X-Request-ID": request_id,
            "Connection": "close",
        }
        return b"HTTP/1.1 503 Service Unavailable\r\n%b\r\n%b" % (header_lines(fields), body)
