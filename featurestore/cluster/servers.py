"""The servers that a store is on, by its address: one, perhaps with replicas, or a cluster. Invariant: what
is made here is used alike, whichever it is.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from itertools import count

from featurestore.client import Client
from featurestore.cluster.client import ClusterClient
from featurestore.cluster.router import REDIRECTS, Router
from featurestore.cluster.slots import even_tags
from featurestore.cluster.topology import Node, Topology
from featurestore.confirmation import Confirmation, Durability, Since
from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.keys import Keys
from featurestore.settings import StoreSettings
from featurestore.wire.connection import Around, Connection, Prepare, ServerConnection
from featurestore.wire.primary import Primary
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


class ClusterConfirmation(Confirmation):
    """One question to each server for all calls that came before; slots that moved since a write leave it
    unconfirmed. `key` begins that of each server's mark; `asking` tells where a mark is not its server's, and
    does not follow it.
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
        # By server; of which slots, by the count of changes.
        self._of_nodes: dict[Node, tuple[int, Confirmation]] = {}
        self._first = 0

    def begin(self) -> Since:
        """As there; of every server, for the call may write to any."""
        if self._durability != "store":
            self._require_all()
        return super().begin()

    async def ask(self) -> None:
        """Return when every server has what it was given before. Raises `StoreUnavailable`."""
        await self._topology.refresh()
        nodes = list(self._topology.nodes.values())
        for gone in self._of_nodes.keys() - set(nodes):
            del self._of_nodes[gone]
        await asyncio.gather(*[self._ask_one(node) for node in nodes])
        self._require_all()

    def _require_all(self) -> None:
        for node in self._topology.nodes.values():
            for router in self._routers:
                router.connection_of(node).require()

    async def _ask_one(self, node: Node) -> None:
        for _ in range(_ATTEMPTS):
            try:
                return await self._of(node).ask()
            except StoreRefused as exc:
                if not any(code in str(exc) for code in REDIRECTS):
                    raise
                self._first += 1
                del self._of_nodes[node]
        raise StoreUnavailable("slots of the cluster are moving just now", 0.1)

    def _of(self, node: Node) -> Confirmation:
        changes, made = self._of_nodes.get(node, (-1, None))
        if made is None or changes != self._topology.changes:
            main, asking = (router.connection_of(node) for router in self._routers)
            made = Confirmation(
                self._durability, node, main, asking, key=self._key_on(node), wait_s=self._wait_s
            )
            self._of_nodes[node] = self._topology.changes, made
        return made

    def _key_on(self, node: Node) -> bytes:
        """Return a key of a slot of this server."""
        keys = (b"%b:{%d}" % (self._key, number) for number in count(self._first))
        return next(key for key in keys if self._topology.node_of(key) is node)


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
