"""The archive after a kill at any step, after damage, after an erasure: each event once, in order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.event_tables import event_table, free
from tests.support.trainers import Crash, crash_at
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, Span, spans_of
from trainer.archive.segments import read_segment

STEPS = ("segment:write", "segment:synced", "segment:renamed", "segment:done")
REPLACE_STEPS = (*STEPS, "replace:unlink", "replace:unlinked")


def events(
    first_ms: int, count: int, *, users: int = 3, partitions: int = 2
) -> tuple[pa.Table, dict[int, Span]]:
    """`count` events, one a millisecond from `first_ms`; event k belongs to user k % users."""
    ms = np.arange(first_ms, first_ms + count)
    partition = (ms % users % partitions).astype(np.uint16)
    user_ids = [f"user-{k % users}" for k in ms.tolist()]
    table = event_table(
        user_ids, ms // users + 1, ms % 7, ms % 5 + 1.0, stream_ms=ms, partition=partition, time=ms / 1000
    )
    return table, spans_of(table)


def contents(archive: EpochArchive) -> list[int]:
    return [ms for path in archive.snapshot().paths for ms in read_segment(path)[0]["stream_ms"].to_pylist()]


def reopened(directory: Path) -> EpochArchive:
    return EpochArchive(directory, 1, guard=free)


def filled(directory: Path, segments: int = 9, rows: int = 10) -> EpochArchive:
    archive = reopened(directory)
    for k in range(segments):
        archive.append(*events(1 + k * rows, rows))
    return archive


def reaching(archive: EpochArchive, last_ms: int) -> None:
    first = max(position[0] for position in archive.snapshot().positions.values()) + 1
    if first <= last_ms:
        archive.append(*events(first, last_ms - first + 1))


def rebuild(archive: EpochArchive) -> None:
    table, spans = events(1000, 5)
    old = archive.begin_rebuild()
    archive.append(table.slice(0, 2), {})
    archive.append(table.slice(2), {})
    archive.finish_rebuild(old, spans)


def merge(archive: EpochArchive) -> None:
    while archive.merge():
        pass


WORK: dict[str, Callable[[EpochArchive], object]] = {
    "append": lambda archive: reaching(archive, 100),
    "merge": merge,
    "erase": lambda archive: archive.erase({b"user-1": ALWAYS}),
    "rebuild": rebuild,
    "first rebuild": rebuild,
}
ENDED = [
    *(("append", step, 1) for step in STEPS),
    *(("merge", step, 1) for step in REPLACE_STEPS),
    *(("erase", step, k) for step in REPLACE_STEPS for k in (1, 3)),
    *(("rebuild", step, k) for step in STEPS[1:3] for k in (1, 3)),
    *(("rebuild", "replace:unlink", 1), ("first rebuild", "segment:renamed", 1)),
]


@pytest.mark.parametrize(("name", "step", "occurrence"), ENDED)
def test_work_that_ended_at_any_step_is_whole_or_done_by_repeating(
    tmp_path: Path, name: str, step: str, occurrence: int
) -> None:
    work, folder, segments = WORK[name], tmp_path / "ended", 0 if name == "first rebuild" else 9
    expected = filled(tmp_path / "done", segments)
    work(expected)
    before = contents(filled(folder, segments))
    with pytest.raises(Crash):
        work(EpochArchive(folder, 1, guard=free, step=crash_at(step, occurrence)))
    after = reopened(folder)
    if name in ("append", "merge"):
        committed = name == "merge" or step in ("segment:renamed", "segment:done")
        assert contents(after) == (contents(expected) if committed else before)
        assert not after.has_holes()
    work(after)
    again = reopened(folder)
    assert contents(again) == contents(expected)
    assert again.snapshot().spans == expected.snapshot().spans
    assert not again.has_holes()
    assert name != "merge" or len(list(folder.glob("*.parquet"))) < 8
    assert name != "erase" or not any(b"user-1" in path.read_bytes() for path in folder.iterdir())
    again.append(*events(2000, 5))
    assert contents(reopened(folder)) == [*contents(expected), *range(2000, 2005)]
