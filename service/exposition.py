"""The counts as Prometheus reads them.

Invariant: labels come from routes, statuses, workers and partitions: all bounded.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from service.metrics import Histogram, Snapshot, together

CONTENT_TYPE = CONTENT_TYPE_LATEST

_COUNTERS = {
    "predictions": ("foldin_predictions", "Pairs that were scored."),
    "folds": ("foldin_folds", "Users folded in by the service because their record was behind."),
    "ratings": ("foldin_ratings", "Ratings that were acknowledged."),
    "ratings_deleted": ("foldin_ratings_deleted", "Ratings that were taken back."),
    "users_forgotten": ("foldin_users_forgotten", "Users that were forgotten."),
    "exceptions": ("foldin_exceptions", "Requests that ended in an unexpected exception."),
    "overloads": (
        "foldin_overloads",
        "Requests and connections that were refused because there were too many.",
    ),
    "reconnects": ("foldin_store_reconnects", "Connections to the store that were made anew."),
}
_GAUGES = {
    "generation": ("foldin_generation", "Generation that the worker serves; 0 before there is one."),
    "epoch": ("foldin_epoch", "Epoch that the worker serves; 0 before there is one."),
    "in_flight": ("foldin_requests_in_flight", "Requests being answered."),
    "connections": ("foldin_connections", "Open connections of clients."),
    "resident_bytes": ("foldin_worker_resident_memory_bytes", "Resident memory of the worker."),
}


def expose(snapshots: list[Snapshot], lag: Mapping[int, int] | None, store_up: bool) -> bytes:
    """The text that Prometheus scrapes. `lag`: events a partition not archived yet, None where it is not
    known.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(_families(snapshots, lag, store_up)))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(snapshots: list[Snapshot], lag: Mapping[int, int] | None, store_up: bool) -> Iterable[Metric]:
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
        "foldin_lookup_seconds", "Time of one lookup of records, of a whole turn.", {"": total.lookup}
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
        gauge = GaugeMetricFamily(name, text, labels=["worker"])
        for snapshot in snapshots:
            gauge.add_metric([str(snapshot.worker)], getattr(snapshot, field))
        yield gauge
    yield GaugeMetricFamily("foldin_workers", "Worker processes of this host.", value=len(snapshots))
    yield GaugeMetricFamily(
        "foldin_store_up", "Whether the store answered this scrape.", value=float(store_up)
    )
    if lag is not None:
        stream = GaugeMetricFamily(
            "foldin_stream_lag_events", "Rating events that are not archived yet.", labels=["partition"]
        )
        for partition, events in sorted(lag.items()):
            stream.add_metric([str(partition)], events)
        yield stream


def _histogram(name: str, text: str, by_route: Mapping[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        name, text, labels=None if set(by_route) <= {""} and by_route else ["route"]
    )
    for route, histogram in sorted(by_route.items()):
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(map(float, histogram.counts)), strict=True))
        family.add_metric([route] if route else [], buckets, histogram.sum)
    return family
