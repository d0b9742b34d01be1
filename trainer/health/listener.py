"""What a trainer says of itself over HTTP: `/livez` and `/metrics`. Invariant: an answer comes from the
memory and the disk of this process alone, so that there is one when the store is away.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from trainer.app import Trainer
from trainer.errors import CannotStartError
from trainer.health.metrics import of_archive, of_process, of_term
from trainer.settings import Address

_TRAINER = web.AppKey("trainer", Trainer)
# A Prometheus, a health check and a person have one each.
_MOST = 64
# In which a head must have come and the answer be written: a scrape takes 50 ms.
_LASTS_S = 10.0


@contextlib.asynccontextmanager
async def serving_health(trainer: Trainer, address: Address | None) -> AsyncIterator[None]:
    """Serve `/livez` and `/metrics` of `trainer` at `address`; None: serve nothing.

    Raises `CannotStartError` where the address cannot be had.
    """
    if address is None:
        yield
        return
    app = web.Application()
    app[_TRAINER] = trainer
    app.router.add_get("/livez", _livez)
    app.router.add_get("/metrics", _metrics)
    # Scrapes and probes come a few times a minute: none needs its connection kept.
    runner = web.AppRunner(app, access_log=None, logger=_LOGGER, shutdown_timeout=1.0, keepalive_timeout=0.0)
    await runner.setup()
    try:
        doors = _Doors(cast("web.Server", runner.server))
        try:
            server = await asyncio.get_running_loop().create_server(doors, address.host, address.port)
        except OSError as exc:
            raise CannotStartError(
                f"{address} cannot be listened on ({exc.strerror}): free it, or set FOLDIN_TRAINER_ADDRESS"
            ) from exc
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


class _Doors:
    """Makes the protocol of each connection to `server`: of up to `_MOST` at a time, each for `_LASTS_S`.

    A trainer that had all of its descriptors taken by others could archive nothing.
    """

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def __call__(self) -> asyncio.Protocol:
        if len(self._server.connections) >= _MOST:
            return _Closed()
        handler = self._server()
        asyncio.get_running_loop().call_later(_LASTS_S, _end, handler)
        return handler


def _end(handler: web.RequestHandler) -> None:
    # Its own `close` leaves one open that waits for a head.
    if handler.transport is not None:
        handler.transport.close()


class _Closed(asyncio.Protocol):
    """Of a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _NotTheirs(logging.Filter):
    """Leaves out what is wrong with a request, which is no news of the trainer."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))


_LOGGER = logging.getLogger("trainer.health")
_LOGGER.addFilter(_NotTheirs())


async def _livez(request: web.Request) -> web.Response:
    """Answer 200: the loop turns. A trainer that is stopped or stuck does not answer at all; one whose term
    has lost its lease and does not end, as a thread of it hangs, says 503: only another start helps.
    """
    trainer = request.app[_TRAINER]
    leadership, leads = trainer.leadership, trainer.term is not None
    if leadership is None or not leads:
        return web.json_response({"status": "ok", "role": "waiting", "fence": None})
    stuck = leadership.lost_s > trainer.term_ends_within_s
    said = {"status": "stuck" if stuck else "ok", "role": "leader", "fence": leadership.lease.fence}
    return web.json_response(said, status=503 if stuck else 200)


async def _metrics(request: web.Request) -> web.Response:
    trainer = request.app[_TRAINER]
    families = list(of_process(trainer))
    if (term := trainer.term) is not None:
        families += of_term(term)
        if (live := term.switch.live) is not None:
            snapshot = live.archive.snapshot()
            families += await asyncio.to_thread(lambda: list(of_archive(snapshot)))

    class Families(Collector):
        def collect(self) -> Iterable[Metric]:
            return families

    # A registry for this text alone: the one of the process has metrics of its own.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    ProcessCollector(registry=registry)
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
