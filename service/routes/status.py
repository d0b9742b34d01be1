"""For operators: is the service alive, is it ready, what does it do.

Invariant: each answers though the store does not.
"""

import asyncio
import contextlib
import math
import time
from typing import Literal

import msgspec
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily

from featurestore.access import Role
from featurestore.errors import StoreDamaged, StoreError
from featurestore.keys import shown_key
from featurestore.ratings.stream import Progress
from featurestore.store import Store
from featurestore.telemetry.points import EVERY_S, Backup
from service.context import CONTEXT
from service.http.parsing import Query
from service.http.problems import Problem
from service.http.response import Answer, json_answer
from service.metrics import CONTENT_TYPE, RECENT_S, expose, stored_figures, together
from service.openapi import MODEL, STORE, Route, content, query_parameter, whole
from service.telemetry.history import LONGEST_S, HistoryOut, history_of

# A probe or a scrape gives up within seconds; the timeout of the store may be longer.
_PROBE_TIMEOUT_S = 1.0
_BACKUP = "foldin_backup_timestamp_seconds"


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


class AccessOut(msgspec.Struct):
    """The role of the key that asks, `none` without one that is known; `keys`: whether calls need one."""

    role: Literal["none", "metrics", "read", "rate", "operate"]
    keys: bool


class Status(msgspec.Struct):
    """What the page shows. `rmse` is that of ratings predicted before they were learned, `recent_rmse` over
    about a minute. `scale`: low end, high end and step; one that is not `scale_decided` is what the first
    rating makes it. `known_events`: ratings and other events since the history began; `known_items`: items
    that have a row, in a fit or not yet. `backed_up`: when the last `foldin backup` ended, in seconds since
    1970, with how many events; null for none. `refusing`: what has no room for ratings; null where they are
    taken. `lists`: what stands for the ranking head of a first fit, and until when; null where it is there.
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
    known_events: int | None
    known_items: int
    workers: list[WorkerOut]
    scale_decided: bool = True
    backed_up: Backup | None = None
    refusing: str | None = None
    lists: str | None = None


@Route("GET", "/access", "Operations", AccessOut, needs="public", operation_id="access")
async def get_access(request: web.Request) -> web.StreamResponse:
    """What the caller may do."""
    access = request.app[CONTEXT].access
    key = access.key_of(request.headers)
    role: Role | Literal["none"] = "none" if key is None else key.role
    return json_answer(AccessOut(role if access.asks else "operate", access.asks))


@Route("GET", "/livez", "Operations", Alive, needs="public", operation_id="livez")
async def get_livez(request: web.Request) -> web.StreamResponse:
    """Whether the process runs."""
    return json_answer(Alive(alive=True))


@Route("GET", "/readyz", "Operations", Ready, MODEL, needs="public", operation_id="readyz")
async def get_readyz(request: web.Request) -> web.StreamResponse:
    """Whether to send requests here."""
    context = request.app[CONTEXT]
    # A load balancer that looks here sends no more to a worker before that stops listening.
    if context.traffic.draining:
        raise Problem("overloaded", "this worker is ending", retry_after_s=1)
    live = context.live()
    # All workers lose the store at once: if they said that they are not ready, a load balancer would have
    # none left to ask for what they can answer.
    # The last poll says whether: anyone may ask this, and the store would be asked as often.
    failure = context.follower.failure
    if isinstance(failure, StoreDamaged) and failure.key == shown_key(context.store.keys.live):
        # What is live is not known.
        raise failure.with_traceback(None)
    degraded = context.follower.is_away(_PROBE_TIMEOUT_S)
    return json_answer(Ready(True, live.generation, live.epoch, degraded))


async def _last_backup(store: Store) -> Backup | None:
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            return await store.telemetry.last_backup()
    return None


async def _progress(store: Store, epoch: int) -> dict[int, Progress] | None:
    """Return how far the events of each partition are; None where the store does not answer."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            return await store.stream.progress(epoch)
    except (StoreError, TimeoutError):
        return None


@Route(
    "GET",
    "/metrics",
    "Operations",
    content({"type": "string"}, CONTENT_TYPE),
    needs="metrics",
    operation_id="metrics",
)
async def get_metrics(request: web.Request) -> web.StreamResponse:
    """For Prometheus.

    The counts of all workers of this host.
    """
    context = request.app[CONTEXT]
    live = context.follower.live
    store, epoch = context.store, live.epoch if live else 1
    # At once: a store that hangs is waited for once.
    streams, backed_up = await asyncio.gather(_progress(store, epoch), _last_backup(store))
    lag = None if streams is None else {number: each.waiting for number, each in streams.items()}
    # Reading files waits for the disk.
    files = context.snapshot_files
    snapshots = await asyncio.to_thread(files.all, context.snapshot())
    silent_s = await asyncio.to_thread(files.supervisor_silent_s)
    running = context.follower.experiments.running
    more = [] if lag is None else await stored_figures(store, running, _PROBE_TIMEOUT_S)
    if backed_up is not None:
        more.append(GaugeMetricFamily(_BACKUP, "When the last backup ended.", value=backed_up.at))
    text = expose(snapshots, lag, lag is not None, context.full, supervisor_silent_s=silent_s, more=more)
    return Answer(text, content_type=CONTENT_TYPE)


@Route("GET", "/status", "Operations", Status, needs="metrics", operation_id="status")
async def get_status(request: web.Request) -> web.StreamResponse:
    """What is live, in numbers."""
    context = request.app[CONTEXT]
    live = context.follower.live
    scale = context.scale()
    epoch = live.epoch if live else 1
    # At once: a store that hangs is waited for once.
    streams, backed_up = await asyncio.gather(_progress(context.store, epoch), _last_backup(context.store))
    snapshots = await asyncio.to_thread(context.snapshot_files.all, context.snapshot())
    total = together(snapshots)
    summary = live.meta.summary if live else None
    seen, errors = total.recent_errors, total.squared_error
    now = time.time()
    status = Status(
        store_up=streams is not None,
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
        scale_decided=context.store.scale.decided,
        backed_up=backed_up,
        refusing=context.full,
        lists=f"by popularity until generation {live.generation + 1} (about 30 s)"
        if live and live.by_popularity
        else None,
        metrics=summary.metrics if summary else {},
        requests=sum(sum(by_status.values()) for by_status in total.requests.values()),
        predictions=total.predictions,
        accepted_ratings=total.ratings,
        ratings_per_s=total.recent_ratings / RECENT_S,
        # Under half a rating is what is left of long ago.
        recent_rmse=math.sqrt(total.recent_squared_error / seen) if seen > 0.5 else None,
        rmse=math.sqrt(errors.sum / errors.count) if errors.count else None,
        stream_lag=None if streams is None else sum(each.waiting for each in streams.values()),
        known_events=None if streams is None else sum(each.last[1] for each in streams.values()),
        known_items=len(context.store.items(epoch)),
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


@Route(
    *("GET", "/history", "Operations", HistoryOut, ("invalid_parameter", *STORE)),
    needs="read",
    operation_id="history",
    parameters=(query_parameter("seconds", whole(int(EVERY_S), LONGEST_S, 900), "How far back"),),
)
async def get_history(request: web.Request) -> web.StreamResponse:
    """How all replicas and the trainer have been, by interval, and who is at work now."""
    context = request.app[CONTEXT]
    seconds = Query(request.raw_path).integer("seconds", 900, int(EVERY_S), LONGEST_S)
    points = await context.store.telemetry.read(seconds + EVERY_S)
    return json_answer(await asyncio.to_thread(history_of, points, time.time(), seconds))
