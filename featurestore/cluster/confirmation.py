"""Waiting until every server of a cluster has a write where `durability` wants it. Invariant: as of
`Confirmation`; slots that moved since a write leave it unconfirmed.
"""

import asyncio
from itertools import count

from featurestore.cluster.router import REDIRECTS, Router
from featurestore.cluster.topology import Node, Topology
from featurestore.confirmation import Confirmation, Durability, Since
from featurestore.errors import StoreRefused, StoreUnavailable

# The slot of a mark may be moving just then: another one is taken.
_ATTEMPTS = 3


class ClusterConfirmation(Confirmation):
    """One question to each server for all calls that came before. `key` begins that of each server's mark;
    `asking` tells where a mark is not its server's, and does not follow it.
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
