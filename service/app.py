"""The application: its state, and what belongs to which address.

Invariant: what starts here is ended here, in reverse.

State is in typed keys, set by the contexts below, and reaches handlers through `request.app`.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator

from aiohttp import web
from threadpoolctl import threadpool_limits

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.generations.follower import Follower
from featurestore.settings import redacted
from featurestore.store import Store
from service.context import (
    BATCHES,
    BOARD,
    BODIES,
    COUNTS,
    EDGE,
    FOLLOWER,
    IMPORTS,
    PLACE,
    PREDICTOR,
    RANKING,
    SETTINGS,
    STORE,
    TRAINING,
)
from service.description import describe
from service.http.admission import Admission
from service.http.bodies import BodyReader
from service.http.dispatch import Edge
from service.metrics import RECENT_S, Board, Snapshot, error_bounds
from service.micro_batcher import PREDICT_ROUTE, Predictor
from service.ranking_queue import RankingDesk
from service.routes import add_routes
from service.settings import Place, ServiceSettings
from service.training import Training

log = logging.getLogger("foldin.service")

_SAMPLE_S = 1.0
_SAY_AGAIN_S = 5.0
_RETRY_S = 0.25
# The largest tables take a few seconds to come over; longer than this is a fault that people should see.
_FIRST_LOAD_S = 20.0
_FIRST_POLL_S = 0.01


def build_app(settings: ServiceSettings, place: Place) -> web.Application:
    """The application, not started. Starting it raises `StoreRefused`, or `StoreUnavailable` after a bounded
    wait.
    """
    app = web.Application(client_max_size=settings.body_bytes)
    app[SETTINGS] = settings
    app[PLACE] = place
    app[BODIES] = BodyReader(
        limit_bytes=settings.body_bytes, budget_bytes=settings.bodies_bytes, timeout_s=settings.body_timeout_s
    )
    app.cleanup_ctx.extend((_quiet_blas, _store, _counting, _following, _answering))
    add_routes(app)
    return app


async def _quiet_blas(app: web.Application) -> AsyncIterator[None]:
    """One BLAS thread: the products of one answer are small, and the other cores belong to other workers."""
    with threadpool_limits(limits=1):
        yield


async def open_store(settings: ServiceSettings) -> Store:
    """Open the store, waiting for one that does not answer yet. Says what it waits for."""
    loop = asyncio.get_running_loop()
    began, said = loop.time(), -math.inf
    while True:
        try:
            return await Store.open(settings.store)
        except StoreUnavailable as exc:
            waited_s = loop.time() - began
            where = redacted(settings.store.url)
            if waited_s >= settings.start_wait_s:
                raise StoreUnavailable(f"no feature store at {where} after {waited_s:.0f} s: {exc}") from exc
            if loop.time() - said >= _SAY_AGAIN_S:
                said = loop.time()
                log.warning("waiting for the feature store url=%s reason=%s", where, exc)
            await asyncio.sleep(_RETRY_S)


async def _store(app: web.Application) -> AsyncIterator[None]:
    store = await open_store(app[SETTINGS])
    app[STORE] = store
    yield
    await store.close()


async def _counting(app: web.Application) -> AsyncIterator[None]:
    place, scale = app[PLACE], app[STORE].config.scale
    board = Board(place.folder, place.worker)
    counts = Snapshot(place.worker, time.time(), error_bounds(scale.low, scale.high))
    if (earlier := board.earlier()) is not None:
        counts.carry(earlier)
    app[BOARD], app[COUNTS] = board, counts
    task = asyncio.create_task(_sample_always(app), name="sample the counts")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(board.leave, counts)


async def _sample_always(app: web.Application) -> None:
    fade = math.exp(-_SAMPLE_S / RECENT_S)
    counts, board, store = app[COUNTS], app[BOARD], app[STORE]
    earlier_folds, earlier_reconnects = counts.folds, counts.reconnects
    connections = [each for each in (store.hot, store.bulk) if each is not None]
    while True:
        await asyncio.sleep(_SAMPLE_S)
        counts.folds = earlier_folds + store.users.folded_total
        counts.reconnects = earlier_reconnects + sum(each.reconnects_total for each in connections)
        for name in ("recent_ratings", "recent_errors", "recent_squared_error"):
            setattr(counts, name, getattr(counts, name) * fade)
        describe(app)
        await asyncio.to_thread(board.leave, counts)


async def _following(app: web.Application) -> AsyncIterator[None]:
    worker_id = f"{os.uname().nodename}:{os.getpid()}"
    follower = Follower(app[STORE], app[SETTINGS].cache_dir, worker_id)
    app[FOLLOWER] = follower
    stop = asyncio.Event()
    task = asyncio.create_task(follower.run(stop), name="follow the live generation")
    await _load_first(app[STORE], follower)
    yield
    stop.set()
    await asyncio.gather(task, return_exceptions=True)


async def _load_first(store: Store, follower: Follower) -> None:
    """Wait for what is live before the port opens: a joining replica must not say that it has nothing.

    One that cannot load it within the time starts all the same, and `/readyz` says so.
    """
    try:
        async with asyncio.timeout(_FIRST_LOAD_S):
            if (await store.generations.live()).generation:
                while follower.live is None:  # noqa: ASYNC110 -- it swaps a reference and tells nobody
                    await asyncio.sleep(_FIRST_POLL_S)
    except (StoreError, TimeoutError) as exc:
        log.warning("starts without a generation reason=%r", exc)


async def _answering(app: web.Application) -> AsyncIterator[None]:
    settings, store, follower, counts = app[SETTINGS], app[STORE], app[FOLLOWER], app[COUNTS]
    app[PREDICTOR] = predictor = Predictor(store, follower, counts)
    app[BATCHES] = Admission(counts, at_once=settings.large_bytes, waiting=settings.batch_waiting_bytes)
    app[IMPORTS] = Admission(counts, at_once=settings.large_bytes, waiting=settings.import_waiting_bytes)
    app[RANKING] = ranking = RankingDesk(counts, waiting=settings.rankings_waiting)
    app[TRAINING] = Training(store, follower, settings.train_wait_s)
    app[EDGE] = Edge(
        counts,
        quick=predictor.quick,
        enter=predictor.enter,
        quick_route=PREDICT_ROUTE,
        limit=settings.in_flight,
    )
    yield
    await predictor.close()
    await ranking.close()
