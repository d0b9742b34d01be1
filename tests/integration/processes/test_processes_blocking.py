"""Children of callers without an event loop: ready or explained, and gone with all that they started."""

import signal
import sys
from pathlib import Path

import pytest

from processes.blocking import BlockingChild
from processes.errors import ChildEndedError
from tests.support.waiting import PATIENCE_S, wait_until

WITH_CHILD = (
    "import pathlib, subprocess, sys, time; "
    "child = subprocess.Popen(['sleep', '60']); "
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(60)"
)


def python(code: str, *arguments: object) -> list[str]:
    """A command that runs `code`."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with BlockingChild(python(WITH_CHILD, mark), tmp_path / "log") as child:
        child.wait_ready(lambda: mark.exists() and mark.read_text() != "", PATIENCE_S)
    assert child.code == -signal.SIGTERM
    stat = Path(f"/proc/{int(mark.read_text())}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", "its end")


def test_a_child_that_is_not_ready_says_its_last_line(tmp_path: Path) -> None:
    with (
        BlockingChild(
            python("print('first'); print('broken'); raise SystemExit(3)"), tmp_path / "log"
        ) as child,
        pytest.raises(ChildEndedError, match="ended with code 3: broken") as found,
    ):
        child.wait_ready(lambda: False, PATIENCE_S)
    assert found.value.code == 3
    with (
        BlockingChild(python("import time; time.sleep(60)"), tmp_path / "other") as child,
        pytest.raises(ChildEndedError, match="not ready after 0 s: it said nothing") as found,
    ):
        child.wait_ready(lambda: False, 0.1)
    assert found.value.code is None
