"""What holds ratings stays: neither damage nor a read that fails removes a file that may be needed."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support import failing_reads
from tests.support.event_tables import append, filled, free
from tests.support.failing_reads import FAILURES, Fails
from tests.unit.trainer.test_trainer_archive import contents
from trainer.archive import epoch_archive, unread
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS
from trainer.archive.listing import read_spans
from trainer.archive.segments import read_segment, read_user_ids
from trainer.archive.trash import Trash
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "torn":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["torn", "flipped"])
def test_a_damaged_segment_takes_along_none_of_those_that_it_covers(tmp_path: Path, how: str) -> None:
    archive = filled(tmp_path, 8)
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
    filled(tmp_path / "epoch-000001")
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
    assert set(read_segment(after)[0]["user_id"].to_pylist()) == {"bob"}
    # A person decides: then the erasure ends.
    kept.unlink()
    assert trash.erase({b"ann": ALWAYS}) == 0


@pytest.fixture(params=["EIO", "memory"])
def fails(request: pytest.FixtureRequest) -> Fails:
    return FAILURES[request.param]


@pytest.fixture
def archive(tmp_path: Path) -> EpochArchive:
    return filled(tmp_path / "epoch-000001")


def failing(patched: pytest.MonkeyPatch, fails: Fails, victim: Path, *, reads: int = 0) -> None:
    failing_reads.failing(patched, fails, lambda path: path.name == victim.name, reads=reads)


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


def test_one_that_cannot_be_read_is_not_set_aside_when_it_is_opened_merged_or_looked_through(
    archive: EpochArchive, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert read_segment(victim.with_name(victim.name + ".damaged"))[0].num_rows == 1
    # A restart must not forget that something is missing.
    for each in (archive, EpochArchive(archive.directory, 1, guard=free)):
        assert each.has_holes()
