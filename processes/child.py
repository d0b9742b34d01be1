"""A child process that an event loop starts, probes until it is ready, logs, and ends.

Invariant: it does not outlive its parent. Each child runs in a process group of its own, so that Ctrl-C
reaches the parent alone, which then ends the children in order. All stay in one session: Linux weighs
sessions against each other as wholes (`sched_autogroup_enabled`), and only inside one does the lower priority
of a fit count against the service.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

from processes.errors import ChildEndedError
from processes.loop import first_of
from processes.priority import LOOK_FOR_FORKS_S, Forks

# A person who waits for "ready" does not notice 50 ms.
PROBE_EVERY_S = 0.05
# A killed process is gone within milliseconds, except in an uninterruptible wait of the kernel.
KILL_WAIT_S = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Days of a quiet stack, hours of one that complains; a few parts with two files each stay far under 100 MB.
MAX_LOG_BYTES = 8 * 1024 * 1024

Probe = Callable[[], bool]
Sink = Callable[[str], None]
Obstacle = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a child is started, known to be ready, and ended.

    `environment`: None for the parent's own. `probe` may block, for a second at most, and does not raise.
    `captured`: what of its output the parent reads; the rest goes where the parent's own goes. `show` gets
    each line that is read. `forks_give_way`: see `Forks`. `obstacle` may block: what keeps it from another
    start, in a line, None where nothing does. `lasting`: however often it ends it is started again.
    `spared`: asked with its last line when it ends with code 2, whether the rest of a stack goes on without
    it, as long as `obstacle` keeps it from another start.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    probe: Probe | None = None
    ready_within_s: float = 30.0
    grace_s: float = 5.0
    captured: Literal["all", "stdout", "stderr"] = "all"
    show: Sink | None = None
    forks_give_way: bool = False
    obstacle: Obstacle | None = None
    lasting: bool = False
    spared: Callable[[str], bool] | None = None


class BoundedLog:
    """Appends bytes to `path`, which is renamed to `.1` when it is full; never holds more than two files of
    `max_bytes` (and one write).

    A disk that is full costs log lines, never the part that wrote them: what cannot be written is dropped,
    and a file that cannot be opened is tried again with the next line.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: FileIO | None = None
        self._size = 0
        self._closed = False

    def write(self, data: bytes) -> None:
        """Append `data`, starting a new file when this one is full."""
        if self._closed:
            return
        try:
            if self._file is not None and self._size > 0 and self._size + len(data) > self._max_bytes:
                self._file.close()
                self._file = None
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            if self._file is None:
                # Unbuffered: the last line of a part that is killed is the one that is wanted.
                self._file = FileIO(self.path, "ab")
                self._size = self._file.tell()
            self._file.write(data)
            self._size += len(data)
        except OSError:
            return

    def close(self) -> None:
        """Close the file. Writes after that are dropped."""
        self._closed = True
        if self._file is not None:
            self._file.close()


class Child:
    """A running child. `start` may be called again after it has ended.

    `log_path`: where to what is read of its output is appended. `inherit`: open files that it gets.
    """

    def __init__(self, spec: ChildSpec, log_path: Path | None, inherit: tuple[int, ...] = ()) -> None:
        self.spec = spec
        self.log_path = log_path
        self.last_line = ""
        self._inherit = inherit
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._forks: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, also the id of its process group; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process, and the task that reads its output. Raises OSError if that is impossible."""
        self.last_line = ""
        pipe = asyncio.subprocess.PIPE
        errors = {"all": asyncio.subprocess.STDOUT, "stdout": None, "stderr": pipe}[self.spec.captured]
        self._process = process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            env=None if self.spec.environment is None else dict(self.spec.environment),
            # Never written to. A child may watch for its end, which is the parent's end on any system.
            stdin=pipe,
            stdout=None if self.spec.captured == "stderr" else pipe,
            stderr=errors,
            pass_fds=self._inherit,
            preexec_fn=_in_own_group(die_with_parent()),
        )
        self._output = asyncio.create_task(
            self._read(process.stdout or process.stderr), name=f"output of {self.spec.name}"
        )
        if self.spec.forks_give_way:
            self._forks = asyncio.create_task(_watch_forks(process), name=f"forks of {self.spec.name}")

    async def _read(self, output: asyncio.StreamReader | None) -> None:
        assert output is not None  # one of the two is always a pipe
        with contextlib.ExitStack() as ends:
            log = None
            if self.log_path is not None:
                log = ends.enter_context(contextlib.closing(BoundedLog(self.log_path)))
            rest = b""
            while chunk := await output.read(65_536):
                if log is not None:
                    log.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._line(line)
                # A line without an end must not fill the memory of the parent.
                rest = rest[-65_536:]
            if rest:
                self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.last_line = text
        if self.spec.show is not None:
            self.spec.show(text)

    async def wait_ready(self) -> None:
        """Return when the probe succeeds.

        Raises ChildEndedError if the process ends or is not ready in time.
        """
        if self.spec.probe is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.spec.ready_within_s
        while True:
            if not self.running:
                raise ChildEndedError(self.spec.name, await self.wait(), self.last_line)
            # In a thread: the output of all children, and signals, are handled meanwhile.
            if await asyncio.to_thread(self.spec.probe):
                return
            if loop.time() > deadline:
                raise ChildEndedError(
                    self.spec.name, None, f"not ready after {self.spec.ready_within_s:.0f} s"
                )
            await asyncio.sleep(PROBE_EVERY_S)

    async def wait(self) -> int:
        """Wait for the end of the process, and up to a second for its output; return the exit code."""
        if self._process is None:
            return 0
        code = await self._process.wait()
        if self._output is not None:
            # A process that the child has started may still hold the pipe.
            await asyncio.wait({self._output}, timeout=1.0)
        return code

    async def stop(self, hurry: asyncio.Event | None = None) -> int:
        """End it by SIGTERM, and its whole group by SIGKILL after the grace or as soon as `hurry` is set.

        Returns the exit code.
        """
        if self._process is None:
            return 0
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            waits: list[Awaitable[object]] = [self._process.wait()]
            if hurry is not None:
                waits.append(hurry.wait())
            await first_of(*waits, within_s=self.spec.grace_s)
        # The group, whether or not its leader is gone: what a child has started must not stay behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_WAIT_S):
                return await self.wait()
        except TimeoutError:
            return -signal.SIGKILL
        finally:
            for task in (self._forks, self._output):
                if task is not None:
                    task.cancel()


async def _watch_forks(process: asyncio.subprocess.Process) -> None:
    loop, forks = asyncio.get_running_loop(), Forks(process.pid)
    while process.returncode is None:
        forks.look(loop.time())
        await asyncio.sleep(LOOK_FOR_FORKS_S)


def _in_own_group(then: Callable[[], None] | None) -> Callable[[], None]:
    """Return a `preexec_fn` for a process group of its own: uvloop takes no `process_group`, and a session of
    its own would be weighed as a whole.
    """

    def before_exec() -> None:
        os.setpgid(0, 0)
        if then is not None:
            then()

    return before_exec


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """Return the `preexec_fn` with which a child asks Linux for this signal at the end of its parent.

    SIGTERM lets the child end its own processes, too. Strictly the kernel means the thread that starts it.
    Other systems have no such thing (None): there the children of a killed process stay.
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: after it, beside threads, only a system call is safe.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request was made
            os._exit(1)

    return before_exec
