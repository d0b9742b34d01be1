"""The archive after a kill at any step, after damage, after an erasure: each event once, in order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, Span, spans_of
from trainer.archive.segments import read_segment
from trainer.errors import SegmentDamagedError

STEPS = ("segment:write", "segment:synced", "segment:renamed", "segment:done")
REPLACE_STEPS = (*STEPS, "replace:unlink", "replace:unlinked")


class Crash(BaseException):
    """Stands for the process ending here: nothing after it runs."""


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
    """The milliseconds of every archived event, in the order of the log."""
    return [ms for path in archive.snapshot().paths for ms in read_segment(path)[0]["stream_ms"].to_pylist()]


def reopened(directory: Path) -> EpochArchive:
    return EpochArchive(directory, 1, guard=free)


def filled(directory: Path, segments: int = 9, rows: int = 10) -> EpochArchive:
    archive = reopened(directory)
    for k in range(segments):
        archive.append(*events(1 + k * rows, rows))
    return archive


def rebuild(archive: EpochArchive, table: pa.Table, spans: dict[int, Span]) -> None:
    old = archive.begin_rebuild()
    archive.append(table.slice(0, 2), {})
    archive.append(table.slice(2), {})
    archive.finish_rebuild(old, spans)


def crash_at(name: str, occurrence: int = 1) -> Callable[[str], None]:
    seen = 0

    def step(at: str) -> None:
        nonlocal seen
        seen += at == name
        if at == name and seen == occurrence:
            raise Crash

    return step


def test_events_come_back_in_order_with_positions(tmp_path: Path) -> None:
    archive = filled(tmp_path, segments=3)
    assert contents(archive) == list(range(1, 31))
    snapshot = reopened(tmp_path).snapshot()
    assert snapshot == archive.snapshot()
    assert snapshot.rows == 30
    assert sum(span.events for span in snapshot.spans.values()) == 30
    assert max(snapshot.positions.values()) == (30, 0)
    assert 9 not in snapshot.positions


@pytest.mark.parametrize("step", STEPS)
def test_append_ended_at_any_step_leaves_all_or_nothing(tmp_path: Path, step: str) -> None:
    filled(tmp_path, segments=2)
    archive = EpochArchive(tmp_path, 1, guard=free, step=crash_at(step))
    with pytest.raises(Crash):
        archive.append(*events(21, 10))
    after = reopened(tmp_path)
    committed = step in ("segment:renamed", "segment:done")
    assert contents(after) == list(range(1, 31 if committed else 21))
    assert not after.has_holes()
    # What the stream still holds beyond the position is what is missing, no more and no less.
    first = max(position[0] for position in after.snapshot().positions.values()) + 1
    after.append(*events(first, 40 - first + 1))
    assert contents(reopened(tmp_path)) == list(range(1, 41))


@pytest.mark.parametrize("step", REPLACE_STEPS)
def test_merge_ended_at_any_step_keeps_each_event_once(tmp_path: Path, step: str) -> None:
    before = filled(tmp_path).snapshot()
    archive = EpochArchive(tmp_path, 1, guard=free, step=crash_at(step))
    with pytest.raises(Crash):
        archive.merge()
    after = reopened(tmp_path)
    assert contents(after) == list(range(1, 91))
    assert after.snapshot().spans == before.spans
    assert not after.has_holes()
    while after.merge():
        pass
    assert contents(reopened(tmp_path)) == list(range(1, 91))
    assert len(list(tmp_path.glob("*.parquet"))) < 8


@pytest.mark.parametrize("occurrence", [1, 3])
@pytest.mark.parametrize("step", REPLACE_STEPS)
def test_erasure_ended_at_any_step_is_finished_by_repeating(
    tmp_path: Path, step: str, occurrence: int
) -> None:
    before = filled(tmp_path, segments=4).snapshot()
    archive = EpochArchive(tmp_path, 1, guard=free, step=crash_at(step, occurrence))
    with pytest.raises(Crash):
        archive.erase({b"user-1": ALWAYS})
    after = reopened(tmp_path)
    after.erase({b"user-1": ALWAYS})
    assert contents(after) == [ms for ms in range(1, 41) if ms % 3 != 1]
    assert after.snapshot().spans == before.spans
    again = reopened(tmp_path)
    assert contents(again) == contents(after)
    assert not any(b"user-1" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("step", "occurrence"), [(step, k) for step in STEPS[1:3] for k in (1, 3)] + [("replace:unlink", 1)]
)
@pytest.mark.parametrize("before", [0, 3])
def test_rebuild_ended_at_any_step_is_known_to_be_unfinished(
    tmp_path: Path, step: str, occurrence: int, before: int
) -> None:
    filled(tmp_path, segments=before)
    table, spans = events(1000, 5)
    if not (before == 0 and step == "replace:unlink"):
        archive = EpochArchive(tmp_path, 1, guard=free, step=crash_at(step, occurrence))
        with pytest.raises(Crash):
            rebuild(archive, table, spans)
    after = reopened(tmp_path)
    if after.snapshot().spans == spans:
        assert contents(after) == list(range(1000, 1005))
    rebuild(after, table, spans)
    again = reopened(tmp_path)
    assert contents(again) == list(range(1000, 1005))
    assert again.snapshot().spans == spans
    assert not again.has_holes()
    again.append(*events(2000, 5))
    assert contents(reopened(tmp_path)) == [*range(1000, 1005), *range(2000, 2005)]


@pytest.mark.parametrize("position", [0.02, 0.6, 0.98])
def test_damage_anywhere_is_found_and_set_aside(tmp_path: Path, position: float) -> None:
    archive = filled(tmp_path, segments=3, rows=1000)
    victim = archive.snapshot().paths[1]
    content = bytearray(victim.read_bytes())
    content[int(len(content) * position)] ^= 0x10
    victim.write_bytes(content)
    with pytest.raises(SegmentDamagedError, match=victim.name):
        read_segment(victim)
    after = reopened(tmp_path)
    for path in after.snapshot().paths:
        try:
            read_segment(path)
        except SegmentDamagedError as exc:
            after.set_aside(path, exc.why)
    assert [damage.path.name for damage in after.damaged] == [victim.name]
    assert contents(after) == [*range(1, 1001), *range(2001, 3001)]
    assert after.has_holes()
    assert victim.with_name(victim.name + ".damaged").exists()
    assert reopened(tmp_path).has_holes(), "a restart must not forget that something is missing"


def told(
    first_ms: int, contexts: list[list[float]] | None, users: list[str]
) -> tuple[pa.Table, dict[int, Span]]:
    """An event of each of `users`, with contexts."""
    ms, n = np.arange(first_ms, first_ms + len(users)), np.full(len(users), first_ms)
    table = event_table(users, n, n, np.full(len(users), 3.0), stream_ms=ms, time=ms, context=contexts)
    return table, spans_of(table)
