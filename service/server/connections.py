"""The connections of a worker: how many there may be, and what each speaks.

Invariant: memory for connections is bounded; one too many is refused at once.
"""

import asyncio
import secrets
from collections import Counter
from typing import Any, cast

from aiohttp import web

from service.context import CONTEXT
from service.http.dispatch import Dispatcher
from service.http.heads import Heads
from service.http.problems import CONTENT_TYPE, Problem
from service.http.request_spans import traced
from service.http.response import LAST, head_of, header_lines
from service.server.fast_predict import fast_connections


class _Door(asyncio.Protocol):
    """A connection of which is not known yet from where it comes: it is handed on, or answered and closed."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        """Hand the connection on, unless there are too many of all or of its address."""
        # uvloop's transports are no subclass.
        transport = cast("asyncio.Transport", made)
        refusal = self._server.refusal(transport)
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
            access=context.access,
            quotas=context.quotas,
        )
        tracing = context.store.tracing
        serving = dispatcher if tracing is None else traced(dispatcher, tracing, context.access)
        super().__init__(serving, request_factory=template.request_factory)
        # For each connection: aiohttp's server would give them to its own class.
        self._settings = {**settings, "heads": Heads()}
        self._most = most
        # A plain `Connection` serves every request; these answer GET /predict faster.
        self._connect = fast_connections(context)
        # From where each connection comes, and how many are open from there.
        self._addresses: dict[web.RequestHandler, str] = {}
        self._open = Counter[str]()

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
        address = self._context.quotas.address(_peer(transport))
        self._addresses[handler] = address
        self._open[address] += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection out."""
        super().connection_lost(handler, exc)
        self._context.traffic.connections -= 1
        address = self._addresses.pop(handler)
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def refusal(self, transport: asyncio.Transport) -> bytes | None:
        """Return the answer to a connection that is one too many."""
        counts, quotas = self._context.counts, self._context.quotas
        if len(self.connections) >= self._most:
            counts.overloads += 1
            return _answer(Problem("overloaded", f"{self._most} connections are open", retry_after_s=1))
        address, most = quotas.address(_peer(transport)), quotas.connections
        if most is not None and self._open[address] >= most and not quotas.is_proxy(_peer(transport)):
            return _answer(quotas.too_many_connections(address, most))
        return None


def _peer(transport: asyncio.BaseTransport) -> str | None:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else None


def _answer(problem: Problem) -> bytes:
    request_id = secrets.token_hex(8)
    body = problem.document(request_id)
    fields = header_lines({**problem.headers, "X-Request-ID": request_id})
    return b"".join((head_of(problem.status, CONTENT_TYPE, len(body)), fields, LAST, b"\r\n", body))
