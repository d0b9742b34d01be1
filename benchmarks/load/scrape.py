"""Reads what the service says of itself at /metrics. Invariant: figures are differences between two
scrapes."""

import math

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchmarkError
from benchmarks.load.client import Client
from benchmarks.load.generator import get

Buckets = dict[float, float]


def metrics_text(port: int) -> str:
    """Return the page. Raises `BenchmarkError`."""
    with Client(port, timeout_s=10.0) as client:
        return client.ask(get("/metrics")).decode()


def buckets(text: str, name: str) -> Buckets:
    """Return the cumulative counts of a histogram by upper bound, its label sets added up.

    Raises `BenchmarkError` if it is absent.
    """
    found: Buckets = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{name}_bucket":
                bound = float(sample.labels["le"])
                found[bound] = found.get(bound, 0.0) + sample.value
    if not found:
        raise BenchmarkError(f"/metrics has no histogram {name}")
    return found


def total(text: str, name: str) -> float:
    """Return the sum of all samples of that name."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


def quantile(before: Buckets, after: Buckets, q: float) -> float:
    """Return the value under which the share `q` of what was observed in between lies, linear in its bucket.

    NaN when nothing was observed; the last finite bound when it lies beyond.
    """
    # As Prometheus' histogram_quantile, so that a dashboard shows the same figure.
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    wanted = q * counts[-1]
    if counts[-1] <= 0:
        return math.nan
    low, below = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / max(count - below, 1e-12)
        low, below = bound, count
    return low
