"""What a service counts: calls and errors, figures of experiments, and strangers whom it refuses."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from prometheus_client.parser import text_string_to_metric_families

from factors import Float64s
from featurestore.experiments import GROUPS, Figure, new_tally
from featurestore.telemetry.points import EVERY_S, Point
from service.experiments.figures import positive_rate, rate_difference
from service.http.audit import STRANGERS_PER_S, Audit
from service.metrics import LATENCY_BOUNDS, Counts, SnapshotFiles, error_bounds, expose, together
from service.telemetry.history import history_of
from tests.support.waiting import some


def test_an_interval_of_the_history_is_of_all_workers_together_and_null_where_none_told() -> None:
    def told(process: str, at: float, requests: int, **more: Any) -> Point:
        # All of them within the least bound but one.
        latency = [0, requests, *[0] * (len(LATENCY_BOUNDS) - 1)]
        return Point(process, "a", at, EVERY_S, requests=requests, latency=latency, **more)

    resident = {"resident_bytes": 100, "ratings": 10}
    points = [
        told("worker 0", 1_005.0, 30, errors=1, squared_error=1.0, baseline=4.0, generation=6, **resident),
        told("worker 1", 1_006.0, 70, errors=3, squared_error=0.0, baseline=12.0, generation=7, **resident),
        # Alone in its interval; the trainer is no worker.
        told("worker 1", 1_015.0, 50, failures=5, lag=8, **resident),
        told("trainer", 1_016.0, 0, resident_bytes=7),
    ]
    found = history_of(points, 1_030.0, 30.0)
    assert (found.step_s, found.at) == (EVERY_S, [1_010.0, 1_020.0, 1_030.0])
    assert found.requests_per_s == [10.0, 5.0, None]
    assert found.failures_per_s == [0.0, 0.5, None]
    assert found.ratings_per_s == [2.0, 1.0, None]
    assert (found.rmse, found.baseline_rmse) == ([0.5, None, None], [2.0, None, None])
    assert found.workers_bytes == [200.0, 100.0, None]
    assert (found.trainer_bytes, found.lag) == ([None, 7.0, None], [None, 8.0, None])
    assert found.generation == [7, None, None]
    assert found.p99_s[0] is not None
    assert LATENCY_BOUNDS[0] < found.p99_s[0] <= LATENCY_BOUNDS[1]
    assert [each.process for each in found.replicas] == ["trainer", "worker 0", "worker 1"]


def snapshot(worker: int = 0) -> Counts:
    return Counts(worker, 1.0, error_bounds(1.0, 5.0))


def test_a_worker_goes_on_from_the_one_before_and_a_scrape_sums_the_workers(tmp_path: Path) -> None:
    first, second, other = snapshot(), snapshot(), snapshot(1)
    first.request("/predict", 200, 0.001, 4)
    first.rated(2)
    first.predicted(np.array([[0.25, 1.0], [1.0, 2.0]]))
    SnapshotFiles(tmp_path, 0).write(first)
    files = SnapshotFiles(tmp_path, 0)
    second.carry(some(files.earlier()))
    second.request("/predict", 200, 0.001)
    assert second.squared_error.count == 2
    assert second.baseline_squared_error == 3.0
    other.request("/predict", 200, 0.1, 3)
    other.request("/ratings", 429, 0.1)
    other.rated(1)
    other.predicted(np.array([[4.0, 9.0]]))
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


def chosen(rng: np.random.Generator, users: int, a: float, b: float) -> Float64s:
    tally, groups = new_tally(), rng.integers(0, GROUPS, users)
    shown = rng.integers(1, 40, users)
    positives = rng.binomial(shown, rng.beta(a, b, users))
    for figure, values in ((Figure.SHOWN, shown), (Figure.POSITIVES, positives)):
        tally[figure] = np.bincount(groups, weights=values, minlength=GROUPS)
    return tally


def test_an_interval_has_the_truth_in_it_and_a_difference_excludes_zero_where_there_is_one() -> None:
    rng = np.random.default_rng(1)
    found = [positive_rate(chosen(rng, 1_500, 2.0, 18.0)) for _ in range(200)]
    hits = [each is not None and each.low <= 0.1 <= each.high for each in found]
    assert 0.91 <= np.mean(hits) <= 0.995
    better = some(rate_difference(chosen(rng, 4_000, 3.0, 17.0), chosen(rng, 4_000, 2.0, 18.0)))
    assert better.excludes_zero
    assert better.low < 0.05 < better.high
    assert rate_difference(new_tally(), chosen(rng, 100, 2.0, 18.0)) is None


def test_refused_strangers_have_few_lines_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "foldin.audit")
    now = 0.0
    audit = Audit([("POST", "/train")], clock=lambda: now)
    request = make_mocked_request("POST", "/train")
    for _ in range(STRANGERS_PER_S + 7):
        audit.record(request, "/train", web.Response(status=401))
    assert len(caplog.records) == STRANGERS_PER_S
    # What is not refused has its line all the same.
    audit.record(request, "/train", web.Response(status=200))
    now = 1.0
    audit.record(request, "/train", web.Response(status=403))
    told = [record.getMessage() for record in caplog.records[STRANGERS_PER_S:]]
    begin = [line.partition(":")[0].partition("=")[0] for line in told]
    assert begin == ["key", "calls_without_a_line", "key"]
    assert told[1].startswith("calls_without_a_line=7:")
