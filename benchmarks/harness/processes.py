"""Real servers on free loopback ports: started, waited for, pinned to cores, and ended whatever happens.

Invariant: no process outlives the `with` block in which it was started, not even when the block raises; where
this process is killed, Linux ends what it started.
"""

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.harness.command import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent.parent
READY_S = 60.0
GRACE_S = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this checkout with this Python."""
    return [sys.executable, "-m", module, *arguments]


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: this one's without settings of Foldin, with `extra`; the checkout can be
    imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOLDIN_")}
    path = os.pathsep.join(part for part in (str(ROOT), kept.get("PYTHONPATH", "")) if part)
    return {**kept, "PYTHONPATH": path, **extra}


@contextlib.contextmanager
def process(
    command: Sequence[str],
    ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    cpus: Sequence[int] = (),
    ready_s: float = READY_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` on the cores `cpus` until the block ends. Raises `BenchmarkError` when it is not `ready`
    in time."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            env=child_environment(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # no session of its own: as in `foldin up`, where priorities are to count
            preexec_fn=_end_with_parent(),  # noqa: PLW1509 -- it calls prctl and nothing else
        )
        try:
            if cpus and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(child.pid, cpus)
            _wait(child, ready, ready_s, lambda: _last_line(log))
            yield child
        finally:
            stop(child)


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does first: ask Linux for SIGTERM when this process ends."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def run_to_end(
    command: Sequence[str], *, limit_s: float, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command that shares this terminal; its exit code. After `limit_s`, or when this process is
    interrupted, it gets SIGTERM and time to end what it has started. Raises `BenchmarkError` after
    `limit_s`."""
    child = subprocess.Popen(
        command,
        env=child_environment(environment or {}),
        preexec_fn=_end_with_parent(),  # noqa: PLW1509 -- it calls prctl and nothing else
    )
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired as exc:
        raise BenchmarkError(f"not done after {limit_s:.0f} s") from exc
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(3 * GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(
    child: subprocess.Popen[bytes], ready: Callable[[], bool], ready_s: float, last: Callable[[], str]
) -> None:
    deadline = time.monotonic() + ready_s
    name = " ".join(str(part) for part in child.args[:4]) if isinstance(child.args, list) else str(child.args)
    while not ready():
        if child.poll() is not None:
            raise BenchmarkError(f"{name} ended with code {child.returncode}: {last()}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{name} was not ready after {ready_s:.0f} s: {last()}")
        time.sleep(0.02)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the process, and what it started, with SIGTERM, then after a grace period with SIGKILL."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(GRACE_S)


def answers(port: int, path: str) -> Callable[[], bool]:
    """Whether GET `path` answers 200 there."""

    def ask() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    return ask


def pongs(port: int) -> Callable[[], bool]:
    """Whether a Redis or Valkey answers PING there."""

    def ask() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    return ask
