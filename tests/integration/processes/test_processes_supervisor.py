"""Parts of a stack are started in order, kept, and ended, whatever they do. Real processes, tiny programs."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from processes import backoff
from processes.blocking import BlockingChild
from processes.child import Child, ChildSpec
from processes.errors import CannotStartError, ChildEndedError, StackFailedError
from processes.messages import HelperEndedError, helper
from processes.supervisor import Supervisor
from tests.support.waiting import PATIENCE_S, wait_until, wait_until_async

READY = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('x'); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY
CRASHES = "import sys; print('it is broken'); sys.exit(int(sys.argv[1]))"


def spec(name: str, code: str, *arguments: object, mark: Path | None = None, **more: object) -> ChildSpec:
    """A part that runs `code`, ready when the file `mark` is there."""

    def probe() -> bool:
        return mark is None or written(mark)

    command = (sys.executable, "-c", code, *map(str, arguments))
    return ChildSpec(name, command, dict(os.environ), probe=probe, **more)  # type: ignore[arg-type] # by name


def written(mark: Path) -> bool:
    return mark.exists() and mark.read_text() != ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def keeper(tmp_path: Path, said: list[str]) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path, said.append)
    yield supervisor
    await supervisor.close()
    assert not supervisor.running()


async def test_parts_end_in_the_opposite_order(tmp_path: Path, said: list[str]) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    with open(sys.argv[2], 'a') as log: log.write(sys.argv[3])\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); pathlib.Path(sys.argv[1]).write_text('x'); time.sleep(60)\n"
    )
    supervisor = Supervisor(tmp_path, said.append)
    for name in "abc":
        mark = tmp_path / name
        await supervisor.start(spec(name, code, mark, tmp_path / "order", name, mark=mark, grace_s=60.0))
    await supervisor.close()
    assert (tmp_path / "order").read_text() == "cba"


@pytest.mark.parametrize("hurried", [False, True])
async def test_a_part_that_ignores_sigterm_is_killed_after_its_grace_or_a_second_ctrl_c(
    tmp_path: Path, said: list[str], hurried: bool
) -> None:
    supervisor, hurry = Supervisor(tmp_path, said.append), asyncio.Event()
    grace_s = 600.0 if hurried else 0.1
    await supervisor.start(spec("one", STUBBORN, tmp_path / "a", mark=tmp_path / "a", grace_s=grace_s))
    if hurried:
        hurry.set()
    await supervisor.close(hurry)
    assert supervisor.running() == {}


async def test_a_crashed_part_is_started_again(keeper: Supervisor, tmp_path: Path, said: list[str]) -> None:
    mark = tmp_path / "a"
    await keeper.start(spec("one", READY.replace("'x'", "str(__import__('os').getpid())"), mark, mark=mark))
    assert any(line.startswith("  one: ready after") for line in said)
    first = int(mark.read_text())
    mark.unlink()
    os.kill(first, signal.SIGKILL)
    await wait_until_async(lambda: "  one is back" in said, "the part's return")
    assert int(mark.read_text()) != first
    assert any("one ended (signal 9): starting it again" in line for line in said)
    assert not keeper.failed.done()


@pytest.mark.parametrize(("code", "error"), [(1, StackFailedError), (2, CannotStartError)])
async def test_a_part_that_keeps_failing_ends_the_stack(
    keeper: Supervisor, tmp_path: Path, code: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.01)
    once = (
        "import os, sys\nif os.path.exists(sys.argv[2]): print('it is broken'); sys.exit(int(sys.argv[3]))\n"
    )
    await keeper.start(
        spec("one", once + READY, tmp_path / "a", tmp_path / "broken", code, mark=tmp_path / "a", grace_s=1.0)
    )
    (tmp_path / "broken").touch()
    (tmp_path / "a").unlink()
    os.kill(keeper.running()["one"], signal.SIGKILL)
    with pytest.raises(error, match=r"one ended 5 times .*it is broken; its log: .*one\.log"):
        await asyncio.shield(keeper.failed)


@pytest.mark.parametrize(("code", "error"), [(1, StackFailedError), (2, CannotStartError)])
async def test_a_part_that_does_not_start_says_why(
    keeper: Supervisor, tmp_path: Path, code: int, error: type[Exception]
) -> None:
    never = tmp_path / "never"
    with pytest.raises(error, match="one: it is broken") as found:
        await keeper.start(
            spec("one", CRASHES, code, mark=never), spec("other", READY, tmp_path / "a", mark=tmp_path / "a")
        )
    assert "\n" not in str(found.value)
    assert b"it is broken" in (tmp_path / "one.log").read_bytes()


async def test_the_rest_goes_on_without_a_part_that_is_spared_and_with_it_once_it_can(
    keeper: Supervisor, tmp_path: Path, said: list[str]
) -> None:
    """Once it needs a person it is not started again, until what it needed is there; nothing else ends."""
    text = f"import os, sys, time\nif os.path.exists(sys.argv[2]): time.sleep(60)\n{CRASHES}"
    go = tmp_path / "go"
    refusing = ChildSpec(
        "quiet",
        (sys.executable, "-c", text, "2", str(go)),
        dict(os.environ),
        spared=lambda line: line == "it is broken",
        obstacle=lambda: None if go.exists() else "a person must change something",
    )
    await keeper.start(refusing, spec("one", READY, tmp_path / "a", mark=tmp_path / "a"))
    await wait_until_async(lambda: any("quiet has stopped" in line for line in said), "it is told")
    assert list(keeper.running()) == ["one"]
    assert not keeper.failed.done()
    go.touch()
    await wait_until_async(lambda: "quiet" in keeper.running(), "it is started again")
    # It is spared for nothing else.
    other = ChildSpec("other", (sys.executable, "-c", CRASHES, "2"), dict(os.environ), spared=lambda _: False)
    with pytest.raises(CannotStartError, match="other: it is broken"):
        await keeper.start(other, spec("slow", READY, tmp_path / "b", mark=tmp_path / "never"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_parts_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib, sys
from processes.child import Child, ChildSpec
async def main():
    child = Child(ChildSpec("one", ("sleep", "60"), {{}}), pathlib.Path({str(tmp_path / "one.log")!r}))
    await child.start()
    pathlib.Path({str(tmp_path / "pid")!r}).write_text(f"{{child.pid}}\\n")
    await asyncio.sleep(60)
asyncio.run(main())
"""
    mark = tmp_path / "pid"
    with BlockingChild([sys.executable, "-c", code], tmp_path / "log") as parent:
        parent.wait_ready(lambda: written(mark), PATIENCE_S)
        pid = int(mark.read_text())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(pid), "the part's end")


