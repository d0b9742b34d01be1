"""What a worker counts, the sum over the workers of a host, and the text that Prometheus scrapes.

Invariant: a counter never falls when a worker is restarted; labels are routes, statuses, workers
and partitions, all bounded in number.

Counting is adding to plain numbers. The metrics of prometheus_client take a lock for each of them, and know
the other workers only by mapped files; so that library only writes the text. Each worker writes a snapshot to
a file once a second; the one that is scraped adds the others' snapshots to its own, and a worker that takes
the slot of a dead one goes on from its last snapshot.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from featurestore.errors import FULL_REASONS, FullReason, StoreError
from featurestore.experiments import Experiment, Figure
from featurestore.store import Store
from service.settings import SIGN_OF_LIFE

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds: a prediction takes 1 to 10 ms under load, POST /train up to a minute.
LATENCY_BOUNDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
# Seconds: one round trip to a store of the same host takes 0.1 ms at least.
LOOKUP_BOUNDS = (0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.05, 0.1, 1.0)
# Pairs that shared a lookup: no more arrive together than connections ask.
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Shares of the width of the scale, squared, so that the same bounds serve every scale.
ERROR_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
# Rates on the page and the newest error are over about this long: a change is seen within a minute.
RECENT_S = 60.0

# Counters of a `Counts` by field: the name and the help of the metric.
_COUNTERS = {
    "predictions": ("foldin_predictions", "Pairs that were scored."),
    "folds": ("foldin_folds", "Users folded in by the service because their record was behind."),
    "ratings": ("foldin_ratings", "Ratings that were acknowledged."),
    "events": ("foldin_events", "Events of other types than ratings that were accepted."),
    "ratings_deleted": ("foldin_ratings_deleted", "Ratings that were taken back."),
    "users_forgotten": ("foldin_users_forgotten", "Users that were forgotten."),
    "damaged": (
        "foldin_stored_damaged",
        "Records of users and contexts of ratings that were damaged in the store: answers do without them.",
    ),
    "exceptions": (
        "foldin_exceptions",
        "Requests, and steps beside them, that ended in an unexpected exception.",
    ),
    "overloads": (
        "foldin_overloads",
        "Requests that were refused because too many of their kind waited.",
    ),
    "starts": ("foldin_worker_starts", "Workers that were started, first and again."),
    "impressions_lost": (
        "foldin_impressions_lost",
        "Items shown that were not recorded: too many waited, or the store took none.",
    ),
    "degraded": ("foldin_degraded", "Answers from copies, because the store was away."),
    "reconnects": ("foldin_store_reconnects", "Connections to the store that were made anew."),
}
# What a worker is now, by field.
_GAUGES = {
    "generation": ("foldin_generation", "Generation that the worker serves; 0 before there is one."),
    "epoch": ("foldin_epoch", "Epoch that the worker serves; 0 before there is one."),
    "ranking_head": (
        "foldin_ranking_head",
        "1 where the worker's generation has a ranking head, 0 where lists are by expected rating.",
    ),
    "in_flight": ("foldin_requests_in_flight", "Requests being answered."),
    "connections": ("foldin_connections", "Open connections of clients."),
    "resident_bytes": ("foldin_worker_resident_memory_bytes", "Resident memory of the worker."),
}
# Of what the store counts of lists, by generation and by arm of an experiment.
_OF_GENERATION = {
    "lists": ("foldin_generation_lists", "Lists that a generation has answered, in all replicas."),
    "shown": ("foldin_generation_shown_items", "Items that its lists were recorded to have shown."),
    "positives": ("foldin_generation_positives", "Items shown that a positive event followed in 7 days."),
    "distinct": ("foldin_generation_distinct_items", "Different items that it has shown, about."),
    "items": ("foldin_generation_items", "Items that it was fitted with."),
}
_OF_ARM = {
    Figure.LISTS: ("foldin_arm_lists", "Lists that an arm has answered, in all replicas."),
    Figure.SHOWN: ("foldin_arm_shown_items", "Items that its lists were recorded to have shown."),
    Figure.POSITIVES: ("foldin_arm_positives", "Items shown that a positive event followed in 7 days."),
}
# Of these the sum over the workers says something too.
_SUMMED = ("in_flight", "connections", "recent_ratings", "recent_errors", "recent_squared_error")


class Histogram(msgspec.Struct):
    """Counts by upper bound, of which the last is infinite, and the sum of what was observed."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "Histogram":
        """Return a histogram of nothing."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """Count each of `values` (n,)."""
        bins = np.searchsorted(self.bounds, values)
        for index, count in enumerate(np.bincount(bins, minlength=len(self.counts)).tolist()):
            self.counts[index] += count
        self.sum += float(values.sum())

    def add(self, other: "Histogram") -> None:
        """Add the counts of `other`; one with other bounds, as of another scale, is left out."""
        if other.bounds == self.bounds:
            self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
            self.sum += other.sum

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


class Counts(msgspec.Struct):
    """Everything that one worker counted, or several together. `requests`: route -> status -> count."""

    worker: int
    at: float
    error_bounds: tuple[float, ...]
    requests: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    latency: dict[str, Histogram] = msgspec.field(default_factory=dict)
    lookup: Histogram = msgspec.field(default_factory=lambda: Histogram.empty(LOOKUP_BOUNDS))
    batch: Histogram = msgspec.field(default_factory=lambda: Histogram.empty(BATCH_BOUNDS))
    squared_error: Histogram = msgspec.field(default_factory=lambda: Histogram.empty(()))
    baseline_squared_error: float = 0.0
    predictions: int = 0
    folds: int = 0
    damaged: int = 0
    ratings: int = 0
    events: int = 0
    ratings_deleted: int = 0
    users_forgotten: int = 0
    exceptions: int = 0
    overloads: int = 0
    degraded: int = 0
    impressions_lost: int = 0
    reconnects: int = 0
    starts: int = 0
    # When the first worker of this slot was started, in seconds since 1970.
    since: float = 0.0
    # From here on: what the worker is now.
    generation: int = 0
    epoch: int = 0
    ranking_head: int = 0
    in_flight: int = 0
    connections: int = 0
    resident_bytes: int = 0
    recent_ratings: float = 0.0
    recent_errors: float = 0.0
    recent_squared_error: float = 0.0

    def __post_init__(self) -> None:
        # Its bounds depend on the scale, which a field's default cannot know.
        if not self.squared_error.bounds:
            self.squared_error = Histogram.empty(self.error_bounds)

    def request(self, route: str, status: int, seconds: float, times: int = 1) -> None:
        """Count `times` answers of `route` with `status` that took up to `seconds`."""
        # Text keys, because JSON has no others: a snapshot is read back as it was written.
        by_status = self.requests.get(route)
        if by_status is None:
            by_status = self.requests[route] = {}
            self.latency[route] = Histogram.empty(LATENCY_BOUNDS)
        code = str(status)
        by_status[code] = by_status.get(code, 0) + times
        self.latency[route].observe(seconds, times)

    def rated(self, ratings: int) -> None:
        """Count `ratings` that arrived."""
        self.ratings += ratings
        self.recent_ratings += ratings

    def predicted(self, squared_errors: npt.NDArray[np.float64]) -> None:
        """Count `squared_errors` (n, 2) on ratings that arrived: of the model, and of what an unknown user
        would be told.
        """
        if len(squared_errors):
            own, baseline = squared_errors.sum(axis=0).tolist()
            self.squared_error.observe_all(squared_errors[:, 0])
            self.baseline_squared_error += baseline
            self.recent_errors += len(squared_errors)
            self.recent_squared_error += own

    def carry(self, earlier: "Counts") -> None:
        """Add the counters of `earlier`; what the worker is now stays."""
        for route, by_status in earlier.requests.items():
            mine = self.requests.setdefault(route, {})
            for status, count in by_status.items():
                mine[status] = mine.get(status, 0) + count
            self.latency.setdefault(route, Histogram.empty(LATENCY_BOUNDS)).add(earlier.latency[route])
        for name in ("lookup", "batch", "squared_error"):
            getattr(self, name).add(getattr(earlier, name))
        self.baseline_squared_error += earlier.baseline_squared_error
        self.since = min(filter(None, (self.since, earlier.since)), default=0.0)
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(earlier, name))


def error_bounds(low: float, high: float) -> tuple[float, ...]:
    """Return the bounds of squared errors for ratings from `low` to `high`."""
    width = max(high - low, 1e-9)
    return tuple((share * width) ** 2 for share in ERROR_SHARES)


class SnapshotFiles:
    """The snapshots of the workers of a host, one file each in `folder`; None where there is one worker."""

    def __init__(self, folder: Path | None, worker: int) -> None:
        self._folder = folder
        self._worker = worker

    def _path(self, folder: Path) -> Path:
        return folder / f"worker-{self._worker}.metrics"

    def earlier(self) -> Counts | None:
        """Return what the worker counted that had this slot before."""
        return None if self._folder is None else _load(self._path(self._folder))

    def write(self, snapshot: Counts) -> None:
        """Write `snapshot` where the other workers find it."""
        if self._folder is None:
            return
        path = self._path(self._folder)
        # Replaced in one step: a reader finds the old snapshot or the new one, never half of one.
        fresh = path.with_suffix(".new")
        # A full disk costs the others their view of this worker, nothing more.
        with contextlib.suppress(OSError):
            fresh.write_bytes(msgspec.json.encode(snapshot))
            fresh.replace(path)

    def all(self, own: Counts) -> list[Counts]:
        """Return the snapshots of all workers, in their order, with `own` as it is now."""
        found = {own.worker: own}
        if self._folder is not None:
            for path in self._folder.glob("worker-*.metrics"):
                snapshot = _load(path)
                if snapshot is not None and snapshot.worker != own.worker:
                    found[snapshot.worker] = snapshot
        return [found[worker] for worker in sorted(found)]

    def supervisor_silent_s(self) -> float:
        """Return for how long the supervisor has said nothing of itself; 0 where there is none."""
        if self._folder is None:
            return 0.0
        try:
            return max(0.0, time.time() - (self._folder / SIGN_OF_LIFE).stat().st_mtime)
        except FileNotFoundError:
            return 0.0


def _load(path: Path) -> Counts | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Counts)
    except (OSError, msgspec.DecodeError):
        return None


def together(snapshots: Iterable[Counts]) -> Counts:
    """Return the sum of `snapshots`, which are at least one."""
    found = list(snapshots)
    total = Counts(-1, time.time(), found[0].error_bounds, since=found[0].since)
    for snapshot in found:
        total.carry(snapshot)
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(snapshot, name))
    return total


def expose(
    snapshots: list[Counts],
    lag: Mapping[int, int] | None,
    store_up: bool,
    refusing: FullReason | None = None,
    *,
    supervisor_silent_s: float = 0.0,
    more: Iterable[Metric] = (),
) -> bytes:
    """Return the text that Prometheus scrapes; `more`: what is said besides.

    `lag`: events of each partition that are not archived yet, None where it is not known. `refusing`: what
    has no room left for ratings.
    `supervisor_silent_s`: as `SnapshotFiles` has it.
    """

    class Families(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from _families(snapshots, lag, store_up)
            yield from more
            yield gauge(
                *(
                    "foldin_refusing",
                    "Whether ratings are refused for lack of room, by what is full.",
                    "reason",
                ),
                {reason: float(reason == refusing) for reason in FULL_REASONS},
            )
            yield GaugeMetricFamily(
                "foldin_supervisor_silent_seconds",
                "Since when what starts workers again has said nothing of itself.",
                value=supervisor_silent_s,
            )

    # A registry for this text alone: the one of the process has metrics of its own.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    return generate_latest(registry)


def _families(snapshots: list[Counts], lag: Mapping[int, int] | None, store_up: bool) -> Iterable[Metric]:
    total = together(snapshots)
    requests = CounterMetricFamily(
        "foldin_http_requests", "Requests by route and status.", labels=["route", "status"]
    )
    for route, by_status in sorted(total.requests.items()):
        for status, count in sorted(by_status.items()):
            requests.add_metric([route, status], count)
    yield requests
    yield _histogram(
        "foldin_http_request_seconds", "Time from a request's arrival to its answer.", total.latency
    )
    yield _histogram(
        "foldin_lookup_seconds", "Time of one lookup of the records of a batch.", {"": total.lookup}
    )
    yield _histogram("foldin_lookup_users", "Requests that shared one lookup.", {"": total.batch})
    yield _histogram(
        "foldin_rating_squared_error",
        "Squared error of ratings predicted before they were learned; the RMSE is the root of sum by count.",
        {"": total.squared_error},
    )
    for field, (name, text) in _COUNTERS.items():
        yield CounterMetricFamily(name, text, value=getattr(total, field))
    for field, (name, text) in _GAUGES.items():
        yield gauge(name, text, "worker", {each.worker: getattr(each, field) for each in snapshots})
    yield gauge(
        *("foldin_worker_silent_seconds", "Since when a worker has said nothing of itself.", "worker"),
        {each.worker: max(0.0, time.time() - each.at) for each in snapshots},
    )
    yield GaugeMetricFamily(
        "foldin_service_start_timestamp_seconds", "When this replica was started.", value=total.since
    )
    yield GaugeMetricFamily("foldin_workers", "Worker processes of this host.", value=len(snapshots))
    yield GaugeMetricFamily(
        "foldin_store_up", "Whether the store answered this scrape.", value=float(store_up)
    )
    if lag is not None:
        name, text = "foldin_stream_lag_events", "Rating events that are not archived yet."
        yield gauge(name, text, "partition", dict(sorted(lag.items())))


def gauge(name: str, text: str, label: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    """Return a gauge with one label, by the values of that."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([str(each)], value)
    return family


