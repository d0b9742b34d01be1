"""Nothing that a supervisor writes may end it: a disk that is full costs lines."""

from pathlib import Path

import pytest

from foldin.settings import FrontDoorSettings, StackOptions
from foldin.up import Stack
from processes.log_file import BoundedLog


def test_a_log_goes_on_when_it_can_be_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    log = BoundedLog(folder / "part.log", max_bytes=20)
    log.write(b"lost\n")
    folder.mkdir()
    for number in range(5):
        log.write(b"%09d\n" % number)
    (folder / "part.log.1").unlink()
    (folder / "part.log.1").mkdir()
    log.write(b"kept while it can\n")
    log.close()
    log.write(b"dropped\n")
    assert (folder / "part.log").read_bytes() == b"000000004\n"


def test_a_stack_that_cannot_write_where_it_is_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As a full disk does, it refuses the file.
    (tmp_path / "stack.new").mkdir()
    stack = Stack(StackOptions(data=tmp_path), FrontDoorSettings(None, tmp_path, False, {}), tmp_path)
    stack._remember({})
    assert "cannot be written" in capsys.readouterr().out
    assert not (tmp_path / "stack.json").exists()
