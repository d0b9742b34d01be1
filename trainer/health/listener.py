"""What a trainer says of itself over HTTP: `/livez` and `/metrics`. Invariant: an answer comes from the
memory and the disk of this process alone, so that there is one when the store is away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from trainer.app import Trainer
from trainer.errors import CannotStartError
from trainer.health.metrics import of_archive, of_process, of_term
from trainer.settings import Address

_TRAINER = web.AppKey("trainer", Trainer)


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
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as exc:
            raise CannotStartError(
                f"{address} cannot be listened on ({exc.strerror}): free it, or set FOLDIN_TRAINER_ADDRESS"
            ) from exc
        yield
    finally:
        await runner.cleanup()


async def _livez(request: web.Request) -> web.Response:
    """Answer 200: the loop turns. A trainer that is stopped or stuck does not answer at all."""
    trainer = request.app[_TRAINER]
    leads = trainer.term is not None
    fence = trainer.leadership.lease.fence if trainer.leadership is not None and leads else None
    return web.json_response({"status": "ok", "role": "leader" if leads else "waiting", "fence": fence})


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
