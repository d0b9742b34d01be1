"""Nothing that a supervisor writes may end it: a disk that is full costs lines."""

import errno
import os
import random
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest

from foldin.settings import FrontDoorSettings, StackOptions
from foldin.up import Stack
from processes import backoff
from processes.backoff import Backoff, FailureRecord
from processes.child import BoundedLog
from processes.container import memory_left, usable_cores


def test_a_stack_that_cannot_write_where_it_is_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As a full disk does, it refuses the file.
    (tmp_path / "stack.new").mkdir()
    stack = Stack(StackOptions(data=tmp_path), FrontDoorSettings(None, tmp_path, False, {}), tmp_path)
    stack._remember({})
    assert "cannot be written" in capsys.readouterr().out
    assert not (tmp_path / "stack.json").exists()

    told = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    settings = FrontDoorSettings(None, tmp_path, False, {}, emit=told)
    Stack(StackOptions(data=tmp_path), settings, tmp_path).tell("up")
    told.assert_called_once()


def test_delays_double_up_to_a_limit() -> None:
    delays_of = Backoff(1.0, 8.0, random.Random(0))
    delays = [delays_of.next_s() for _ in range(100)]
    for delay, whole in zip(delays, [1, 2, 4, *[8] * 97], strict=True):
        assert whole / 2 <= delay <= whole
    delays_of.reset()
    assert delays_of.next_s() <= 1.0


def test_only_failures_in_a_short_time_end_a_part_for_good() -> None:
    record = FailureRecord()
    killed = [record.ended(now, -signal.SIGKILL, now - 0.1) for now in range(1, 10)]
    pauses = [pause for pause in killed if pause is not None]
    assert pauses == sorted(pauses)
    assert (len(pauses), pauses[0], pauses[-1]) == (9, backoff.FIRST_PAUSE_S, backoff.MAX_PAUSE_S)
    # One that has lasted begins anew.
    assert record.ended(100.0, -signal.SIGKILL, 90.0) == backoff.FIRST_PAUSE_S
    assert all(record.ended(200 + now * 20.0, 1, 195 + now * 20.0) is not None for now in range(50))
    assert [record.ended(3000.0 + now, 1, None) is None for now in range(5)] == [False] * 4 + [True]


def test_a_log_is_bounded_and_costs_lines_at_most(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "part.log", max_bytes=100)
    for number in range(50):
        log.write(b"%09d\n" % number)
    log.close()
    log.write(b"dropped")
    assert (tmp_path / "part.log").read_bytes().splitlines()[-1] == b"000000049"
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"part.log": 100, "part.log.1": 100}
    # It cannot be renamed.
    (tmp_path / "other.log.1").mkdir()
    log = BoundedLog(tmp_path / "other.log", max_bytes=10)
    for _ in range(5):
        log.write(b"123456789\n")
    log.close()


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def test_cores_of_either_version(tmp_path: Path) -> None:
    quotas = {"max 100000": 8, "250000 100000": 2, "50000 100000": 1, "1600000 100000": 8, "": 8, "x 0": 8}
    for quota, cores in quotas.items():
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert usable_cores(tmp_path) == cores
    older = tmp_path / "older"
    (older / "cpu").mkdir(parents=True)
    (older / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in {"-1": 8, "300000": 3}.items():
        (older / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
        assert usable_cores(older) == cores
    assert usable_cores(tmp_path / "none") == 8


def test_memory_of_either_version(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("800\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\nactive_file 100\nodd\n")
    for limit, left in {"1000": (500, 1000), "max": None, "": None}.items():
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert memory_left(tmp_path) == left
    older = tmp_path / "older/memory"
    older.mkdir(parents=True)
    (older / "memory.usage_in_bytes").write_text("900\n")
    (older / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 100\n")
    for limited, room in {1000: (200, 1000), 2**63 - 4096: None}.items():
        (older / "memory.limit_in_bytes").write_text(f"{limited}\n")
        assert memory_left(older.parent) == room
    assert memory_left(tmp_path / "none") is None
