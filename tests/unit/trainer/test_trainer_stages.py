"""The stages of a term one by one: fits that know who was erased meanwhile, retries, what has arrived."""

from pathlib import Path

import numpy as np
import pytest

from factors import FitSettings, Scale, fit
from tests.support.event_tables import event_table, item_ids, opened
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import spans_of
from trainer.fit_job.folder import FitFolder
from trainer.fit_job.ratings import FitInput, load_ratings
from trainer.fit_job.result_files import read_result, write_result


@pytest.fixture
def data(tmp_path: Path) -> FitInput:
    archive = EpochArchive(tmp_path / "archive", 1, guard=lambda: None)
    k = np.arange(12)
    users = [f"u{number % 3}" for number in range(12)]
    table = event_table(users, k // 3 + 1, k // 3, k % 5 + 1.0, stream_ms=k + 1, time=0.0)
    archive.append(table, spans_of(table))
    return load_ratings(opened(archive), item_ids(4))


def leave_fit(folder: FitFolder, data: FitInput) -> None:
    """What the process of a fit does."""
    settings = FitSettings(Scale(1.0, 5.0), rank=1, link="gaussian", sweeps=1)
    fitted = fit(data.ratings, 3, 4, settings=settings, rng=np.random.default_rng(0))
    write_result(folder.new, data, fitted, {})


def test_a_user_erased_while_a_fit_runs_is_not_in_it(tmp_path: Path, data: FitInput) -> None:
    folder = FitFolder(tmp_path)
    folder.begin_fit()
    folder.erase([b"u1"])
    leave_fit(folder, data)
    assert read_result(folder.new).rows_of([b"u1"]).tolist() == [1]
    folder.erase_from_new()
    result = folder.adopt(read_result(folder.new), 7)
    assert result.rows_of([b"u0", b"u1", b"u2"]).tolist() == [0, -1, 2]
    assert result.row_of(b"u1") is None
    assert result.row_of(b"u2") == 2
    folder.erase([b"u2"])
    assert result.rows_of([b"u2"]).tolist() == [-1]
