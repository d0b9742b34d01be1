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
    require_known,
)
from trainer.archive.root import ArchiveRoot
from trainer.errors import ArchiveFailedError, ArchiveRefusedError, LedgerDamagedError

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


def test_a_part_of_a_record_that_a_power_cut_left_stays_and_another_file_is_begun(
    tmp_path: Path,
) -> None:
    torn = added(tmp_path, (b"ann", 1), (b"bob", 2))
    content = torn.read_bytes() + bytes(range(16))
    torn.write_bytes(content)
    assert read(torn).erased_at([b"ann", b"bob"]).tolist() == [1, 2]
    for _ in range(2):
        Erasures(tmp_path, guard=free).add([(b"cid", 3)])
    assert torn.read_bytes() == content
    (other,) = set(ledger_files(tmp_path)) - {torn}
    assert read(other).erased_at([b"ann", b"bob", b"cid"]).tolist() == [0, 0, 3]


@pytest.mark.parametrize("place", [0, 20, RECORD - 1])
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


@pytest.mark.parametrize("zeros", [1, RECORD + 8, 4096])
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


def test_a_damaged_record_is_found(tmp_path: Path) -> None:
    path = added(tmp_path, (b"ann", 1), (b"bob", 2), (b"cid", 3))
    content = bytearray(path.read_bytes())
    content[2 * RECORD + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError, match=path.name):
        read(path)
    assert read(path, skip_damaged=True).erased_at([b"ann", b"bob", b"cid"]).tolist() == [1, 0, 3]


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    path = added(tmp_path, (b"ann", 1))
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(ArchiveRefusedError, match="has format 2"):
        require_known(tmp_path)
    root = ArchiveRoot(tmp_path, guard=free)
    with pytest.raises(ArchiveRefusedError, match="has format 2"):
        root.state()
    assert path.read_bytes() == content


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
