"""The application: its context, started from top to bottom and ended in reverse, and its routes.

Invariant: the port opens when everything that a handler uses is there.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from threadpoolctl import threadpool_limits

from factors import Scale
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.generations.follower import Follower
from featurestore.settings import redacted
from featurestore.store import Store
from featurestore.users.compiled import load_fold_in
from processes.loop import beside
from service.catalogue.follower import CatalogueFollower
from service.context import CONTEXT, ServiceContext
from service.experiments.background import BackgroundSteps
from service.experiments.counting import ArmCounts
from service.feedback import FeedbackRecorder
from service.http.audit import Audit
from service.http.bodies import Admission, BodyReader
from service.http.dispatch import Traffic
from service.http.rating_limits import MemoryWatch, RatingQuota
from service.key_copy import following_keys
from service.metrics import RECENT_S, Counts, SnapshotFiles, error_bounds
from service.micro_batcher import MicroBatcher
from service.neighbours import Nearest
from service.ranking_queue import RankingDesk
from service.rating_errors import RatingErrors
from service.routes import OPERATIONS, add_routes
from service.rules.scenarios import ScenarioReader
from service.scoring import PairScorer
from service.settings import ServiceSettings, WorkerSlot
from service.telemetry.reporter import Reporter
from service.training import Training

log = logging.getLogger("foldin.service")

# A scrape sees the other workers as they were at most so long ago.
_SAMPLE_S = 1.0
# Often enough for the person who looks on, without filling a log.
_SAY_AGAIN_S = 5.0
# A store that starts is found within this time; one attempt costs it a connection.
_RETRY_S = 0.25
# The largest tables take a few seconds to come over; longer than this is a fault that people should see.
_FIRST_LOAD_S = 20.0
_FIRST_POLL_S = 0.01  # by so much a start may be late; a look costs next to nothing
_EXPORTS = 2  # at a time: each holds some MB, and reads the store as fast as its client reads it
# Erasures that a worker waits for at a time; of more the receipts tell.
_ERASURES = 16


def build_app(settings: ServiceSettings, slot: WorkerSlot, *, loopback: bool) -> web.Application:
    """Build the application, not started; `loopback`: only this machine can reach it. Starting it raises
    `StoreRefused`, CannotStartError, or `StoreUnavailable` after a bounded wait.
    """

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with _service_context(settings, slot, loopback=loopback) as context:
            app[CONTEXT] = context
            yield

    async def ending(app: web.Application) -> None:
        # A start that failed has no context.
        if (context := app.get(CONTEXT)) is not None:
            context.traffic.draining = True

    app = web.Application(client_max_size=settings.body_bytes)
    app.cleanup_ctx.append(running)
    app.on_shutdown.append(ending)
    add_routes(app)
    return app


@asynccontextmanager
async def _service_context(
    settings: ServiceSettings, slot: WorkerSlot, *, loopback: bool
) -> AsyncIterator[ServiceContext]:
    # One BLAS thread: the products of one answer are small, and the other cores belong to other workers.
    with threadpool_limits(limits=1):
        async with (
            _opened(settings) as store,
            following_keys(store, settings, slot, loopback=loopback) as access,
            _following(store, settings) as (follower, catalogue),
        ):
            scale = store.scale.value
            snapshot_files = SnapshotFiles(slot.folder, slot.worker)
            counts = _counts(slot, scale, snapshot_files)
            audit = Audit(OPERATIONS, settings.proxies)
            traffic = Traffic()
            arm_counts = ArmCounts()
            scorer = PairScorer(store, counts)
            context = ServiceContext(
                settings=settings,
                slot=slot,
                store=store,
                follower=follower,
                counts=counts,
                snapshot_files=snapshot_files,
                traffic=traffic,
                bodies=BodyReader(
                    limit_bytes=settings.body_bytes,
                    budget_bytes=settings.bodies_bytes,
                    timeout_s=settings.body_timeout_s,
                ),
                predictions=Admission(
                    counts, at_once_bytes=settings.large_bytes, waiting_bytes=settings.batch_waiting_bytes
                ),
                imports=Admission(
                    counts, at_once_bytes=settings.large_bytes, waiting_bytes=settings.import_waiting_bytes
                ),
                exports=asyncio.Semaphore(_EXPORTS),
                erasures=asyncio.Semaphore(_ERASURES),
                batcher=MicroBatcher(store, follower, counts),
                scorer=scorer,
                rating_errors=RatingErrors(store, scorer, counts),
                rankings=RankingDesk(counts, most_waiting=settings.rankings_waiting),
                nearest=Nearest(store),
                catalogue=catalogue,
                scenarios=ScenarioReader(store.scenarios),
                training=Training(store, follower, settings.train_wait_s),
                access=access,
                audit=audit,
                rating_quota=RatingQuota(settings.key_ratings),
                arm_counts=arm_counts,
                feedback=FeedbackRecorder(
                    store, follower, counts, arm_counts, most_entries=settings.history_entries
                ),
                memory=MemoryWatch(),
            )
            async with _at_work(context):
                yield context
            await context.batcher.close()
            await context.rankings.close()
            await context.nearest.close()


@asynccontextmanager
async def _at_work(context: ServiceContext) -> AsyncIterator[None]:
    """Do what a worker does beside answering."""
    store = context.store
    steps = BackgroundSteps("hand over figures of experiments", context.counts)
    async with (
        _sampled(context),
        beside(context.arm_counts.run(store.tallies, steps), steps.work, _failed),
        beside(context.rating_errors.run(), "predict what was rated", _failed),
        beside(context.feedback.run(), "record what was shown", _failed),
        beside(load_fold_in(context.settings.cache_dir), "load the compiled fold-in", _failed),
        beside(Reporter(context, os.uname().nodename).run(), "tell what this worker does", _failed),
    ):
        yield


def _counts(slot: WorkerSlot, scale: Scale, snapshot_files: SnapshotFiles) -> Counts:
    now = time.time()
    counts = Counts(slot.worker, now, error_bounds(scale.low, scale.high), starts=1, since=now)
    # The counters of the worker that had this slot before: a counter never falls.
    if (earlier := snapshot_files.earlier()) is not None:
        counts.carry(earlier)
    return counts


@asynccontextmanager
async def _opened(settings: ServiceSettings) -> AsyncIterator[Store]:
    store = await _open_store(settings)
    try:
        yield store
    finally:
        await store.close()


async def _open_store(settings: ServiceSettings) -> Store:
    """Open the store; wait for one that does not answer yet, and log that."""
    loop = asyncio.get_running_loop()
    began, logged = loop.time(), -math.inf
    where = redacted(settings.store.url)
    while True:
        try:
            return await Store.open(settings.store, traced_as="foldin-service")
        except StoreUnavailable as exc:
            waited_s = loop.time() - began
            if waited_s >= settings.start_wait_s:
                raise StoreUnavailable(f"no feature store at {where} after {waited_s:.0f} s: {exc}") from exc
            if loop.time() - logged >= _SAY_AGAIN_S:
                logged = loop.time()
                log.warning("waiting for the feature store url=%s reason=%s", where, exc)
            await asyncio.sleep(_RETRY_S)


@asynccontextmanager
async def _following(
    store: Store, settings: ServiceSettings
) -> AsyncIterator[tuple[Follower, CatalogueFollower]]:
    """Follow the live generation, which is loaded when this block begins, and the catalogue."""
    worker, catalogue = f"{os.uname().nodename}:{os.getpid()}", CatalogueFollower(store)
    follower = Follower(store, settings.cache_dir, worker, prepare=catalogue.prepare)
    # Told to stop rather than cancelled: it takes leave of the store, so that nothing waits for this worker.
    stop = asyncio.Event()
    async with beside(catalogue.run(), "follow the catalogue", _failed):
        task = asyncio.create_task(follower.run(stop), name="follow the live generation")
        try:
            await _load_first(store, follower)
            yield follower, catalogue
        finally:
            stop.set()
            await asyncio.gather(task, return_exceptions=True)


async def _load_first(store: Store, follower: Follower) -> None:
    """Wait for what is live before the port opens: a replica that joins must not say that it has nothing.

    One that cannot load it within the time starts all the same, and `/readyz` says so.
    """
    try:
        async with asyncio.timeout(_FIRST_LOAD_S):
            if (await store.generations.live()).generation:
                while follower.live is None:  # noqa: ASYNC110 -- it swaps a reference, there is no event
                    await asyncio.sleep(_FIRST_POLL_S)
    except (StoreError, TimeoutError) as exc:
        log.warning("starts without a generation reason=%r", exc)


def _failed(work: str, exc: BaseException) -> None:
    log.error("ends work=%r reason=%r", work, exc, exc_info=exc)


@asynccontextmanager
async def _sampled(context: ServiceContext) -> AsyncIterator[None]:
    """Write the snapshot of this worker at once, once a second, and once more at the end."""
    # The others have it from it since when this replica runs.
    await asyncio.to_thread(context.snapshot_files.write, context.snapshot())
    try:
        async with beside(_sample_always(context), "sample the counts", _failed):
            yield
    finally:
        await asyncio.to_thread(context.snapshot_files.write, context.counts)


async def _sample_always(context: ServiceContext) -> None:
    counts, store = context.counts, context.store
    # The store's own counters begin at 0 with this process.
    earlier_folds, earlier_damaged, earlier_reconnects = counts.folds, counts.damaged, counts.reconnects
    connections = [each for each in (store.hot, store.bulk) if each is not None]
    fade = math.exp(-_SAMPLE_S / RECENT_S)
    while True:
        await asyncio.sleep(_SAMPLE_S)
        counts.folds = earlier_folds + store.users.folded_total
        counts.damaged = earlier_damaged + store.users.corrupt_total
        counts.reconnects = earlier_reconnects + sum(each.reconnects_total for each in connections)
        counts.recent_ratings *= fade
        counts.recent_errors *= fade
        counts.recent_squared_error *= fade
        await asyncio.to_thread(context.memory.look)
        await asyncio.to_thread(context.snapshot_files.write, context.snapshot())
