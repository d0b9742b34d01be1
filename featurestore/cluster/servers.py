"""The servers that a store is on, by its address: one, perhaps with replicas, or a cluster. Invariant: what
is made here is used alike, whichever it is.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from featurestore.client import Client
from featurestore.cluster.client import ClusterClient
from featurestore.cluster.confirmation import ClusterConfirmation
from featurestore.cluster.keys import ClusterKeys
from featurestore.cluster.router import Router
from featurestore.cluster.topology import Node, Topology
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreUnavailable
from featurestore.keys import Keys
from featurestore.settings import StoreSettings
from featurestore.wire.connection import Around, Connection, Prepare, ServerConnection
from featurestore.wire.primary import Primary
from featurestore.wire.socket import Astray

# Of the time in which a connection must be made.
_PREPARED = 0.5


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
            finds=prepare is not None,
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
                finds=False,
                block_s=block_s,
                around=around,
                astray=astray,
            )

        # One that blocks confirms what a server has: another server's word says nothing of that.
        router = Router(
            *(self._topology, make, timeout_s, load_library),
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
