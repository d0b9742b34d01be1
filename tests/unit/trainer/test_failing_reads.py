"""Reads of segments that fail: nothing that held ratings is set aside, removed, or told of as searched."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support import failing_reads
from tests.support.event_tables import event_table, free
from tests.support.failing_reads import FAILURES, Fails
from trainer.archive import epoch_archive, unread
from trainer.archive.epoch_archive import ALL_OF_A_USER, EpochArchive, read_spans
from trainer.archive.events import spans_of
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import read_segment, read_user_ids
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError, SegmentDamagedError, SegmentUnreadError


@pytest.fixture(params=["EIO", "memory"])
def fails(request: pytest.FixtureRequest) -> Fails:
    return FAILURES[request.param]


@pytest.fixture
def archive(tmp_path: Path) -> EpochArchive:
    found = EpochArchive(tmp_path / "epoch-000001", 1, guard=free)
    for k in range(2):
        table = event_table(["ann", "bob"], [k + 1, k + 1], [0, 1], [3.0, 4.0], stream_ms=[2 * k, 2 * k + 1])
        found.append(table, spans_of(table))
    return found


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
            archive.erase(b"ann", ALL_OF_A_USER)
    assert victim.read_bytes() == content
    assert not archive.damaged
    assert archive.erase(b"ann", ALL_OF_A_USER) == 1, "the other is gone already"


def fill(archive: EpochArchive) -> None:
    """Append enough segments that some can be merged."""
    for k in range(2, 40):
        table = event_table(["ann"], [k + 1], [0], [3.0], stream_ms=[2 * k])
        archive.append(table, spans_of(table))


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


def test_one_that_was_set_aside_and_fits_its_checksum_stays_without_the_user(archive: EpochArchive) -> None:
    victim = archive.snapshot().paths[0]
    archive.set_aside(victim, "a disk that failed, said a version before this one")
    aside = victim.with_name(victim.name + ".damaged")
    assert archive.erase(b"ann", ALL_OF_A_USER) == 2
    assert read_segment(aside)[0]["user_id"].to_pylist() == ["bob"]
    assert b"ann" not in aside.read_bytes()
    assert archive.erase(b"ann", ALL_OF_A_USER) == 0


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
    assert archive.has_holes()


def test_a_trainer_that_starts_waits_for_footers_for_as_long_as_one_that_leads(
    archive: EpochArchive, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive)
    victims = archive.snapshot().paths[3:5]
    contents = [victim.read_bytes() for victim in victims]
    names = [f"epoch-000001/{victim.name}" for victim in victims]
    root = ArchiveRoot(archive.directory.parent, guard=free)
    disk = not isinstance(fails(), pa.ArrowMemoryError)
    with monkeypatch.context() as patched:
        failing_reads.failing(patched, fails, lambda path: path in victims)
        for look in (root.state, lambda: root.epoch(1)):
            with pytest.raises(ArchiveFailedError, match=victims[0].name):
                look()
        assert sorted(root.unread_s()) == (names if disk else []), "all are waited for at once"
        patched.setattr(unread, "UNREAD_S", 0.0)
        if not disk:
            with pytest.raises(ArchiveFailedError):
                root.state()
            return
        before = sorted(archive.directory.iterdir())
        assert root.state().ends == {1: archive.snapshot().positions}
        assert sorted(archive.directory.iterdir()) == before, "a look changes nothing"
        opened = root.epoch(1)
    assert [damage.path for damage in opened.damaged] == list(victims)
    assert "could not be read for" in opened.damaged[0].why
    assert opened.has_holes()
    assert not root.unread_s()
    assert [victim.with_name(victim.name + ".damaged").read_bytes() for victim in victims] == contents


def moving(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the monotonic clock, in seconds, for a test to move."""
    clock = [0.0]
    monkeypatch.setattr("trainer.archive.unread.time.monotonic", lambda: clock[0])
    return clock


def look(
    files: UnreadFiles, path: Path, clock: list[float], read_s: float = 0.0
) -> SegmentDamagedError | None:
    """Look at a file of which a read fails after so long; return how it is damaged, None while it is
    waited for.
    """
    try:
        with files.looking():
            clock[0] += read_s
            raise SegmentUnreadError(path, "Input/output error")
    except SegmentUnreadError as exc:
        try:
            return files.require_wait(exc)
        except SegmentUnreadError:
            return None


def test_one_that_is_read_meanwhile_or_was_not_looked_at_is_waited_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, path, clock = UnreadFiles(), Path("a.parquet"), moving(monkeypatch)

    def waited_for_ten_minutes() -> None:
        for _ in range(10):
            assert look(files, path, clock) is None
            clock[0] += 60

    waited_for_ten_minutes()
    files.was_read(path)
    waited_for_ten_minutes()
    # Another trainer leads for a day.
    clock[0] += 86_400
    waited_for_ten_minutes()
    assert look(files, path, clock) is not None


def test_a_ledger_that_cannot_be_read_keeps_no_trainer_from_leading(archive: EpochArchive) -> None:
    folder = archive.directory.parent
    # Reading it gives EISDIR.
    (folder / "erasures-00000000.log").mkdir()
    root = ArchiveRoot(folder, guard=free)
    assert root.state().ends[1]
    with pytest.raises(ArchiveFailedError, match="Is a directory"):
        root.erasures.add([(b"ann", 1)])
