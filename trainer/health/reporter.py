"""What a trainer tells of itself in the store, beside the workers of the service. Invariant: no failure of it
touches the trainer's work.
"""

import asyncio
import contextlib
import os
import time
from contextlib import AbstractAsyncContextManager

from featurestore.errors import StoreError
from featurestore.telemetry.points import EVERY_S, Point, look_at_servers
from processes.loop import beside
from processes.memory import resident_bytes
from trainer import log
from trainer.app import Trainer
from trainer.health.metrics import of_process, of_term
from trainer.health.signs import figures_of, signs_of


def reporting(trainer: Trainer) -> AbstractAsyncContextManager[None]:
    """Tell every ten seconds for the length of a `with`."""
    return beside(_report(trainer), "tell what this trainer does", _failed)


def _failed(work: str, exc: BaseException) -> None:
    log.unexpected("reporting_ended", exc, work=work)


async def _report(trainer: Trainer) -> None:
    host = os.uname().nodename
    while True:
        await asyncio.sleep(EVERY_S)
        if trainer.store is not None:
            try:
                # Not emptied meanwhile: a scrape without them begins the time of an alert anew.
                trainer.store_servers = await look_at_servers(trainer.store.redis)
            except StoreError:
                # Of a store that is one server, and away, others say so.
                trainer.store_servers = []
                continue
            with contextlib.suppress(StoreError):
                await trainer.store.telemetry.add(_point(trainer, host))


def _point(trainer: Trainer, host: str) -> Point:
    term = trainer.term
    point = Point("trainer", host, time.time(), EVERY_S, resident_bytes=resident_bytes())
    point.servers = trainer.store_servers
    if term is None:
        point.busy = "waits for the lease"
    else:
        progress = term.requests.progress
        point.busy = "" if progress is None else f"fit: {progress.phase}"
        live = term.switch.live
        point.generation = 0 if live is None else live.generation
        if (failed := term.refitter.failed) is not None:
            failure, point.failed_at = failed
            point.failed = f"{failure.code}: {failure.detail}"
    families = [*of_process(trainer), *(() if term is None else of_term(term))]
    point.wrong = signs_of(figures_of(families), point.at)
    return point
