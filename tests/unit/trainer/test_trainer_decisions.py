"""What the trainer decides from values alone: when to fit, what may go live, what is new."""

import math
from dataclasses import replace

import pytest

from featurestore.errors import LeaseLost
from featurestore.ratings.stream import Progress
from trainer.archive.epoch_archive import Snapshot
from trainer.archive.events import Span
from trainer.consume.rebuild import is_incomplete
from trainer.gate import Evidence, Policy, judge
from trainer.leadership import Leadership
from trainer.schedule import Decision, Rules, Situation, decide

CALM = Situation(100.0, *(False, False), 0, 0, 0, None, files_missing=False, not_before=0.0)
PACED = {"fitted_events": 10**6, "paced_until": 150.0}
GOOD = Evidence(True, *(10, 5, 10, 5), 1000, 0.9, 1.0, n_newest=500, live_ratio=1.0, live_ratio_error=0.01)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Decision(None)),
        ({"requested": True}, Decision("requested")),
        ({"requested": True, "held": True, "not_before": 1e9}, Decision("requested")),
        ({"new_events": 100}, Decision("events")),
        ({"new_events": 99, "first_new_at": 95.0}, Decision(None, 55.0)),
        ({"new_events": 1, "first_new_at": 40.0}, Decision("seconds")),
        ({"new_events": 1}, Decision(None, 60.0)),
        ({"new_events": 1000, "lately": 100, "first_new_at": 95.0}, Decision(None, 55.0)),
        ({"new_events": 1000, "held": True}, Decision(None)),
        ({"new_events": 1000, "not_before": 130.0}, Decision(None, 30.0)),
        ({"files_missing": True}, Decision("files")),
        ({"head_missing": True, "paced_until": 10_000.0}, Decision("head")),
        # A refit of so many waits for its share of the time.
        (PACED | {"new_events": 5_000}, Decision(None, 50.0)),
        (PACED | {"new_events": 1, "first_new_at": 0.0}, Decision(None, 50.0)),
        (PACED | {"new_events": 1, "first_new_at": 99.0}, Decision(None, 59.0)),
        (PACED | {"new_events": 5_000, "paced_until": 100.0}, Decision("events")),
        (PACED | {"new_events": 5_000, "requested": True}, Decision("requested")),
        (PACED | {"new_events": 5_000, "files_missing": True}, Decision("files")),
        (PACED | {"new_events": 5_000, "fitted_events": 0}, Decision("events")),
        # The first fit of a store comes at once, and then as it grows.
        (PACED | {"new_events": 100, "fitted_events": 0}, Decision("events")),
        (PACED | {"new_events": 99, "fitted_events": 0, "first_new_at": 95.0}, Decision(None, 55.0)),
        (PACED | {"new_events": 200, "fitted_events": 1_000, "paced_until": 100.0}, Decision("events")),
    ],
)
def test_when_to_fit(changes: dict[str, float], expected: Decision) -> None:
    rules = Rules() if "paced_until" in changes else Rules(100, 60.0)
    assert decide(replace(CALM, **changes), rules) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"finite": False}, "not finite"),
        ({"n_users": 9}, "9 users"),
        ({"n_items": 4}, "4 items"),
        ({"loss": 1.06}, "baseline"),
        ({"loss": math.nan}, "baseline"),
        ({"loss": 1.06, "n_held_out": 99}, None),
        ({"live_ratio": 1.05}, "live generation"),
        # 0.0488 apart in logarithms: three times an error of 0.0163 would be more.
        ({"live_ratio": 1.05, "live_ratio_error": 0.016}, "live generation"),
        ({"live_ratio": 1.05, "live_ratio_error": 0.017}, None),
        ({"live_ratio": 1.05, "n_newest": 99}, None),
        ({"live_ratio": 1.019, "live_ratio_error": 0.0}, None),
    ],
)
def test_what_may_go_live(changes: dict[str, float], reason: str | None) -> None:
    why = judge(replace(GOOD, **changes), Policy())  # type: ignore[arg-type]
    assert (why is None) if reason is None else (why is not None and reason in why)


def test_leadership_ends_before_the_lease_does() -> None:
    now = 0.0
    leadership = Leadership(None, 5.0, 0.0, clock=lambda: now)  # type: ignore[arg-type]  # the lease is not asked
    now = 4.9
    leadership.check()
    now = 5.0
    with pytest.raises(LeaseLost):
        leadership.check()


def test_archive_that_missed_trimmed_events_is_incomplete() -> None:
    snapshot = Snapshot(1, (), {0: Span((1, 0), (9, 0), 10)}, 10)
    assert not is_incomplete(snapshot, {0: Progress((9, 12), 10)}, holes=False)
    assert is_incomplete(snapshot, {0: Progress((9, 12), 11)}, holes=False)
    assert is_incomplete(snapshot, {1: Progress((9, 1), 1)}, holes=False)
    assert is_incomplete(snapshot, {}, holes=True)
