"""A cluster of servers on this machine, and what operators do to one: slots move, servers come and go.

Invariant: when the context ends no server is left, whatever happened to it in between.
"""

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from foldin.cluster.forming import LOOK_S, command, form, is_whole, meet, until, view_of
from processes.probes import unused_port
from torture.replica_set import HOST, Kind, Server, ServerSet, Way, program

# After which a server that is silent counts as gone.
NODE_TIMEOUT_MS = 2_000
# A primary that is too busy to hand over is asked again.
HANDED_OVER_S = 6.0
# Keys that move in one step; each is in the way of what is asked meanwhile.
MOVED_AT_ONCE = 10


class ClusterSet(ServerSet):
    """Primaries with slots of one number each, and as many `replicas` of each. `url`: the address for
    Foldin.
    """

    def __init__(self, kind: Kind, folder: Path, primaries: int, *, replicas: int) -> None:
        self._command, self._folder = str(program(kind)), folder
        self._replaced = 0
        self.servers: list[Server] = []
        while len(self.servers) < primaries * (1 + replicas):
            self.servers.append(self._server())
        self.primaries = self.servers[:primaries]
        self.replicas = self.servers[primaries:]

    @property
    def url(self) -> str:
        """The address."""
        return "redis+cluster://" + ",".join(f"{HOST}:{server.port}" for server in self.servers)

    def _server(self) -> Server:
        taken = {each.port for each in self.servers}
        while (port := unused_port()) in taken:
            pass
        (place := self._folder / str(port)).mkdir(parents=True)
        options = [
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            # A server alone serves its slots, whatever becomes of the others.
            *("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"),
        ]
        return Server([self._command, *options], place, port)

    def start(self) -> None:
        """Start all; returns when every slot is served and every replica follows."""
        for server in self.servers:
            server.start()
        form([server.client for server in self.servers], len(self.primaries))
        self.until_whole()

    def join(self) -> Server:
        """Start another server, which has no slots yet."""
        server = self._server()
        server.start()
        self.servers.append(server)
        meet(server.client, self.servers[0].client)
        count = len(self.servers)
        until(lambda: all(len(view_of(each.client)) == count for each in self.servers), "all have met")
        self.until_whole()
        return server

    def lose(self, server: Server) -> None:
        """End a server with all that it had; an empty one is there in its place, at another address."""
        server.kill()
        shutil.rmtree(server.folder)
        empty = self._server()
        self.servers[self.servers.index(server)] = empty
        empty.start()

    def owner(self, slot: int) -> Server:
        """Return the server that has a slot."""
        (owner,) = [server for first, last, server in self._owners() if first <= slot <= last]
        return owner

    def _owners(self) -> list[tuple[int, int, Server]]:
        """Return ranges of slots with the server that has them, as one says that answers."""
        by_port = {server.port: server for server in self.servers}
        for server in [each for each in self.servers if each.running]:
            with contextlib.suppress(RedisError):
                ranges = self.command(server, "CLUSTER", "SLOTS")
                return [(first, last, by_port[primary[1]]) for first, last, primary, *_ in ranges]
        raise RedisError("no server of the cluster answers")

    def is_primary(self, server: Server) -> bool:
        """Say whether a server takes itself for a primary."""
        return bool(self.command(server, "ROLE")[0] == "master")

    def move(self, slot: int, target: Server, *, pause_s: float = 0.0) -> int:
        """Move a slot key by key, as redis-cli does, with a pause after some; return how many keys moved."""
        source = self.owner(slot)
        self.command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.name(source))
        self.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.name(target))
        moved = 0
        with Redis(host=HOST, port=source.port) as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, MOVED_AT_ONCE):
                client.execute_command("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
                moved += len(keys)
                time.sleep(pause_s)
        for server in (target, *(each for each in self.servers if each is not target)):
            if server.running and self.is_primary(server):
                self.command(server, "CLUSTER", "SETSLOT", slot, "NODE", self.name(target))
        return moved

    def primary(self) -> Server:
        """Return the primary whose turn it is to be replaced."""
        owners = [each for each in self.servers if each.running and self.is_primary(each)]
        return owners[self._replaced % len(owners)]

    def replace_primary(self, way: Way) -> Server:
        """Have the replica of a primary, each in turn, take its place: the primary is killed, frozen, or told
        to hand over. Return it as it was left (see `bring_back`) when its slots have the other one.
        """
        old = self.primary()
        self._replaced += 1
        (slot,) = [first for first, _, server in self._owners() if server is old][:1]
        if way == "kill":
            old.kill()
        elif way == "freeze":
            old.signal(signal.SIGSTOP)
        else:
            names = self.command(old, "ROLE")[2]
            ports = {int(each[1]) for each in names}
            self.hand_over(next(each for each in self.servers if each.port in ports))
        until(lambda: self.owner(slot) is not old, "a replica takes over")
        return old

    def hand_over(self, replica: Server) -> None:
        """Have a replica take the place of its primary, which goes on as a replica."""
        asked_at = float("-inf")

        def done() -> bool:
            nonlocal asked_at
            # One that found its primary too busy has given up by then.
            if not self.is_primary(replica) and time.monotonic() - asked_at > HANDED_OVER_S:
                asked_at = time.monotonic()
                self.command(replica, "CLUSTER", "FAILOVER")
            return self.is_primary(replica)

        until(done, "the replica takes over")

    def move_away(self, slot: int, *, whole: bool) -> None:
        """Move a slot to another primary."""
        source = self.owner(slot)
        target = next(each for each in self.servers if each is not source and self.is_primary(each))
        if whole:
            self.migrate(slot, target)
        else:
            self.move(slot, target, pause_s=LOOK_S / 10)

    def migrate(self, slot: int, target: Server) -> None:
        """Move a slot as a whole: Valkey 9 can."""
        source = self.owner(slot)
        name = self.name(target)
        self.command(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)
        until(lambda: self.owner(slot) is target, "the slot has moved")

    def until_whole(self) -> None:
        """Return when all that run agree, and replicas follow. Raises TimeoutError."""

        running = [server.client for server in self.servers if server.running]
        until(lambda: is_whole(running), "the cluster is whole")

    def command(self, server: Server, *words: Any) -> Any:
        """Return a server's reply to a command."""
        return command(server.client, *words)

    def kill(self) -> None:
        """End all."""
        for server in self.servers:
            server.kill()

    def name(self, server: Server) -> str:
        """Return what the cluster calls a server."""
        return str(self.command(server, "CLUSTER MYID"))


@contextlib.contextmanager
def cluster_set(kind: Kind, folder: Path, primaries: int = 3, *, replicas: int = 0) -> Iterator[ClusterSet]:
    """Run a cluster. Raises CannotStartError where its program is not installed."""
    servers = ClusterSet(kind, folder, primaries, replicas=replicas)
    try:
        servers.start()
        yield servers
    finally:
        servers.kill()


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Have a server stand still for the length of a `with`."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)
