"""The connections of a worker: how many there may be, and what each speaks.

Invariant: memory for connections is bounded; one too many is told so at once.
"""

import asyncio
from typing import Any, cast

from aiohttp import web

from service.http.dispatch import Edge, EdgeProtocol, Handler
from service.http.fast_predict import POSSIBLE, ShortWay


class _Refusal(asyncio.Protocol):
    """A connection beyond the limit: it is told so at once, whatever it sends, and closed."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer and close."""
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._answer)
        transport.close()


class EdgeServer(web.Server):
    """Makes a `ShortWay` a connection, up to `most` of them."""

    def __init__(
        self, template: web.Server, handler: Handler, limits: dict[str, Any], *, edge: Edge, most: int
    ) -> None:
        super().__init__(handler, request_factory=template.request_factory)
        self._limits = limits
        self._edge = edge
        self._most = most

    def __call__(self) -> web.RequestHandler:
        """A protocol for a new connection."""
        if len(self.connections) >= self._most:
            # All that the event loop asks of a protocol is there.
            return cast("web.RequestHandler", _Refusal(self._edge.refused_connection(self._most)))
        if POSSIBLE:
            return ShortWay(self, edge=self._edge, loop=self._loop, **self._limits)
        return EdgeProtocol(self, loop=self._loop, **self._limits)
