"""Steps beside the answers: whatever fails, the next is made."""

import time

import pytest

from featurestore.errors import StoreDamaged, StoreUnavailable
from service.experiments.background import BackgroundSteps
from service.metrics import Counts, error_bounds


async def failing(failure: Exception) -> None:
    raise failure


async def test_a_failure_is_counted_told_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts(0, time.time(), error_bounds(1.0, 5.0))
    steps = BackgroundSteps("count", counts)
    for failure in (
        StoreUnavailable("away"),
        StoreDamaged("showings", "short"),
        StoreDamaged("showings", "short"),
    ):
        await steps.make(failing(failure))
    assert counts.exceptions == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for _ in range(3):
        await steps.make(failing(KeyError("defect")))
    assert counts.exceptions == 3
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "KeyError" in caplog.text
