"""Ratings in a mapped file: the same whatever the system has let go, and in memory where the disk is full."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from factors import Choices, Ratings
from tests.support.event_tables import item_ids
from trainer.fit_job import mapped_columns
from trainer.fit_job.mapped_columns import in_file
from trainer.fit_job.ratings import FitInput

N = 5_000


def given(*, events: bool = True, n: int = N) -> FitInput:
    rng, nothing = np.random.default_rng(1), np.zeros(0, np.int64)
    rows = rng.integers(0, 9, (2, n)).astype(np.int32)
    context = rng.normal(size=(n, 3)).astype(np.float32)
    ratings = Ratings(rows[0], rows[1], rng.normal(size=n), rng.normal(size=n), context)
    choices = Choices(rows[0], rows[1], rng.normal(size=n), rng.normal(size=n), rows[0].astype(np.uint8))
    return FitInput(
        item_ids(9), np.zeros(9, np.int64), ratings, 9, nothing, nothing, 0, choices if events else None
    )


def assert_same(one: FitInput, other: FitInput) -> None:
    for name in ("ratings", "choices"):
        table, same = getattr(one, name), getattr(other, name)
        assert (table is None) == (same is None)
        for field in fields(table) if table is not None else ():
            array, found = getattr(table, field.name), getattr(same, field.name)
            assert array.dtype == found.dtype
            np.testing.assert_array_equal(array, found)


@pytest.mark.parametrize("n", [0, 1, N])
@pytest.mark.parametrize("events", [False, True])
def test_columns_read_the_same_after_their_memory_was_let_go(tmp_path: Path, n: int, events: bool) -> None:
    mapped, let_go = in_file(given(events=events, n=n), tmp_path)
    # The file has no name, so that nothing of it is left, however the fit ends.
    assert list(tmp_path.iterdir()) == []
    mapped.ratings.value[: n // 2] = np.nan
    let_go()
    let_go()
    expected = given(events=events, n=n)
    expected.ratings.value[: n // 2] = np.nan
    assert_same(expected, mapped)


def test_without_folder_or_room_they_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = given()
    found, let_go = in_file(data, tmp_path / "none")
    let_go()
    assert found is data

    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(mapped_columns, "_mapped", full)
    assert in_file(data, tmp_path)[0] is data
