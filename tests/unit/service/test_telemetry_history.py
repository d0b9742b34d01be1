"""Intervals of what processes told: sums of all replicas, and null where none told anything."""

import math

import pytest

from featurestore.telemetry.points import Point
from service.telemetry.history import MOST_INTERVALS, history_of

NOW = 1_000_000.0


def point(at: float, process: str = "worker 0", host: str = "a", **told: object) -> Point:
    return Point(process, host, NOW + at, 10.0, **told)  # type: ignore[arg-type]


def test_replicas_add_up_and_gaps_stay_gaps() -> None:
    points = [
        point(-45, requests=100, ratings=10, errors=2, squared_error=8.0, baseline=18.0, generation=3),
        point(-44, host="b", requests=50, generation=2),
        point(-5, requests=20, failures=10, generation=4, lag=7, store_bytes=1000),
    ]
    found = history_of(points, NOW, 60)
    assert found.requests_per_s == [None, 15.0, None, None, None, 2.0]
    assert found.failures_per_s == [None, 0.0, None, None, None, 1.0]
    assert found.ratings_per_s[1] == 1.0
    assert (found.rmse[1], found.baseline_rmse[1]) == (2.0, 3.0)
    # Of an interval without a rating there is no error, though there were requests.
    assert found.rmse[5] is None
    assert found.generation == [None, 3, None, None, None, 4]
    assert (found.lag[1], found.lag[5], found.store_bytes[5]) == (None, 7.0, 1000.0)
    # Who told something of late is at work; the others are not.
    assert [(each.host, each.process) for each in found.replicas] == [("a", "worker 0")]


@pytest.mark.parametrize("seconds", [10, 900, 10_800, 86_400, 604_800])
def test_a_picture_of_any_length_has_few_intervals_of_whole_points(seconds: float) -> None:
    found = history_of([point(-1, requests=10)], NOW, seconds)
    assert 1 <= len(found.at) <= MOST_INTERVALS * 1.5
    assert math.isclose(found.step_s % 10, 0)
    assert found.requests_per_s[-1] == 10 / found.step_s
