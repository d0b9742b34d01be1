"""The servers that a store is on, by its address: one, perhaps with replicas, or a cluster. Invariant: what
is made here is used alike, whichever it is.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from featurestore.client import Client
from featurestore.cluster.client import ClusterClient
from featurestore.cluster.router import REDIRECTS, Router
from featurestore.cluster.slots import even_tags, slot_of
from featurestore.cluster.topology import Node, Owners, Topology
from featurestore.confirmation import Confirmation, Durability, Since, mark_of
from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.keys import Keys, tag_of
from featurestore.settings import StoreSettings
from featurestore.wire.connection import Around, Connection, Prepare, ServerConnection
from featurestore.wire.functions import call_many
from featurestore.wire.primary import Primary
from featurestore.wire.resp import encode
from featurestore.wire.socket import Astray

# Of the time in which a connection must be made.
_PREPARED = 0.5
# The slot of a mark may be moving just then: another one is taken.
_ATTEMPTS = 3


class ClusterKeys(Keys):
    """Key names of a namespace on a cluster: partitions are spread evenly over the slots; the configuration,
    the registries of items and the deltas of generations lie in the slot of the pointer.

    What a worker asks for together, again and again, is of one server: while that answers, no other one keeps
    it from serving the users whom it can serve.
    """

    def __init__(self, namespace: str, partitions: int) -> None:
        super().__init__(namespace, partitions, even_tags(partitions))
        self.config = b"{%b}:config" % self.live

    def items(self, epoch: int) -> bytes:
        """Item id -> item row."""
        return b"{%b}:%d:items" % (self.live, epoch)

    def order(self, epoch: int) -> bytes:
        """Item row -> item id."""
        return b"{%b}:%d:order" % (self.live, epoch)

    def deltas(self, epoch: int, generation: int) -> bytes:
        """Item rows folded in since the fit."""
        return b"{%b}:%d:deltas:%d" % (self.live, epoch, generation)


@dataclass(frozen=True, slots=True)
class _Begun:
    """The cluster as a call began: which server had each slot, which connections there were to each server,
    and how many calls had been sent after a slot that moves.
    """

    keys: tuple[bytes, ...]
    owners: Owners
    servers: dict[Node, Since]
    asks: int
    strays: int


class ClusterConfirmation(Confirmation):
    """Asks each server that a call wrote to, once for all calls that came before. A call whose slots
    have another server by then stays unconfirmed. One that may have followed a moving slot asks all servers.

    `key` begins that of each mark; `asking` tells where a mark is not its server's, and does not follow it.
    """

    def __init__(
        self,
        durability: Durability,
        topology: Topology,
        main: Router,
        asking: Router,
        *,
        key: bytes,
        wait_s: float,
    ) -> None:
        super().__init__(durability, topology.seed, main, asking, key=key, wait_s=wait_s)
        self._topology = topology
        self._routers = main, asking
        self._key = key
        self._wait_s = wait_s
        self._of_nodes: dict[Node, _ServerConfirmation] = {}

    def begin(self, *keys: bytes) -> Since:
        """Say before a write that it is to be confirmed. Only servers of `keys`, if any, must be there."""
        if self._durability == "store":
            return super().begin()
        nodes = list(self._topology.nodes.values())
        for node in {self._topology.node_of(key) for key in keys} or nodes:
            for router in self._routers:
                router.connection_of(node).require()
        servers = {node: self._of(node).now() for node in nodes}
        topology = self._topology
        return Since(0, 0, _Begun(keys, topology.owners, servers, topology.asks, topology.strays))

    async def wait(self, since: Since, *keys: bytes) -> None:
        """Wait for the servers of these keys and for those of `since`."""
        begun = since.begun
        if not isinstance(begun, _Begun):
            return
        if begun.keys:
            keys = begun.keys + keys
            nodes = {self._topology.node_of(key) for key in keys}
            # A slot that is moving has no such key: the answer leads to another server, and is counted there.
            probes = [encode(b"EXISTS", b"%b:{%b}" % (self._key, tag_of(key))) for key in keys]
            await asyncio.gather(call_many(self._routers[0], probes), *self._waits(nodes, begun))
            slots = [slot_of(key) for key in keys]
            if begun.asks == self._topology.asks:
                self._require_same([begun.owners[slot] is self._topology.owners[slot] for slot in slots])
                return
        await self._topology.refresh()
        self._require_same([begun.owners is self._topology.owners, begun.strays == self._topology.strays])
        await asyncio.gather(*self._waits(self._topology.nodes.values(), begun))
        self._require_same([begun.owners is self._topology.owners, begun.strays == self._topology.strays])

    def _waits(self, nodes: Iterable[Node], begun: _Begun) -> list[Coroutine[None, None, None]]:
        self._require_same([node in begun.servers for node in nodes])
        return [self._of(node).wait(begun.servers[node]) for node in nodes]

    @staticmethod
    def _require_same(same: Iterable[bool]) -> None:
        if not all(same):
            raise StoreUnavailable("slots of the cluster have moved since the write", 0.1)

    async def ask(self) -> None:
        """Return when every server has what it was given before. Raises `StoreUnavailable`."""
        await asyncio.gather(*[self._of(node).ask() for node in list(self._topology.nodes.values())])

    async def close(self) -> None:
        """Close what asks each server."""
        await asyncio.gather(*[each.close() for each in self._of_nodes.values()])
        await super().close()

    def _of(self, node: Node) -> "_ServerConfirmation":
        for gone in self._of_nodes.keys() - set(self._topology.nodes.values()):
            del self._of_nodes[gone]
        if node not in self._of_nodes:
            main, asking = (router.connection_of(node) for router in self._routers)
            marks = (b"%b:{%d}" % (self._key, number) for number in count())
            self._of_nodes[node] = _ServerConfirmation(
                self._durability, self._topology, node, main, asking, marks=marks, wait_s=self._wait_s
            )
        return self._of_nodes[node]


class _ServerConfirmation(Confirmation):
    """Confirms the writes to one server of a cluster. `marks`: keys, of which it takes one that this
    server has.
    """

    def __init__(
        self,
        durability: Durability,
        topology: Topology,
        node: Node,
        main: Connection,
        asking: Connection,
        *,
        marks: Iterator[bytes],
        wait_s: float,
    ) -> None:
        self._topology, self._node, self._marks = topology, node, marks
        self.key = next(marks)
        super().__init__(durability, node, main, asking, key=self.key, wait_s=wait_s)

    async def ask(self) -> None:
        """Ask the server. Takes another mark if the slot of this one moves or is another server's."""
        for _ in range(_ATTEMPTS):
            while self._topology.node_of(self.key) is not self._node:
                self.key = next(self._marks)
            self._mark = mark_of(self.key)
            try:
                return await super().ask()
            except StoreRefused as exc:
                if not any(code in str(exc) for code in REDIRECTS):
                    raise
                self._topology.hurry()
                self.key = next(self._marks)
        raise StoreUnavailable("slots of the cluster are moving just now", 0.1)


