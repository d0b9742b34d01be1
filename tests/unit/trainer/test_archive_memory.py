"""Merges and erasures have some row groups of a segment in memory, however many rows it has."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.event_tables import event_table, free
from trainer.archive import epoch_archive, segments
from trainer.archive.epoch_archive import ALL_OF_A_USER, EpochArchive
from trainer.archive.events import SCHEMA, Rows, contexts_of, spans_of
from trainer.archive.segments import open_rows, read_segment
from trainer.errors import SegmentDamagedError

GROUP_ROWS = 2_000

# Prints how many segments are left, and the most bytes that Arrow had.
MEASURE = f"""
import sys
from pathlib import Path
import pyarrow as pa
from trainer.archive import segments
from trainer.archive.epoch_archive import ALL_OF_A_USER, EpochArchive

# How much is in memory at once must not depend on which threads run when.
pa.set_cpu_count(1)
pa.set_io_thread_count(1)
segments.ROW_GROUP_ROWS = {GROUP_ROWS}
archive = EpochArchive(Path(sys.argv[1]), 1, guard=lambda: None)
if sys.argv[2] == "merge":
    assert archive.merge()
else:
    assert archive.erase(b"user-7", ALL_OF_A_USER) > 0
print(len(archive.snapshot().paths), pa.default_memory_pool().max_memory())
"""


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


def peak_bytes(archive: EpochArchive, what: str) -> int:
    command = [sys.executable, "-c", MEASURE, str(archive.directory), what]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout.split()
    assert int(told[0]) == 1
    return int(told[1])


def test_memory_of_a_merge_and_of_an_erasure_is_that_of_row_groups(tmp_path: Path) -> None:
    few, many = filled(tmp_path / "few", 2_000), filled(tmp_path / "many", 20_000)
    assert 0 < peak_bytes(many, "merge") < 1.25 * peak_bytes(few, "merge")
    # Which events stay is told by two bits for each; the footer of so many small groups is large, too.
    assert 0 < peak_bytes(many, "erase") < 1.5 * peak_bytes(few, "erase")
    # What was left is whole.
    (path,) = EpochArchive(many.directory, 1, guard=free).snapshot().paths
    assert read_segment(path)[0].num_rows == 160_000 * 49 // 50


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


@pytest.mark.parametrize("rows", [0, 1, 250, 500])
def test_a_merge_has_no_row_group_without_rows_but_where_there_are_none(tmp_path: Path, rows: int) -> None:
    archive = filled(tmp_path, rows)
    assert archive.merge()
    (path,) = archive.snapshot().paths
    footer = pq.read_metadata(path)
    counts = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
    assert counts == ([GROUP_ROWS] * (8 * rows // GROUP_ROWS) or [8 * rows])
    assert read_segment(path)[0].num_rows == 8 * rows


def test_a_merge_whose_files_fail_under_it_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page goes bad after all of them were verified."""
    archive, before = filled(tmp_path, 100), list(tmp_path.iterdir())
    (_, victim, *_) = archive.snapshot().paths
    reads = 0

    def failing(path: Path, file: pa.NativeFile) -> Rows:
        rows = open_rows(path, file)

        def read(names: Sequence[str]) -> Iterator[pa.Table]:
            nonlocal reads
            reads += path == victim
            if path == victim and len(names) == len(SCHEMA.names):
                raise SegmentDamagedError(path, "bad page")
            return rows.read(names)

        return Rows(rows.schema, read, rows.count)

    monkeypatch.setattr(epoch_archive, "open_rows", failing)
    assert not archive.merge()
    assert reads > 1
    assert [damage.path for damage in archive.damaged] == [victim]
    left = {*before, victim.with_name(victim.name + ".damaged")} - {victim}
    assert set(tmp_path.iterdir()) == left


def test_what_is_erased_takes_the_last_context_along(tmp_path: Path) -> None:
    archive = EpochArchive(tmp_path, 1, guard=free)
    told = [[np.nan], [5.0], [np.nan]]
    table = event_table(["a", "b", "c"], [1, 1, 1], [0, 1, 2], [3.0] * 3, stream_ms=[1, 2, 3], context=told)
    archive.append(table, spans_of(table))
    assert archive.erase(b"b", ALL_OF_A_USER) == 1
    (path,) = archive.snapshot().paths
    left, spans = read_segment(path)
    assert left["user_id"].to_pylist() == ["a", "c"]
    assert "context" not in left.schema.names
    assert spans == spans_of(table)
