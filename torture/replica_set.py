"""A primary, its replicas and their sentinels on this machine, and what can happen to the primary.

Invariant: when the context ends no server is left, whatever happened to it in between.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redis import Redis
from redis.exceptions import RedisError

from foldin.cluster.forming import WITHIN_S, until
from foldin.store import binary
from processes.blocking import BlockingChild
from processes.errors import CannotStartError
from processes.probes import redis_reply, unused_port

Kind = Literal["redis", "valkey"]
Way = Literal["kill", "freeze", "switch"]
WAYS: tuple[Way, ...] = ("kill", "freeze", "switch")

HOST, NAME = "127.0.0.1", "foldin"
# With fewer there is no other replica that a replaced primary could go on with, and no majority without one.
DATA_NODES, SENTINELS = 3, 3
# Longer than a store may take to answer: a process that has lost its primary knows that before another is
# chosen.
DOWN_AFTER_MS = 1_500
# A failover that got nowhere is begun again after twice this time; each takes about a second.
FAILOVER_MS = 2_000


def program(kind: Kind) -> Path:
    """Return the server's program. Raises CannotStartError where it is not installed."""
    if kind == "valkey":
        return binary()
    found = shutil.which("redis-server")
    if found is None:
        raise CannotStartError("redis-server is not installed")
    return Path(found)


@dataclass(frozen=True, slots=True)
class Users:
    """The users of the data nodes: their list, which has `replica` and `sentinel` with one password, and the
    password of `admin`.
    """

    file: Path
    password: str
    admin: str

    def options(self) -> list[str]:
        """Return the options of a data node."""
        return ["--aclfile", str(self.file), "--masteruser", "replica", "--masterauth", self.password]

    def lines(self) -> str:
        """Return the lines of a sentinel's configuration."""
        return f"sentinel auth-user {NAME} sentinel\nsentinel auth-pass {NAME} {self.password}\n"


class Server:
    """One server on a port of its own; a sentinel is one, too. `admin`: password of the user `admin`."""

    def __init__(self, command: Sequence[str], folder: Path, port: int, *, admin: str | None = None) -> None:
        self.port, self.folder = port, folder
        self._command = [*command, "--port", str(port), "--bind", HOST, "--dir", str(folder)]
        self._log = folder / "server.log"
        self._child: BlockingChild | None = None
        self.client = Redis(
            host=HOST,
            port=port,
            username=None if admin is None else "admin",
            password=admin,
            socket_timeout=1.0,
            decode_responses=True,
        )

    def start(self) -> None:
        """Start; returns when it answers."""
        self._child = BlockingChild(self._command, self._log, dies_by=signal.SIGKILL)
        self._child.wait_ready(
            lambda: redis_reply((HOST, self.port)).startswith((b"+PONG", b"-NOAUTH")), WITHIN_S
        )

    @property
    def running(self) -> bool:
        """Whether it was started, and not ended here."""
        return self._child is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP and SIGCONT freeze it and let it go on."""
        assert self._child is not None
        os.kill(self._child.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        child, self._child = self._child, None
        if child is not None:
            child.end(signal.SIGKILL)
        self.client.close()


class ServerSet:
    """Servers of which one that was replaced comes back in the same way, whatever they are together."""

    def until_whole(self) -> None:
        """Return when all that run are at one. Raises TimeoutError."""
        raise NotImplementedError

    def bring_back(self, old: Server, way: Way) -> None:
        """Let a former primary come back; return when it follows the new one, so that another promotion is
        possible.
        """
        if way == "kill":
            old.start()
        elif way == "freeze":
            old.signal(signal.SIGCONT)
        self.until_whole()


class ReplicaSet(ServerSet):
    """The servers. `url`: the address for Foldin."""

    def __init__(self, kind: Kind, folder: Path, users: Users | None) -> None:
        command = str(program(kind))
        found: set[int] = set()
        while len(found) < DATA_NODES + SENTINELS:
            found.add(unused_port())
        ports, sentinel_ports = list(found)[:DATA_NODES], list(found)[DATA_NODES:]
        self.nodes: list[Server] = []
        for port in ports:
            place = folder / str(port)
            place.mkdir(parents=True)
            options = ["--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0"]
            if port != ports[0]:
                options += ["--replicaof", f"{HOST} {ports[0]}"]
            if users is not None:
                options += users.options()
            self.nodes.append(Server([command, *options], place, port, admin=users.admin if users else None))
        self.sentinels: list[Server] = []
        for port in sentinel_ports:
            place = folder / f"sentinel-{port}"
            place.mkdir()
            config = place / "sentinel.conf"
            config.write_text(
                f"sentinel monitor {NAME} {HOST} {ports[0]} {SENTINELS // 2 + 1}\n"
                f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {NAME} {FAILOVER_MS}\n" + (users.lines() if users else ""),
                "utf-8",
            )
            self.sentinels.append(Server([command, str(config), "--sentinel"], place, port))
        hosts = ",".join(f"{HOST}:{each.port}" for each in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{NAME}"

    def start(self) -> None:
        """Start all; returns when the replicas follow and the sentinels know each other."""
        for server in (*self.nodes, *self.sentinels):
            server.start()
        self.until_whole()

    def primary(self) -> Server:
        """Return the server that most sentinels take for the primary."""
        said: list[int] = []
        for sentinel in self.sentinels:
            with contextlib.suppress(RedisError):
                address: Any = sentinel.client.sentinel_get_master_addr_by_name(NAME)
                said.append(int(address[1]))
        port = max(set(said), key=said.count)
        return next(node for node in self.nodes if node.port == port)

    def replicas(self) -> list[Server]:
        """Return the others."""
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]

    def replace_primary(self, way: Way) -> Server:
        """Have a replica promoted: the primary is killed, frozen, or told by a sentinel. Return it as it was
        left (see `bring_back`) when the sentinels know the new one.
        """
        old = self.primary()
        if way == "kill":
            old.kill()
        elif way == "freeze":
            old.signal(signal.SIGSTOP)
        else:
            self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", NAME)  # type: ignore[no-untyped-call]  # redis-py
        until(lambda: self.primary() is not old, "a replica is promoted")
        return old

    def until_whole(self) -> None:
        """Return when all replicas follow the primary and all sentinels know them."""

        def whole() -> bool:
            primary = self.primary()
            for node in self.nodes:
                info = node.client.info("replication")
                role = "master" if node is primary else "slave"
                if info["role"] != role:
                    return False
                if role == "slave" and info["master_port"] != primary.port:
                    return False
                if role == "slave" and info["master_link_status"] != "up":
                    return False
            return all(self._is_calm(sentinel) for sentinel in self.sentinels)

        until(whole, "all replicas follow")

    def _is_calm(self, sentinel: Server) -> bool:
        raw = sentinel.client.execute_command("SENTINEL", "MASTER", NAME)  # type: ignore[no-untyped-call]  # redis-py
        master = raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))
        replicas: Any = sentinel.client.sentinel_slaves(NAME)
        return (
            master["flags"] in ("master", {"master"})
            and int(master["num-other-sentinels"]) == SENTINELS - 1
            and len(replicas) == DATA_NODES - 1
            and not any(each["is_sdown"] or each["is_disconnected"] for each in replicas)
        )

    def kill(self) -> None:
        """End all."""
        for server in (*self.sentinels, *self.nodes):
            server.kill()


@contextlib.contextmanager
def replica_set(kind: Kind, folder: Path, users: Users | None = None) -> Iterator[ReplicaSet]:
    """Run a replica set. Raises CannotStartError where its program is not installed."""
    servers = ReplicaSet(kind, folder, users)
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()
