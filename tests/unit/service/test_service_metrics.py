"""Counts: nothing is lost when workers are restarted, and the text is what Prometheus reads."""

from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Counts, SnapshotFiles, error_bounds, expose, together


def snapshot(worker: int = 0) -> Counts:
    return Counts(worker, 1.0, error_bounds(1.0, 5.0))


def test_a_worker_goes_on_from_the_one_whose_place_it_takes_and_a_scrape_sums_the_workers(
    tmp_path: Path,
) -> None:
    first, second, other = snapshot(), snapshot(), snapshot(1)
    first.request("/predict", 200, 0.001, 4)
    first.rated(np.array([[0.25, 1.0], [1.0, 2.0]]), 2)
    SnapshotFiles(tmp_path, 0).write(first)
    files = SnapshotFiles(tmp_path, 0)
    earlier = files.earlier()
    assert earlier is not None
    second.carry(earlier)
    second.request("/predict", 200, 0.001)
    assert second.squared_error.count == 2
    assert second.baseline_squared_error == 3.0
    other.request("/predict", 200, 0.1, 3)
    other.request("/ratings", 429, 0.1)
    other.rated(np.array([[4.0, 9.0]]), 1)
    SnapshotFiles(tmp_path, 1).write(other)
    snapshots = files.all(second)
    assert together(snapshots).requests == {"/predict": {"200": 8}, "/ratings": {"429": 1}}
    text = expose(snapshots, {0: 3, 1: 4}, store_up=True).decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["foldin_http_requests_total", (("route", "/predict"), ("status", "200"))] == 8
    assert samples["foldin_http_request_seconds_count", (("route", "/predict"),)] == 8
    assert samples["foldin_rating_squared_error_sum", ()] == 5.25
    assert samples["foldin_stream_lag_events", (("partition", "1"),)] == 4
    assert samples["foldin_workers", ()] == 2
