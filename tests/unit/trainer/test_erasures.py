"""The ledger of erasures: what it says where it was cut off, damaged, or written by another."""

from pathlib import Path

import pytest

from tests.support.event_tables import free
from trainer.archive.erasures import Erasures, Ledger, ledger_files, parse_ledger
from trainer.errors import LedgerDamagedError

RECORD = 32


def added(folder: Path, *erased: tuple[bytes, int]) -> Path:
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


def test_a_part_of_a_record_that_a_power_cut_left_stays_and_another_file_is_begun(tmp_path: Path) -> None:
    torn = added(tmp_path, (b"ann", 1), (b"bob", 2))
    content = torn.read_bytes() + bytes(range(16))
    torn.write_bytes(content)
    assert read(torn).erased_at([b"ann", b"bob"]).tolist() == [1, 2]
    for _ in range(2):
        Erasures(tmp_path, guard=free).add([(b"cid", 3)])
    assert torn.read_bytes() == content
    (other,) = set(ledger_files(tmp_path)) - {torn}
    assert read(other).erased_at([b"ann", b"bob", b"cid"]).tolist() == [0, 0, 3]


def test_a_damaged_record_is_found(tmp_path: Path) -> None:
    path = added(tmp_path, (b"ann", 1), (b"bob", 2), (b"cid", 3))
    content = bytearray(path.read_bytes())
    content[2 * RECORD + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError, match=path.name):
        read(path)
    assert read(path, skip_damaged=True).erased_at([b"ann", b"bob", b"cid"]).tolist() == [1, 0, 3]