def test_a_child_has_a_group_of_its_own_in_the_same_session_on_the_loop_of_services() -> None:
    """Priorities count inside a session alone."""
    code = "import os; print(os.getpgid(0), os.getsid(0))"

    async def started() -> tuple[int, str]:
        child = Child(ChildSpec("group", (sys.executable, "-c", code)), None)
        await child.start()
        return await child.wait(), child.last_line

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ended, found = runner.run(started())
    group, session = map(int, found.split())
    assert ended == 0
    assert group != os.getpgid(0)
    assert session == os.getsid(0)


WITH_CHILD = (
    "import pathlib, subprocess, sys, time; "
    "child = subprocess.Popen(['sleep', '60']); "
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(60)"
)


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with BlockingChild(python(WITH_CHILD, mark), tmp_path / "log") as child:
        child.wait_ready(lambda: written(mark), PATIENCE_S)
    assert child.code == -signal.SIGTERM
    wait_until(lambda: not alive(int(mark.read_text())), "its end")


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
    for name, code in (("echo", ECHO), ("busy", BUSY)):
        (tmp_path / f"helper_{name}.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


async def test_messages_come_back_whole_whatever_a_helper_prints() -> None:
    async with helper("helper_echo") as running:
        for message in (b"", b"one", os.urandom(3_000_000)):
            assert await running.ask(message, PATIENCE_S) == message
        pid = running.pid
        assert alive(pid)
    assert not alive(pid)


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
    with BlockingChild([sys.executable, "-c", textwrap.dedent(code)], tmp_path / "log") as parent:
        parent.wait_ready(lambda: written(mark), PATIENCE_S)
        parent.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(int(mark.read_text())), "the helper gone with its parent")


def test_what_steps_back_has_a_lower_priority_and_long_slices() -> None:
    code = """
import ctypes, os, platform, struct
from processes.priority import step_back
before, number = os.nice(0), {"x86_64": 315, "aarch64": 275}[platform.machine()]
step_back(5)
found = ctypes.create_string_buffer(48)
ctypes.CDLL(None).syscall(number, 0, found, 48, 0)
print(os.nice(0) - min(before + 5, 19), struct.unpack("=IIQiIQQQ", found.raw)[5])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lower, slice_ns = map(int, done.stdout.split())
    assert lower == 0
    # Before Linux 6.12 there are none.
    assert slice_ns in {0, 100_000_000}