class Servers:
    """What connects to the servers of a store: here to one, or to the primary that sentinels name."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._primary = Primary(settings.address())

    async def find(self) -> None:
        """Find them. Raises `StoreUnavailable`, `StoreRefused`."""
        await self._primary.find()

    def client(self) -> Client:
        """Return a client of its own, for what is not hot."""
        return Client(self._primary, self._settings.timeout_s)

    def connection(
        self,
        name: str,
        *,
        load_library: Prepare,
        prepare: Prepare | None = None,
        block_s: float = 0.0,
        around: Around | None = None,
    ) -> Connection:
        """Return a connection, see `ServerConnection`; the one with `prepare` finds the servers."""
        return ServerConnection(
            *(self._primary, self._settings.timeout_s, name),
            prepare=prepare,
            load_library=load_library,
            block_s=block_s,
            around=around,
        )

    def confirmation(self, main: Connection, asking: Connection, wait_s: float) -> Confirmation:
        """Return what confirms writes over `main`."""
        settings, key = self._settings, keys_of(self._settings).synced
        return Confirmation(settings.durability, self._primary, main, asking, key=key, wait_s=wait_s)

    def following(self) -> Coroutine[None, None, None] | None:
        """Return what follows them until cancelled; None where they stay."""
        return self._primary.follow() if self._primary.followed else None

    def close(self) -> None:
        """Drop the connections that ask where they are."""
        self._primary.close()


def keys_of(settings: StoreSettings) -> Keys:
    """Return the names of a namespace's keys."""
    made = ClusterKeys if settings.is_cluster else Keys
    return made(settings.namespace, settings.partitions)


def servers_of(settings: StoreSettings) -> Servers:
    """Return what connects to them. Raises ValueError, OSError or CannotStartError where an option of the
    address does not fit.
    """
    return _Cluster(settings) if settings.is_cluster else Servers(settings)


@asynccontextmanager
async def looking(settings: StoreSettings) -> AsyncIterator[Client]:
    """Yield a client that looks at a store as it is: unlike `Store.open` nothing is created or loaded there.

    Raises StoreError, and CannotStartError or ValueError where the settings do not fit.
    """
    servers = servers_of(settings)
    client = servers.client()
    try:
        await servers.find()
        yield client
    finally:
        await client.aclose(close_connection_pool=True)
        servers.close()


class _Cluster(Servers):
    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._topology = Topology(settings.address())
        self._routers: list[Router] = []

    async def find(self) -> None:
        await self._topology.find()

    def client(self) -> Client:
        home = keys_of(self._settings).live
        return ClusterClient(self._topology, self._settings.timeout_s, home=home)

    def connection(
        self,
        name: str,
        *,
        load_library: Prepare,
        prepare: Prepare | None = None,
        block_s: float = 0.0,
        around: Around | None = None,
    ) -> Connection:
        timeout_s = self._settings.timeout_s
        careful = None if prepare is None else self._careful(prepare)

        def make(node: Node, astray: Astray | None) -> ServerConnection:
            return ServerConnection(
                *(node, timeout_s, name),
                prepare=careful,
                load_library=load_library,
                block_s=block_s,
                around=around,
                astray=astray,
            )

        # One that blocks confirms what a server has: another server's word says nothing of that.
        router = Router(
            *(self._topology, make, timeout_s, load_library),
            home=keys_of(self._settings).live,
            finds=prepare is not None,
            follows=not block_s,
        )
        self._routers.append(router)
        return router

    def _careful(self, prepare: Prepare) -> Prepare:
        done = False

        async def careful() -> None:
            nonlocal done
            try:
                # One that stands still must not use up the time that this connection has.
                async with asyncio.timeout(_PREPARED * self._settings.timeout_s if done else None):
                    await prepare()
            except (StoreUnavailable, TimeoutError):
                # Another server is away: that keeps no call from this one, once all were there.
                if not done:
                    raise
            done = True

        return careful

    def confirmation(self, main: Connection, asking: Connection, wait_s: float) -> Confirmation:
        assert isinstance(main, Router)
        assert isinstance(asking, Router)
        settings, key = self._settings, keys_of(self._settings).synced
        return ClusterConfirmation(settings.durability, self._topology, main, asking, key=key, wait_s=wait_s)

    def following(self) -> Coroutine[None, None, None] | None:
        return self._topology.follow(lambda: not all(router.whole for router in self._routers))

    def close(self) -> None:
        self._topology.close()
