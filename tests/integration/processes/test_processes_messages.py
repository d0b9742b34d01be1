"""Helpers: messages both ways, whatever they print; gone with their block, and with their parent."""

import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from processes.blocking import BlockingChild
from processes.messages import HelperEndedError, helper
from tests.support.waiting import PATIENCE_S, wait_until

ECHO = """
    import os, sys
    from processes.messages import Parent
    parent = Parent()
    print("not a message")
    os.system("echo nor is this")
    message = parent.request
    while message is not None:
        if message == b"end":
            sys.exit(7)
        if message != b"be silent":
            parent.send(message)
        message = parent.receive()
"""
# It is busy and never asks for a message again.
BUSY = """
    import os, pathlib, time
    from processes.messages import Parent
    parent = Parent()
    mark = parent.request.decode()
    parent.end_with_it()
    pathlib.Path(mark).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that a helper can be made of."""
    for name, code in (("echo", ECHO), ("busy", BUSY)):
        (tmp_path / f"helper_{name}.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_messages_come_back_whole_whatever_a_helper_prints() -> None:
    async with helper("helper_echo") as running:
        for message in (b"", b"one", os.urandom(3_000_000)):
            assert await running.ask(message, PATIENCE_S) == message
        pid = running.pid
        assert not gone(pid)
    assert gone(pid)


async def test_a_helper_that_ends_is_told_from_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with helper("helper_echo") as running:
        with pytest.raises(HelperEndedError, match="ended without a word, with code 7"):
            await running.ask(b"end", PATIENCE_S)
    async with helper("helper_of_no_name") as running:
        with pytest.raises(HelperEndedError):
            await running.receive()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(HelperEndedError, match="cannot be started"):
        async with helper("helper_echo"):
            pass


def test_a_busy_helper_ends_with_its_parent(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"""
    import asyncio
    from processes.messages import helper
    async def main():
        async with helper("helper_busy") as running:
            await running.ask({str(mark).encode()!r})
    asyncio.run(main())
    """
    parent = BlockingChild([sys.executable, "-c", textwrap.dedent(code)], tmp_path / "log")
    try:
        parent.wait_ready(lambda: mark.exists() and mark.read_text() != "", PATIENCE_S)
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: gone(int(mark.read_text())), "the helper gone with its parent")
    finally:
        parent.end(signal.SIGKILL)
