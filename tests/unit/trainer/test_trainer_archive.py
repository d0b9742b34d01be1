"""The archive after a kill at any step, after damage, after an erasure: each event once, in order."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive, read_spans
from trainer.archive.events import CONTEXT, SCHEMA, Span, contexts_of, spans_of, with_contexts
from trainer.archive.merging import MERGED_FILES, MERGED_ROWS, choose_merge
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Segment, SegmentName, inspect_segment, read_segment
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError, SegmentDamagedError, SegmentGoneError

STEPS = ("segment:write", "segment:written", "segment:synced", "segment:renamed", "segment:done")
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
        archive.erase(b"user-1", 10**9)
    after = reopened(tmp_path)
    after.erase(b"user-1", 10**9)
    assert contents(after) == [ms for ms in range(1, 41) if ms % 3 != 1]
    assert after.snapshot().spans == before.spans
    again = reopened(tmp_path)
    assert contents(again) == contents(after)
    assert not any(b"user-1" in path.read_bytes() for path in tmp_path.iterdir())


def test_erasure_keeps_what_the_user_did_after_coming_back(tmp_path: Path) -> None:
    archive = filled(tmp_path, segments=4)
    erased = archive.erase(b"user-1", 5)
    kept = [ms for ms in range(1, 41) if ms % 3 != 1 or ms // 3 + 1 > 5]
    assert contents(archive) == kept
    assert erased == 40 - len(kept)
    assert archive.erase(b"user-1", 5) == 0
    assert archive.erase(b"unknown", 5) == 0


@pytest.mark.parametrize(
    ("step", "occurrence"), [(step, k) for step in STEPS for k in (1, 2, 3)] + [("replace:unlink", 1)]
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


def test_guard_stops_every_commit(tmp_path: Path) -> None:
    filled(tmp_path)

    class LostError(Exception):
        pass

    def lost() -> None:
        raise LostError

    archive = EpochArchive(tmp_path, 1, guard=lost)
    operations: list[Callable[[], object]] = [
        lambda: archive.append(*events(500, 5)),
        archive.merge,
        lambda: archive.erase(b"user-1", 99),
        lambda: rebuild(archive, *events(500, 5)),
    ]
    for operation in operations:
        with pytest.raises(LostError):
            operation()
    assert contents(reopened(tmp_path)) == list(range(1, 91))


@pytest.mark.parametrize("position", [0.02, 0.3, 0.6, 0.9, 0.98])
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


def test_truncated_segment_is_damaged(tmp_path: Path) -> None:
    archive = filled(tmp_path, segments=2)
    victim = archive.snapshot().paths[0]
    victim.write_bytes(victim.read_bytes()[:-100])
    assert [damage.path for damage in reopened(tmp_path).damaged] == [victim]


def test_merge_does_not_take_over_damage(tmp_path: Path) -> None:
    archive = filled(tmp_path)
    victim = archive.snapshot().paths[4]
    victim.write_bytes(victim.read_bytes()[:-100])
    assert not archive.merge()
    assert [damage.path for damage in archive.damaged] == [victim]
    assert archive.has_holes()


def test_reader_of_an_old_snapshot_is_told(tmp_path: Path) -> None:
    archive = filled(tmp_path)
    before = archive.snapshot()
    assert archive.merge()
    with pytest.raises(SegmentGoneError):
        read_segment(before.paths[0])


def test_spans_are_read_beside_one_that_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = filled(tmp_path)
    spans = archive.snapshot().spans
    left = [1]

    def merged_meanwhile(path: Path, name: SegmentName) -> Segment:
        if name.first == 3 and left:
            left.pop()
            assert archive.merge()
        return inspect_segment(path, name)

    monkeypatch.setattr("trainer.archive.epoch_archive.inspect_segment", merged_meanwhile)
    assert read_spans(tmp_path, UnreadFiles()) == spans
    assert not left
    assert read_spans(tmp_path / "gone", UnreadFiles()) == {}
    (tmp_path / "0000000100-0000000100.r0.parquet").symlink_to("nowhere")
    with pytest.raises(ArchiveFailedError, match="changes all the time"):
        read_spans(tmp_path, UnreadFiles())


def test_empty_batch_moves_the_position(tmp_path: Path) -> None:
    archive = reopened(tmp_path)
    table, _ = events(1, 0)
    archive.append(table, {3: Span((5, 0), (9, 1), 2)})
    after = reopened(tmp_path)
    assert after.snapshot().positions[3] == (9, 1)
    assert after.snapshot().spans[3].events == 2
    assert contents(after) == []


def test_name_that_was_given_again_is_not_removed_with_what_had_it_before(tmp_path: Path) -> None:
    def refused(at: str) -> None:
        if at == "replace:unlink" and not done:
            raise OSError(errno.EIO, "the disk fails")

    done: list[int] = []
    archive = EpochArchive(tmp_path, 1, guard=free, step=refused)
    archive.append(*events(1, 10))
    with pytest.raises(ArchiveFailedError):
        archive.erase(b"user-1", 10**9)
    done.append(1)
    archive.set_aside(archive.snapshot().paths[0], "checksum")
    archive.append(*events(11, 10))
    archive.erase(b"user-of-no-event", 10**9)
    assert contents(archive) == contents(reopened(tmp_path)) == list(range(11, 21))


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ArchiveFailedError, match="cannot write") as caught:
        ArchiveRoot(file / "archive", guard=free)
    assert "\n" not in str(caught.value)


def test_merge_choices() -> None:
    assert choose_merge([]) is None
    assert choose_merge([10] * 7) is None
    assert choose_merge([10] * 8) == slice(0, 8)
    assert choose_merge([100_000, *[10] * 8]) == slice(1, 9)
    assert choose_merge([10, 10, 10, 2_000, 10, 10, 10, 10, 10]) == slice(0, 9)
    assert choose_merge([MERGED_ROWS] * 20) is None
    assert choose_merge([0] * 9) == slice(0, 9)
    assert choose_merge([1] * 3_000) == slice(0, MERGED_FILES)


def test_number_of_segments_stays_small() -> None:
    rows: list[int] = []
    written = appended = 0
    for k in range(3_000):
        rows.append(1 + k * 37 % 50_000)
        appended += rows[-1]
        while (run := choose_merge(rows)) is not None:
            rows[run] = [sum(rows[run])]
            written += rows[run.start]
            assert rows[run.start] <= MERGED_ROWS
    assert len(rows) < 40 + appended // 512_000
    assert written < 8 * appended


def test_names_say_what_they_cover() -> None:
    name = SegmentName(3, 7, 2)
    assert SegmentName.parse(str(name)) == name
    assert SegmentName.parse("notes.txt") is None
    assert SegmentName(1, 8).covers(SegmentName(3, 4, 5))
    assert SegmentName(3, 7, 3).covers(name)
    assert not name.covers(name)
    assert not SegmentName(3, 7, 9).covers(SegmentName(3, 8))


# Loads the archive once, and forks a process for each kill: a process of its own loads for two seconds.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_trainer_archive as t
from trainer.archive.epoch_archive import EpochArchive, read_spans

for line in sys.stdin:
    operation, step, folder = line.split(maxsplit=2)
    child = os.fork()
    if child == 0:
        def stop(at: str) -> None:
            if at == step:
                os.kill(os.getpid(), signal.SIGKILL)
        archive = EpochArchive(Path(folder.strip()), 1, guard=t.free, step=stop)
        if operation == "append":
            archive.append(*t.events(91, 10))
        elif operation == "merge":
            archive.merge()
        else:
            archive.erase(b"user-1", 10**9)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def killed() -> Iterator[Callable[[str, str, Path], int]]:
    """Kills an operation on an archive at a step; the exit code of its process."""
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        stdin, stdout = parent.stdin, parent.stdout

        def kill(operation: str, step: str, folder: Path) -> int:
            stdin.write(f"{operation} {step} {folder}\n")
            stdin.flush()
            return int(stdout.readline())

        yield kill
        stdin.close()


@pytest.mark.parametrize(
    ("operation", "step"),
    [("append", step) for step in STEPS]
    + [(operation, step) for operation in ("merge", "erase") for step in REPLACE_STEPS],
)
def test_sigkill_at_each_step(
    tmp_path: Path, killed: Callable[[str, str, Path], int], operation: str, step: str
) -> None:
    filled(tmp_path)
    assert killed(operation, step, tmp_path) == -signal.SIGKILL
    after = reopened(tmp_path)
    if operation == "append":
        assert contents(after) in (list(range(1, 91)), list(range(1, 101)))
    elif operation == "merge":
        assert contents(after) == list(range(1, 91))
    else:
        after.erase(b"user-1", 10**9)
        assert contents(reopened(tmp_path)) == [ms for ms in range(1, 91) if ms % 3 != 1]


def told(
    first_ms: int, contexts: list[list[float]] | None, users: list[str]
) -> tuple[pa.Table, dict[int, Span]]:
    """An event of each of `users`, with contexts."""
    ms, n = np.arange(first_ms, first_ms + len(users)), np.full(len(users), first_ms)
    table = event_table(users, n, n, np.full(len(users), 3.0), stream_ms=ms, time=ms, context=contexts)
    return table, spans_of(table)


def test_contexts_are_in_the_log_and_only_where_there_are_any(tmp_path: Path) -> None:
    archive = filled(tmp_path, segments=6, rows=3)
    plain = {path.name: path.read_bytes() for path in archive.snapshot().paths}
    archive.append(*told(100, [[1.0, np.nan], [np.nan, np.nan]], ["ann", "bob"]))
    archive.append(*told(200, [[np.nan]], ["bob"]))
    paths = archive.snapshot().paths
    tables = [read_segment(path)[0] for path in paths]
    assert [CONTEXT.name in table.schema.names for table in tables] == [False] * 6 + [True, False]
    assert {path.name: path.read_bytes() for path in paths[:6]} == plain
    found = contexts_of(tables[6])
    assert found is not None
    np.testing.assert_array_equal(found, np.array([[1.0], [np.nan]], dtype=np.float32))
    archive.merge()
    (merged,) = archive.snapshot().paths
    found = contexts_of(read_segment(merged)[0])
    assert found is not None
    assert found[~np.isnan(found)].tolist() == [1.0]
    assert archive.erase(b"ann", 1_000) == 1
    (left,) = archive.snapshot().paths
    assert read_segment(left)[0].schema.equals(SCHEMA)


def test_a_context_that_was_changed_is_damage(tmp_path: Path) -> None:
    archive = reopened(tmp_path)
    archive.append(*told(1, [[1234.5]], ["ann"]))
    (path,) = archive.snapshot().paths
    table = pq.read_table(path)
    other = with_contexts(table.drop_columns(CONTEXT.name), np.array([[1234.75]], dtype=np.float32))
    pq.write_table(other.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(SegmentDamagedError, match="checksum"):
        read_segment(path)
