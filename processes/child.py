"""One process of the stack: started, probed until it is ready, logged, and ended.

It never outlives its supervisor. Each runs in a process group of its own, so that Ctrl-C reaches the
supervisor alone, which then ends the parts in order, but all in one session: Linux weighs sessions against
each other as wholes (`sched_autogroup_enabled`), and only inside one counts that a fit has a lower priority
than who answers.
"""

import asyncio
import contextlib
import ctypes
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from processes.log_file import BoundedLog

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROBE_EVERY_S = 0.05
KILL_WAIT_S = 5.0
LOOK_FOR_FORKS_S = 0.2
FORK_GIVES_WAY_S = 60.0
FORKS_UNHINDERED_S = 600.0

Probe = Callable[[], Awaitable[bool]]
Sink = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How one part is started, known to be ready, and ended.

    `probe` answers at once or within its own timeout, and does not raise. `show` gets each line that the part
    prints; `on_terminal`: it prints to the supervisor's own output instead (to draw on a terminal), and only
    errors are logged. `forks_give_way`: see `Forks`.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    probe: Probe | None = None
    ready_within_s: float = 30.0
    grace_s: float = 5.0
    show: Sink | None = None
    on_terminal: bool = False
    forks_give_way: bool = False


class ChildEndedError(Exception):
    """The part ended, or was not ready in time, before it was of use. `code` is None for the latter."""

    def __init__(self, name: str, code: int | None, last_line: str) -> None:
        super().__init__(f"{name}: {last_line or 'ended without a word'}")
        self.name = name
        self.code = code
        self.last_line = last_line


class Forks:
    """The processes that a server forks: they get only what nobody else wants of the cores, where the system
    can do that.

    A store forks to rewrite its file, and the fork works for 3 s a gigabyte: of 400,000 users the p99 of GET
    /predict was 10 to 20 ms meanwhile, 2 to 9 ms once the fork gave way, and a lower priority was no help.
    Where all cores stay busy it would never end, and hold on to memory and files: it has a minute.
    """

    def __init__(self, server: int) -> None:
        self._listed = Path(f"/proc/{server}/task/{server}/children")
        self._since: dict[int, float] = {}
        self._unhindered_until = -math.inf

    def look(self, now: float) -> None:
        """Let new ones give way, but for those that come soon after one that had too little."""
        try:
            running = set(map(int, self._listed.read_text("ascii").split()))
        except OSError:
            return
        since, self._since = self._since, {}
        for fork in running:
            began = since.get(fork, now)
            with contextlib.suppress(OSError):
                if fork not in since and now >= self._unhindered_until:
                    _schedule(fork, "SCHED_IDLE")
                elif now - began > FORK_GIVES_WAY_S and now >= self._unhindered_until:
                    self._unhindered_until = now + FORKS_UNHINDERED_S
                    _hurry(fork)
            self._since[fork] = began


def _schedule(pid: int, policy: str) -> None:
    if sys.platform == "linux":
        os.sched_setscheduler(pid, getattr(os, policy), os.sched_param(0))


def _hurry(fork: int) -> None:
    try:
        _schedule(fork, "SCHED_OTHER")
    except PermissionError:
        # Only an administrator can take that back. By this signal a fork of Redis or Valkey ends without it
        # being an error; the server soon tries again.
        os.kill(fork, signal.SIGUSR1)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


async def _watch_forks(process: asyncio.subprocess.Process) -> None:
    loop, forks = asyncio.get_running_loop(), Forks(process.pid)
    while process.returncode is None:
        forks.look(loop.time())
        await asyncio.sleep(LOOK_FOR_FORKS_S)


class Child:
    """A running part. `start` may be called again after it has ended."""

    def __init__(self, spec: ChildSpec, log_path: Path, inherit: tuple[int, ...] = ()) -> None:
        self.spec = spec
        self.log_path = log_path
        self.last_line = ""
        self._inherit = inherit
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._libc = _libc()

    @property
    def pid(self) -> int | None:
        """Process id, also the id of its process group; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process and the task that writes what it prints to its log.

        Raises OSError if that is impossible.
        """
        self.last_line = ""
        self._process = await asyncio.create_subprocess_exec(
            *self.spec.command,
            env=dict(self.spec.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=None if self.spec.on_terminal else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if self.spec.on_terminal else asyncio.subprocess.STDOUT,
            process_group=0,
            pass_fds=self._inherit,
            preexec_fn=self._die_with(os.getpid()),
        )
        self._pump = asyncio.create_task(self._log(self._process), name=f"log of {self.spec.name}")
        if self.spec.forks_give_way:
            watching = _watch_forks(self._process)
            self._watch = asyncio.create_task(watching, name=f"forks of {self.spec.name}")

    def _die_with(self, supervisor: int) -> Callable[[], None]:
        """What the new process does before it becomes the part:

        ask the kernel for SIGTERM when the supervisor dies. SIGTERM and not SIGKILL: a part then ends its own
        processes, too. Only Linux has this; elsewhere the parts of a killed supervisor stay, and the lock of
        the data directory names the problem at the next start.
        """
        libc = self._libc

        def before_exec() -> None:
            if libc is None:
                return
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:  # it died before the request was made
                os._exit(1)

        return before_exec

    async def _log(self, process: asyncio.subprocess.Process) -> None:
        printed = process.stdout or process.stderr
        if printed is None:
            return
        log = BoundedLog(self.log_path)
        try:
            rest = b""
            while chunk := await printed.read(65_536):
                log.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._line(line)
                rest = rest[-65_536:]
            if rest:
                self._line(rest)
        finally:
            log.close()

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
            if await self.spec.probe():
                return
            if loop.time() > deadline:
                raise ChildEndedError(
                    self.spec.name, None, f"not ready after {self.spec.ready_within_s:.0f} s"
                )
            await asyncio.sleep(PROBE_EVERY_S)

    async def wait(self) -> int:
        """Wait for the end of the process and of its output (as far as it comes within a second).

        Its exit code.
        """
        if self._process is None:
            return 0
        code = await self._process.wait()
        if self._pump is not None:
            # A process of the part's own may still hold the pipe.
            await asyncio.wait({self._pump}, timeout=1.0)
        return code

    async def stop(self, hurry: asyncio.Event | None = None) -> int:
        """SIGTERM, then SIGKILL to its whole group after the grace, or as soon as `hurry` is set.

        Returns the exit code.
        """
        if self._process is None:
            return 0
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            ended = asyncio.ensure_future(self._process.wait())
            hurried = asyncio.ensure_future((hurry or asyncio.Event()).wait())
            await asyncio.wait(
                {ended, hurried}, timeout=self.spec.grace_s, return_when=asyncio.FIRST_COMPLETED
            )
            hurried.cancel()
        # The group, whether or not its leader is gone: what a part started must not stay behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            return await asyncio.wait_for(self.wait(), KILL_WAIT_S)
        except TimeoutError:  # in an uninterruptible wait of the kernel's: nothing more can be done
            return -signal.SIGKILL
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if self._pump is not None:
                self._pump.cancel()
