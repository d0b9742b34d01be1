"""Merges and erasures have some row groups of a segment in memory, however many rows it has."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.event_tables import event_table, free
from trainer.archive import segments
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import contexts_of, spans_of
from trainer.archive.segments import read_segment

GROUP_ROWS = 2_000


def filled(folder: Path, rows: int, contexts: bool = False) -> EpochArchive:
    """Eight segments of so many rows; every second one has `contexts`."""
    archive = EpochArchive(folder, 1, guard=free)
    for part in range(8):
        ms = np.arange(1 + part * rows, 1 + (part + 1) * rows)
        told = [[float(each)] for each in ms] if contexts and part % 2 else None
        users = [f"user-{user}" for user in ms % 50]
        table = event_table(users, ms, ms % 30, np.full(rows, 3.0), stream_ms=ms, context=told)
        archive.append(table, spans_of(table))
    return archive


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "ROW_GROUP_ROWS", GROUP_ROWS)


def test_small_segments_become_whole_row_groups(tmp_path: Path) -> None:
    archive = filled(tmp_path, 700, contexts=True)
    assert archive.merge()
    (path,) = archive.snapshot().paths
    footer = pq.read_metadata(path)
    groups = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
    assert groups == [2_000, 2_000, 1_600]
    table, spans = read_segment(path)
    assert spans == archive.snapshot().spans
    ms = table["stream_ms"].to_numpy()
    assert np.array_equal(ms, np.arange(1, 5_601))
    context = contexts_of(table)
    assert context is not None
    np.testing.assert_array_equal(context[:, 0], np.where((ms - 1) // 700 % 2, ms, np.nan))
