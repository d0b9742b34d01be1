"""Nothing that a supervisor writes may end it: a disk that is full costs lines."""

import random
import signal
from pathlib import Path

import pytest

from foldin.settings import FrontDoorSettings, StackOptions
from foldin.up import Stack
from processes import backoff
from processes.backoff import Backoff, FailureRecord
from processes.log_file import BoundedLog


def test_a_stack_that_cannot_write_where_it_is_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As a full disk does, it refuses the file.
    (tmp_path / "stack.new").mkdir()
    stack = Stack(StackOptions(data=tmp_path), FrontDoorSettings(None, tmp_path, False, {}), tmp_path)
    stack._remember({})
    assert "cannot be written" in capsys.readouterr().out
    assert not (tmp_path / "stack.json").exists()


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
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "part.log": 100,
        "part.log.1": 100,
    }
    # It cannot be renamed.
    (tmp_path / "other.log.1").mkdir()
    log = BoundedLog(tmp_path / "other.log", max_bytes=10)
    for _ in range(5):
        log.write(b"123456789\n")
    log.close()