def _histogram(name: str, text: str, by_route: Mapping[str, Histogram]) -> HistogramMetricFamily:
    labels = None if list(by_route) == [""] else ["route"]
    # A histogram that is not by route has no label at all.
    family = HistogramMetricFamily(name, text, labels=labels)
    for route, histogram in sorted(by_route.items()):
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(map(float, histogram.counts)), strict=True))
        family.add_metric([route] if route else [], buckets, histogram.sum)
    return family


async def stored_figures(store: Store, running: Iterable[Experiment], timeout_s: float) -> list[Metric]:
    """Return the figures of generations and of experiments that the store has, the same on every replica;
    none where it does not answer in time. Labels are of what is kept, so bounded.
    """
    try:
        async with asyncio.timeout(timeout_s):
            showings = await store.showings.read()
            # Sums outlive their generations: labels are of those that are kept.
            kept = {each.generation: each.n_items for each in await store.generations.list()}
            tallies = {each: await store.tallies.read(each) for each in running}
    except (StoreError, TimeoutError):
        return []
    figures = {
        number: {**asdict(showings[number]), "items": kept[number]}
        for number in sorted(showings.keys() & kept.keys())
    }
    families: list[Metric] = [
        gauge(metric, text, "generation", {number: each[name] for number, each in figures.items()})
        for name, (metric, text) in _OF_GENERATION.items()
    ]
    for figure, (metric, text) in _OF_ARM.items():
        family = GaugeMetricFamily(metric, text, labels=["experiment", "arm"])
        for experiment, found in tallies.items():
            for arm, (tally, _) in zip(experiment.arms, found, strict=True):
                family.add_metric([experiment.name, arm.name], float(tally[figure].sum()))
        families.append(family)
    return families
