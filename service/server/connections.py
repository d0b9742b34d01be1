"""The connections of a worker: what each speaks.

How many there may be is bounded by nginx, in front of the service.
"""

import asyncio
from typing import Any

from aiohttp import web

from service.context import CONTEXT
from service.http.dispatch import Dispatcher
from service.http.request_spans import traced
from service.server.fast_predict import fast_connections


class Server(web.Server):
    """Serves `app`, which has started, on connections with `settings` each.

    `template`: the server that aiohttp would take for it.
    """

    def __init__(self, app: web.Application, template: web.Server, settings: dict[str, Any]) -> None:
        self._context = context = app[CONTEXT]
        dispatcher = Dispatcher(
            template.request_handler, counts=context.counts, traffic=context.traffic, audit=context.audit
        )
        tracing = context.store.tracing
        serving = dispatcher if tracing is None else traced(dispatcher, tracing, context.access)
        super().__init__(serving, request_factory=template.request_factory)
        # For each connection: aiohttp's server would give them to its own class.
        self._settings = settings
        # A plain `Connection` serves every request; these answer GET /predict faster.
        self._connect = fast_connections(context)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return self._connect(self, loop=self._loop, **self._settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection in."""
        super().connection_made(handler, transport)
        self._context.traffic.connections += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection out."""
        super().connection_lost(handler, exc)
        self._context.traffic.connections -= 1
