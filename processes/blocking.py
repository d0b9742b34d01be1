"""A child process for callers without an event loop: benchmarks and tests.

Invariant: it does not outlive the caller, and `end` leaves nothing of its process group.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from processes import module_name
from processes.child import die_with_parent
from processes.errors import ChildEndedError

# Servers take hundreds of milliseconds to be ready: what a poll adds must not show in a measured start.
POLL_S = 0.01


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module, by its name in a checkout, with this Python."""
    return [sys.executable, "-m", module_name(module), *arguments]


def plain_environment(inherited: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without its settings of Foldin, except those given."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("FOLDIN_")}
    return {**kept, **settings}


class BlockingChild:
    """A running process; also a context manager that ends it."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path | None,
        *,
        environment: Mapping[str, str] | None = None,
        cpus: Sequence[int] = (),
        dies_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start `command`, its output appended to the file `log`, or None: shown where the caller's own is.

        `environment`: None for the caller's own. `cpus`: the cores that it may use. `dies_by`: see
        `die_with_parent`.
        """
        self._name = " ".join(command[:4])
        self.log = log
        with contextlib.ExitStack() as ends:
            output = None if log is None else ends.enter_context(log.open("ab"))
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                # As for `Child`: a group that can be killed whole, in the session of the caller.
                process_group=0,
                preexec_fn=die_with_parent(dies_by),  # noqa: PLW1509 - safe beside threads, see there
            )
        self.pid = self._process.pid
        if cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.pid, cpus)

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def text(self) -> str:
        """All that its log holds."""
        return "" if self.log is None else self.log.read_text("utf-8", "replace")

    @property
    def last_line(self) -> str:
        """The last line that its log holds: of a Python program that failed, the error itself."""
        return (self.text.strip().splitlines() or ["it said nothing"])[-1]

    def wait_ready(self, ready: Callable[[], bool], within_s: float) -> None:
        """Return when `ready()` is true. Raises ChildEndedError if the process ends or takes longer."""
        deadline = time.monotonic() + within_s
        while not ready():
            if self.code is not None:
                raise ChildEndedError(self._name, self.code, f"ended with code {self.code}: {self.last_line}")
            if time.monotonic() > deadline:
                raise ChildEndedError(self._name, None, f"not ready after {within_s:.0f} s: {self.last_line}")
            time.sleep(POLL_S)

    def wait(self, within_s: float) -> int:
        """Wait for its end; return the exit code. Raises TimeoutError."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired as exc:
            raise TimeoutError(f"{self._name} runs after {within_s:.0f} s") from exc

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self._process.send_signal(number)

    def end(self, how: signal.Signals = signal.SIGTERM, grace_s: float = 10.0) -> int:
        """End it by a signal, and its group by SIGKILL after the grace; return the exit code."""
        self.send_signal(how)
        with contextlib.suppress(TimeoutError):
            self.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()

    def __enter__(self) -> "BlockingChild":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
