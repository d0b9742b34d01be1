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
from service.http.request_spans import traced
from service.http.response import LAST, head_of, header_lines
from service.server.fast_predict import fast_connections


class _Door(asyncio.Protocol):
    """A new connection: it is handed on, or answered and closed."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        """Hand the connection on, unless there are too many."""
        # uvloop's transports are no subclass.
        transport = cast("asyncio.Transport", made)
        refusal = self._server.refusal()
        if refusal is not None:
            # Before there is a protocol of aiohttp's: that takes memory, which is what is short.
            transport.write(refusal)
            transport.close()
            return
        protocol = self._server.connect()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


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
            template.request_handler,
            addresses,
            counts=context.counts,
            traffic=context.traffic,
            audit=context.audit,
        )
        tracing = context.store.tracing
        serving = dispatcher if tracing is None else traced(dispatcher, tracing, context.access)
        super().__init__(serving, request_factory=template.request_factory)
        # For each connection: aiohttp's server would give them to its own class.
        self._settings = settings
        self._most = most
        # A plain `Connection` serves every request; these answer GET /predict faster.
        self._connect = fast_connections(context)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        # All that the event loop asks of a protocol is there.
        return cast("web.RequestHandler", _Door(self))

    def connect(self) -> web.RequestHandler:
        """Return what speaks on a connection that is let in."""
        return self._connect(self, loop=self._loop, **self._settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection in."""
        super().connection_made(handler, transport)
        self._context.traffic.connections += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection out."""
        super().connection_lost(handler, exc)
        self._context.traffic.connections -= 1

    def refusal(self) -> bytes | None:
        """Return the answer to a connection that is one too many."""
        if len(self.connections) < self._most:
            return None
        self._context.counts.overloads += 1
        return _answer(Problem("overloaded", f"{self._most} connections are open", retry_after_s=1))


def _answer(problem: Problem) -> bytes:
    request_id = secrets.token_hex(8)
    body = problem.document(request_id)
    fields = header_lines({**problem.headers, "X-Request-ID": request_id})
    return b"".join((head_of(problem.status, CONTENT_TYPE, len(body)), fields, LAST, b"\r\n", body))
