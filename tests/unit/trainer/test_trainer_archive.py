"""The archive after a kill at any step, damage, failed reads, an erasure: each event once, in order."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support import event_tables
from tests.support.event_tables import append, event_table, events_in, free
from tests.support.trainers import Crash, crash_at
from trainer.archive import epoch_archive, unread
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, Span, spans_of
from trainer.archive.listing import read_spans
from trainer.archive.segments import read_segment, read_user_ids
from trainer.archive.trash import Trash
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError

STEPS = ("segment:write", "segment:synced", "segment:renamed", "segment:done")
REPLACE_STEPS = (*STEPS, "replace:unlink", "replace:unlinked")


def events(first_ms: int, count: int, *, users: int = 3) -> tuple[pa.Table, dict[int, Span]]:
    """`count` events, one a millisecond from `first_ms`; event k belongs to user k % users."""
    ms = np.arange(first_ms, first_ms + count)
    partition = (ms % users % 2).astype(np.uint16)
    user_ids = [f"user-{k % users}" for k in ms.tolist()]
    table = event_table(
        user_ids, ms // users + 1, ms % 7, ms % 5 + 1.0, stream_ms=ms, partition=partition, time=ms / 1000
    )
    return table, spans_of(table)


def contents(archive: EpochArchive) -> list[int]:
    return [ms for (ms,) in events_in(archive.snapshot().paths, "stream_ms")]


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
def test_work_cut_off_at_any_step_is_repeated(tmp_path: Path, name: str, step: str, occurrence: int) -> None:
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


Fails = Callable[[], Exception]
FAILURES: dict[str, Fails] = {
    "EIO": lambda: OSError(errno.EIO, "Input/output error"),
    "memory": lambda: pa.ArrowMemoryError("malloc of size 65536 failed"),
}


class Failing:
    """A file whose reads fail, as Arrow sees it."""

    closed = False

    def __init__(self, path: Path, fails: Fails, left: list[None]) -> None:
        self._content, self._at, self._fails, self._left = path.read_bytes(), 0, fails, left

    def seek(self, at: int, whence: int = 0) -> int:
        self._at = (0, self._at, len(self._content))[whence] + at
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = len(self._content) if size < 0 else min(self._at + size, len(self._content))
        if not self._left:
            raise self._fails()
        del self._left[:1]
        part = self._content[self._at : end]
        self._at += len(part)
        return part

    def close(self) -> None:
        pass


def failing(patched: pytest.MonkeyPatch, fails: Fails, victim: Path, *, reads: int = 0) -> None:
    """Have the reads of these files fail after some that do not."""
    real, left = pa.OSFile, [None] * reads

    def opened(path: str, mode: str) -> pa.NativeFile:
        if mode == "rb" and Path(path).name == victim.name:
            return pa.PythonFile(Failing(Path(path), fails, left), "r")
        return real(path, mode)

    patched.setattr("trainer.archive.segments.pa.OSFile", opened)


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "torn":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["torn", "flipped"])
def test_a_damaged_segment_takes_along_none_of_those_that_it_covers(tmp_path: Path, how: str) -> None:
    archive = event_tables.filled(tmp_path, 8)
    expected = contents(archive)
    before = {path: path.read_bytes() for path in archive.snapshot().paths}
    assert archive.merge()
    (merged,) = archive.snapshot().paths
    # As a kill leaves them: the merged one is there, and those that it covers are still.
    for path, content in before.items():
        path.write_bytes(content)
    again = EpochArchive(tmp_path, 1, guard=free)
    assert contents(again) == expected
    assert [path.name for path in tmp_path.glob("*.parquet")] == [merged.name]
    for path, content in before.items():
        path.write_bytes(content)
    damaged(merged, how)
    again = EpochArchive(tmp_path, 1, guard=free)
    assert contents(again) == expected
    assert [each.path.name for each in again.damaged] == [merged.name]
    assert merged.with_name(merged.name + ".damaged").exists()


def test_an_erasure_removes_no_damaged_file_of_the_trash(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash", guard=free)
    event_tables.filled(tmp_path / "epoch-000001")
    entry = trash.move(tmp_path / "epoch-000001", 1, "x" * 32, "replaced")
    assert entry is not None
    first, second = sorted(entry.path.glob("*.parquet"))
    damaged(first, "flipped")
    content = first.read_bytes()
    for _ in range(2):
        with pytest.raises(ArchiveFailedError, match="cannot be searched"):
            trash.erase({b"ann": ALWAYS})
        kept = first.with_name(first.name + ".damaged")
        assert kept.read_bytes() == content
    # It has gone through all the others.
    (after,) = entry.path.glob("*.parquet")
    assert after.name != second.name
    assert set(read_segment(after)["user_id"].to_pylist()) == {"bob"}
    # A person decides: then the erasure ends.
    kept.unlink()
    assert trash.erase({b"ann": ALWAYS}) == 0


@pytest.fixture(params=["EIO", "memory"])
def fails(request: pytest.FixtureRequest) -> Fails:
    return FAILURES[request.param]


@pytest.fixture
def archive(tmp_path: Path) -> EpochArchive:
    return event_tables.filled(tmp_path / "epoch-000001")


@pytest.mark.parametrize("reads", [0, 1])
def test_an_erasure_waits_for_a_read_that_failed(
    archive: EpochArchive, fails: Fails, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = archive.snapshot().paths[0]
    content = victim.read_bytes()
    with monkeypatch.context() as patched:
        failing(patched, fails, victim, reads=reads)
        with pytest.raises(ArchiveFailedError, match=victim.name):
            archive.erase({b"ann": ALWAYS})
    assert victim.read_bytes() == content
    assert not archive.damaged
    assert archive.erase({b"ann": ALWAYS}) == 1, "the other is gone already"


def fill(archive: EpochArchive) -> None:
    for k in range(2, 40):
        append(archive, ["ann"], [k + 1], [0], [3.0], stream_ms=[10 * k + 1])


def test_an_unread_file_stays(archive: EpochArchive, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(archive)
    before = sorted(path.name for path in archive.directory.iterdir())
    victim = archive.snapshot().paths[0]
    operations: list[Callable[[], object]] = [
        archive.merge,
        lambda: EpochArchive(archive.directory, 1, guard=free),
        lambda: archive.erase_digests({b"x" * 16}),
        lambda: read_spans(archive.directory, UnreadFiles()),
        lambda: read_segment(victim),
        lambda: read_user_ids(victim),
    ]
    failing(monkeypatch, fails, victim)
    for operation in operations:
        with pytest.raises(ArchiveFailedError, match=victim.name):
            operation()
    assert sorted(path.name for path in archive.directory.iterdir()) == before
    assert not archive.damaged


def test_one_that_cannot_be_read_for_long_is_set_aside_and_others_are_merged_meanwhile(
    archive: EpochArchive, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive)
    victim = archive.snapshot().paths[9]
    disk = not isinstance(fails(), pa.ArrowMemoryError)
    with monkeypatch.context() as patched:
        failing(patched, fails, victim)
        with pytest.raises(ArchiveFailedError, match=victim.name):
            archive.merge()
        if not disk:
            # Memory may be there the next time: it says nothing about the file.
            return
        assert archive.merge()
        assert archive.merge()
        assert victim in archive.snapshot().paths
        assert len(archive.snapshot().paths) == 3
        with pytest.raises(ArchiveFailedError, match=victim.name):
            archive.require_readable()
        patched.setattr(epoch_archive, "_AGAIN_S", 0.0)
        with pytest.raises(ArchiveFailedError, match=victim.name):
            archive.merge()
        assert not archive.damaged
        patched.setattr(unread, "UNREAD_S", 0.0)
        archive.merge()
    assert [damage.path for damage in archive.damaged] == [victim]
    assert read_segment(victim.with_name(victim.name + ".damaged")).num_rows == 1
    # A restart must not forget that something is missing.
    for each in (archive, EpochArchive(archive.directory, 1, guard=free)):
        assert each.has_holes()
