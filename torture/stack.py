"""A whole stack under test: store, two replicas of the service, two trainers, on a disk that can fail.

The store is one server in a folder of that disk, behind proxies; or a primary with two replicas and three
sentinels, or a cluster of three primaries with a replica each, which clients reach at their own addresses.

Invariant: when the context ends, no process of the stack is left. A part that a fault has ended is started
again; one that keeps ending by itself is too, as operators see to that.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from foldin.store import EmbeddedStore
from processes import module_name
from processes.blocking import plain_environment, python_command
from processes.child import ChildSpec
from processes.probes import http_ok, unused_port
from processes.supervisor import Supervisor
from torture.cluster_set import ClusterSet
from torture.disk import Disk
from torture.proxy import Proxy
from torture.replica_set import ReplicaSet
from torture.weakened import weakened
from trainer.settings import TrainerSettings

# One has a supervisor with workers of its own, one is a process alone.
REPLICAS = {"service-a": 2, "service-b": 1}
TRAINERS = ("trainer-a", "trainer-b")
PARTS = ("store", *REPLICAS, *TRAINERS)
StoreKind = Literal["one", "replicas", "cluster"]
STORE_KINDS: tuple[StoreKind, ...] = ("one", "replicas", "cluster")
# A majority of them says that one is gone; each has some of the partitions.
CLUSTER_PRIMARIES, PARTITIONS = 3, 16
# How long a part that was killed stays away, at least: others must notice.
AWAY_S = 0.2
# All parts start at once, and compile what they need, on cores that may be busy.
READY_S = 300.0
# A process that was killed is gone within milliseconds; on busy cores it waits for its turn.
GONE_S = 10.0
# So often refits follow each other that faults meet fits, publications and merges of the archive.
SETTINGS = {"FOLDIN_REFIT_EVENTS": "3000", "FOLDIN_REFIT_SECONDS": "10", "PYTHONUNBUFFERED": "1"}
# By kind: the words of a command line, and how many of them follow the program.
_KINDS = {
    ("-m", module_name("trainer")): "trainer",
    ("-m", module_name("service")): "service",
    ("-m", module_name("trainer.fit_job.job")): "fit",
    ("-m", module_name("trainer.publication.recording")): "publication",
}


class Stack:
    """A running stack. `urls`: of its replicas; `ports` and `trainer_ports`: of these and of the trainers,
    by part; `proxies`: between the store and `service` or `trainer`; `servers`: of a store that is more than
    one, which has no proxies.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], weakness: str | None, *, kind: StoreKind
    ) -> None:
        self._environment = environment
        root = folder / "disk"
        for name in ("store", "archive"):
            (root / name).mkdir(parents=True)
        (folder / "faults").mkdir()
        self.folder = folder
        self.root = root.resolve()
        self._store = EmbeddedStore(self.root / "store", {})
        self._changes = weakened(weakness, self.root / "store" / "valkey.conf", folder)
        self.disk = Disk(self.root, folder / "faults")
        self.servers: ReplicaSet | ClusterSet | None = None
        if kind == "replicas":
            self.servers = ReplicaSet("valkey", folder / "servers", None)
        elif kind == "cluster":
            self.servers = ClusterSet("valkey", folder / "servers", CLUSTER_PRIMARIES, replicas=1)
        target = Path(self._store.url.removeprefix("unix://"))
        between = ("service", "trainer") if kind == "one" else ()
        self.proxies = {name: Proxy(target, unused_port()) for name in between}
        self.ports = {name: unused_port() for name in REPLICAS}
        self.trainer_ports = {name: unused_port() for name in TRAINERS}
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports.values()]
        self._address = {"FOLDIN_REDIS_URL": self._store.url}
        if self.servers is not None:
            self._address = {"FOLDIN_REDIS_URL": self.servers.url, "FOLDIN_DURABILITY": "replicated"}
            self._address["FOLDIN_PARTITIONS"] = str(PARTITIONS)
        self.settings = TrainerSettings.load(
            (), {**self._address, "FOLDIN_ARCHIVE_DIR": str(self.root / "archive")}
        )
        self.said: list[str] = []
        self._supervisor = Supervisor(folder / "logs", self.said.append)
        # Until when, by the monotonic clock, a part stays away.
        self._away: dict[str, float] = {}

    async def start(self) -> None:
        """Start all. Raises CannotStartError, StackFailedError."""
        (self.folder / "logs").mkdir()
        for proxy in self.proxies.values():
            await proxy.start()
        if self.servers is None:
            await self._supervisor.start(self._spec("store"))
        else:
            await asyncio.to_thread(self.servers.start)
        await self._supervisor.start(*map(self._spec, PARTS[1:]))

    async def close(self) -> None:
        """End all."""
        for pid, _ in self.processes():
            _signal(pid, signal.SIGCONT)
        await self._supervisor.close()
        for proxy in self.proxies.values():
            await proxy.close()
        if self.servers is not None:
            await asyncio.to_thread(self.servers.kill)
        self._store.clean()

    def pids(self, kind: str) -> list[int]:
        """Return the processes of a kind right now: `store`, `service`, `worker`, `trainer`, `fit`,
        `publication`.
        """
        if kind == "store":
            return [pid for name, pid in self._supervisor.running().items() if name == "store"]
        return [pid for pid, found in self.processes() if found == kind]

    def processes(self) -> list[tuple[int, str]]:
        """Return every process of the stack with its kind, but for those that the store forks."""
        found = [(pid, "store") for pid in self.pids("store")]
        mark = f"TORTURE_ROOT={self.root}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if mark not in (path / "environ").read_bytes().split(b"\0"):
                    continue
                words = (path / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                kind = _KINDS.get((words[1], words[2]) if len(words) > 2 else ("", ""))
                if kind == "service" and ("--worker" in words or "1" in words[-3:]):
                    kind = "worker"
                if kind is not None:
                    found.append((int(path.name), kind))
        return found

    def kill(self, kind: str, rng: random.Random) -> int:
        """SIGKILL one process of a kind; return its id, 0 where there is none."""
        pids = self.pids(kind)
        if not pids:
            return 0
        pid = rng.choice(pids)
        for name, each in self._supervisor.running().items():
            if each == pid:
                self._away[name] = time.monotonic() + AWAY_S
        _signal(pid, signal.SIGKILL)
        return pid

    @contextlib.contextmanager
    def away(self, *parts: str) -> Iterator[None]:
        """Keep parts that end from another start for the length of a `with`."""
        self._away |= dict.fromkeys(parts, float("inf"))
        try:
            yield
        finally:
            for part in parts:
                self._away.pop(part, None)

    async def cut_power(self, rng: random.Random) -> int:
        """End all at once, throw away what was not synced; return how many bytes. All starts again."""
        with self.away(*PARTS):
            # Stopped first: none sees another one's end.
            for how in (signal.SIGSTOP, signal.SIGKILL):
                for pid, _ in self.processes():
                    _signal(pid, how)
                for pid in self._supervisor.running().values():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, how)
            for proxy in self.proxies.values():
                proxy.cut()
            deadline = time.monotonic() + GONE_S
            while self.processes() and time.monotonic() < deadline:  # noqa: ASYNC110 -- they are not ours to await
                await asyncio.sleep(0.02)
            return await asyncio.to_thread(self.disk.cut, rng)

    def answers(self) -> bool:
        """Return whether every replica is ready. Blocks."""
        return all([http_ok("127.0.0.1", port, "/readyz") for port in self.ports.values()])

    def _obstacle(self, part: str) -> str | None:
        return "a fault" if time.monotonic() < self._away.get(part, 0.0) else None

    def _spec(self, part: str) -> ChildSpec:
        settings = {**SETTINGS, **self.disk.environment(part), **self._changes}
        obstacle = partial(self._obstacle, part)
        if part == "store":
            spec = self._store.spec
            return ChildSpec(
                part,
                spec.command,
                {**(spec.environment or {}), **self.disk.environment(part)},
                spec.probe,
                spec.ready_within_s,
                obstacle=obstacle,
                lasting=True,
            )
        kind = part.partition("-")[0]
        settings |= self._address
        if kind in self.proxies:
            settings["FOLDIN_REDIS_URL"] = self.proxies[kind].url
        if kind == "trainer":
            settings["FOLDIN_ARCHIVE_DIR"] = str(self.root / "archive")
            settings["FOLDIN_TRAINER_ADDRESS"] = f"127.0.0.1:{self.trainer_ports[part]}"
            if self.servers is None:
                settings["FOLDIN_STORE_DIR"] = str(self.root / "store")
            command, probe = python_command("trainer"), None
        else:
            settings["FOLDIN_CACHE_DIR"] = str(self.folder / "cache")
            port = ("--port", str(self.ports[part]), "--workers", str(REPLICAS[part]))
            command = python_command("service", *port)
            probe = partial(http_ok, "127.0.0.1", self.ports[part], "/livez")
        environment = plain_environment(self._environment, settings)
        return ChildSpec(
            part, tuple(command), environment, probe, READY_S, obstacle=obstacle, lasting=True, grace_s=8.0
        )


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@asynccontextmanager
async def running_stack(
    folder: Path, environment: Mapping[str, str], weakness: str | None = None, *, kind: StoreKind = "one"
) -> AsyncIterator[Stack]:
    """Run a stack in `folder`. `environment`: what its processes inherit; `kind`: of its store.

    Raises CannotStartError, StackFailedError.
    """
    stack = Stack(folder, environment, weakness, kind=kind)
    try:
        await stack.start()
        yield stack
    finally:
        await stack.close()
