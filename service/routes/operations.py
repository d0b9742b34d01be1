"""For operators: is the service alive, is it ready, what does it do.

Invariant: each answers though the store does not.
"""

import asyncio
import math
import time

import msgspec
from aiohttp import web

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.store import Store
from service.context import CONTEXT
from service.experiments.exposition import stored_figures
from service.http.problems import Problem
from service.http.response import Answer, json_answer
from service.metrics import CONTENT_TYPE, RECENT_S, expose, together
from service.openapi import MODEL, Route, content

# A probe or a scrape gives up within seconds; the timeout of the store may be longer.
_PROBE_TIMEOUT_S = 1.0


class Alive(msgspec.Struct):
    """The process runs and its event loop turns."""

    alive: bool


class Ready(msgspec.Struct, omit_defaults=True):
    """A generation is live here. `degraded`: the store does not answer, and reads rest on copies."""

    ready: bool
    generation: int
    epoch: int
    degraded: bool = False


class WorkerOut(msgspec.Struct):
    """One worker process of this host."""

    worker: int
    generation: int
    epoch: int
    in_flight: int
    resident_bytes: int
    age_s: float


class Status(msgspec.Struct):
    """What the page shows. `rmse` is that of ratings predicted before they were learned, `recent_rmse` over
    about a minute.
    """

    store_up: bool
    generation: int
    epoch: int
    engine: str | None
    link: str | None
    rank: int | None
    created: float | None
    users: int
    items: int
    ratings: int
    scale: list[float | None]
    metrics: dict[str, float]
    requests: int
    predictions: int
    accepted_ratings: int
    ratings_per_s: float
    recent_rmse: float | None
    rmse: float | None
    stream_lag: int | None
    workers: list[WorkerOut]


@Route("GET", "/livez", "Operations", Alive, needs="public")
async def get_livez(request: web.Request) -> web.StreamResponse:
    """Whether the process runs."""
    return json_answer(Alive(alive=True))


@Route("GET", "/readyz", "Operations", Ready, MODEL, needs="public")
async def get_readyz(request: web.Request) -> web.StreamResponse:
    """Whether to send requests here."""
    context = request.app[CONTEXT]
    # A load balancer that looks here sends no more to a worker before that stops listening.
    if context.traffic.draining:
        raise Problem("overloaded", "this worker is ending", retry_after_s=1)
    live = context.live()
    # All workers lose the store at once: if they said that they are not ready, a load balancer would have
    # none left to ask for what they can answer.
    degraded = False
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            await context.store.generations.live()
    except (StoreUnavailable, TimeoutError):
        degraded = True
    return json_answer(Ready(True, live.generation, live.epoch, degraded))


async def _lag(store: Store, epoch: int) -> dict[int, int] | None:
    """Return the events of each partition that wait for the trainer; None where the store does not answer."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            return await store.stream.lag(epoch)
    except (StoreError, TimeoutError):
        return None


@Route("GET", "/metrics", "Operations", content({"type": "string"}, CONTENT_TYPE), needs="read")
async def get_metrics(request: web.Request) -> web.StreamResponse:
    """For Prometheus.

    The counts of all workers of this host.
    """
    context = request.app[CONTEXT]
    live = context.follower.live
    lag = await _lag(context.store, live.epoch if live else 1)
    # Reading files waits for the disk.
    snapshots = await asyncio.to_thread(context.snapshot_files.all, context.snapshot())
    pointer = context.follower.pointer
    back = pointer.rolled_back.generation if pointer and pointer.rolled_back else 0
    running = context.follower.experiments.running
    stored = [] if lag is None else await stored_figures(context.store, running, _PROBE_TIMEOUT_S)
    text = expose(snapshots, lag, lag is not None, context.follower.full, back, more=stored)
    return Answer(text, content_type=CONTENT_TYPE)


@Route("GET", "/status", "Operations", Status, needs="read")
async def get_status(request: web.Request) -> web.StreamResponse:
    """What is live, in numbers."""
    context = request.app[CONTEXT]
    live, scale = context.follower.live, context.store.config.scale
    lag = await _lag(context.store, live.epoch if live else 1)
    snapshots = await asyncio.to_thread(context.snapshot_files.all, context.snapshot())
    total = together(snapshots)
    summary = live.meta.summary if live else None
    seen, errors = total.recent_errors, total.squared_error
    now = time.time()
    status = Status(
        store_up=lag is not None,
        generation=live.generation if live else 0,
        epoch=live.epoch if live else 0,
        engine=summary.engine if summary else None,
        link=summary.link if summary else None,
        rank=summary.rank if summary else None,
        created=summary.created if summary else None,
        users=summary.n_users if summary else 0,
        items=summary.n_items if summary else 0,
        ratings=summary.n_ratings if summary else 0,
        scale=[scale.low, scale.high, scale.step],
        metrics=summary.metrics if summary else {},
        requests=sum(sum(by_status.values()) for by_status in total.requests.values()),
        predictions=total.predictions,
        accepted_ratings=total.ratings,
        ratings_per_s=total.recent_ratings / RECENT_S,
        # Under half a rating is what is left of long ago.
        recent_rmse=math.sqrt(total.recent_squared_error / seen) if seen > 0.5 else None,
        rmse=math.sqrt(errors.sum / errors.count) if errors.count else None,
        stream_lag=sum(lag.values()) if lag is not None else None,
        workers=[
            # The clock may have been set back since that worker wrote its snapshot.
            WorkerOut(
                *(each.worker, each.generation, each.epoch, each.in_flight, each.resident_bytes),
                max(0.0, now - each.at),
            )
            for each in snapshots
        ],
    )
    return json_answer(status)
