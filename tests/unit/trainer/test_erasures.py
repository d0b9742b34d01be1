"""The ledger of erasures: what it says where it was cut off, damaged, or written by another."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.event_tables import free
from trainer.archive.erasures import (
    Erasures,
    Ledger,
    ledger_files,
    parse_ledger,
    readable_ledgers,
)
from trainer.archive.storage.files import write_whole
from trainer.errors import ArchiveFailedError, LedgerDamagedError

RECORD = 32


def added(folder: Path, *erased: tuple[bytes, int]) -> Path:
    """The one file of a ledger, after these were added by a process that has just begun."""
    Erasures(folder, guard=free).add(erased)
    (path,) = ledger_files(folder)
    return path


def read(path: Path, *, skip_damaged: bool = False) -> Ledger:
    return parse_ledger(path, path.read_bytes(), skip_damaged=skip_damaged)


def test_each_user_with_the_last_time(tmp_path: Path) -> None:
    added(tmp_path, (b"ann", 1000), (b"bob", 2000), (b"ann", 3000))
    path = added(tmp_path, (b"ann", 2500))
    ledger = read(path)
    assert ledger.erased_at([b"bob", b"cid", b"ann"]).tolist() == [2000, 0, 3000]
    assert ledger.erased_at([]).tolist() == []
    assert len(ledger) == 2
    assert b"ann" not in path.read_bytes()
    assert path.stat().st_size == 5 * RECORD


def test_two_ledgers_have_no_digest_in_common(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (read(added(tmp_path / name, (b"ann", 1))) for name in ("one", "two"))
    assert one.digests[0] != two.digests[0]
    assert not one.has_all_of(two)


def test_what_one_has_of_another(tmp_path: Path) -> None:
    none = read(added(tmp_path))
    less = read(added(tmp_path, (b"ann", 1)))
    more = read(added(tmp_path, (b"bob", 2)))
    later = read(added(tmp_path, (b"ann", 3)))
    assert more.has_all_of(less)
    assert not less.has_all_of(more)
    assert not more.has_all_of(later)
    assert less.has_all_of(none)
    assert not none.has_all_of(less)


@pytest.mark.parametrize("left", [1, 16, 31])
def test_a_part_of_a_record_that_a_power_cut_left_stays_and_another_file_is_begun(
    tmp_path: Path, left: int
) -> None:
    torn = added(tmp_path, (b"ann", 1), (b"bob", 2))
    content = torn.read_bytes() + bytes(range(left))
    torn.write_bytes(content)
    assert read(torn).erased_at([b"ann", b"bob"]).tolist() == [1, 2]
    for _ in range(2):
        Erasures(tmp_path, guard=free).add([(b"cid", 3)])
    assert torn.read_bytes() == content
    (other,) = set(ledger_files(tmp_path)) - {torn}
    assert read(other).erased_at([b"ann", b"bob", b"cid"]).tolist() == [0, 0, 3]


@pytest.mark.parametrize("place", range(RECORD))
def test_a_last_record_that_was_told_of_is_never_cut_off(tmp_path: Path, place: int) -> None:
    path = added(tmp_path, (b"ann", 1), (b"bob", 2))
    content = bytearray(path.read_bytes())
    content[2 * RECORD + place] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError, match=path.name):
        read(path)
    Erasures(tmp_path, guard=free).add([(b"cid", 3)])
    assert path.read_bytes()[:-RECORD] == content
    found = np.maximum.reduce(
        [each.erased_at([b"ann", b"bob", b"cid"]) for each in readable_ledgers(tmp_path)]
    )
    assert found.tolist() == [1, 0, 3]


def test_records_that_a_lost_block_took_are_told_of(tmp_path: Path) -> None:
    path = added(tmp_path, *[(b"u%d" % k, k + 1) for k in range(40)])
    content = path.read_bytes()
    for lost in (content[:512] + bytes(len(content) - 512), content[:512] + bytes(512) + content[1024:]):
        path.write_bytes(lost)
        with pytest.raises(LedgerDamagedError, match=path.name):
            read(path)
        assert read(path, skip_damaged=True).erased_at([b"u0", b"u14", b"u15"]).tolist() == [1, 15, 0]


@pytest.mark.parametrize("zeros", [1, 31, RECORD, RECORD + 8, 15 * RECORD, 4096, 8192 - 3 * RECORD])
def test_zeros_that_a_power_cut_left_behind_what_was_told_of_are_no_damage(
    tmp_path: Path, zeros: int
) -> None:
    path = added(tmp_path, (b"ann", 1), (b"bob", 2))
    told = path.read_bytes()
    path.write_bytes(told + bytes(zeros))
    ledger = read(path)
    assert ledger.erased_at([b"ann", b"bob"]).tolist() == [1, 2]
    # As a backup has it.
    assert ledger.content == told
    # What comes from now on does not stand behind them.
    for _ in range(2):
        Erasures(tmp_path, guard=free).add([(b"cid", 3)])
    assert path.read_bytes() == told + bytes(zeros)
    (other,) = set(ledger_files(tmp_path)) - {path}
    assert read(other).erased_at([b"cid"]).tolist() == [3]


@pytest.mark.parametrize("last", [b"\1", b"\0" * 30 + b"\1\0"])
def test_zeros_with_anything_in_or_behind_them_are_damage(tmp_path: Path, last: bytes) -> None:
    path = added(tmp_path, (b"ann", 1))
    path.write_bytes(path.read_bytes() + bytes(2 * RECORD) + last.ljust(RECORD, b"\0"))
    with pytest.raises(LedgerDamagedError, match=path.name):
        read(path)


def test_a_read_that_failed_is_no_ledger_without_erasures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(tmp_path, (b"ann", 1))

    def failing(_path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(ArchiveFailedError, match="Input/output error"):
        readable_ledgers(tmp_path)


def test_a_damaged_record_is_found(tmp_path: Path) -> None:
    path = added(tmp_path, (b"ann", 1), (b"bob", 2), (b"cid", 3))
    content = bytearray(path.read_bytes())
    content[2 * RECORD + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError, match=path.name):
        read(path)
    assert read(path, skip_damaged=True).erased_at([b"ann", b"bob", b"cid"]).tolist() == [1, 0, 3]


@pytest.mark.parametrize("content", [b"", b"erasures", b"x" * 64])
def test_a_file_that_cannot_be_read_stays_and_another_is_begun(tmp_path: Path, content: bytes) -> None:
    damaged = tmp_path / "erasures-00000000.log"
    damaged.write_bytes(content)
    with pytest.raises(LedgerDamagedError):
        parse_ledger(damaged, content, skip_damaged=True)
    Erasures(tmp_path, guard=free).add([(b"ann", 1)])
    assert damaged.read_bytes() == content
    (other,) = set(ledger_files(tmp_path)) - {damaged}
    assert read(other).erased_at([b"ann"]).tolist() == [1]


def test_after_a_full_disk_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    erasures = Erasures(tmp_path, guard=free)
    erasures.add([(b"ann", 1)])

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(ArchiveFailedError, match="No space"):
            erasures.add([(b"bob", 2)])
    erasures.add([(b"bob", 2)])
    (path,) = ledger_files(tmp_path)
    assert read(path).erased_at([b"ann", b"bob"]).tolist() == [1, 2]


def test_a_hundred_thousand_erasures(tmp_path: Path) -> None:
    path = added(tmp_path, *[(b"u%d" % k, k + 1) for k in range(100_000)])
    assert path.stat().st_size == 100_001 * RECORD
    found = read(path).erased_at([b"u%d" % k for k in range(0, 200_000, 1000)])
    assert np.array_equal(found[:100], np.arange(0, 100_000, 1000) + 1)
    assert not found[100:].any()
    copy = tmp_path / "copy.log"
    write_whole(copy, read(path).content)
    assert copy.read_bytes() == path.read_bytes()
