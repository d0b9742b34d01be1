"""Reads of segments that fail: nothing that held ratings is set aside, removed, or told of as searched."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support import failing_reads
from tests.support.event_tables import event_table, free
from tests.support.failing_reads import FAILURES, Fails
from trainer.archive import epoch_archive, unread
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import ALWAYS, spans_of
from trainer.archive.listing import read_spans
from trainer.archive.segments import read_segment, read_user_ids
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError


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
            archive.erase({b"ann": ALWAYS})
    assert victim.read_bytes() == content
    assert not archive.damaged
    assert archive.erase({b"ann": ALWAYS}) == 1, "the other is gone already"


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
