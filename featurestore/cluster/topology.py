"""Which server of a cluster has which slot. Invariant: of what several servers say, the newest counts of
those that see most of the cluster.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurestore.cluster.slots import SLOTS, slot_of, slot_of_tag
from featurestore.errors import StoreError, StoreRefused, StoreUnavailable
from featurestore.keys import tag_of
from featurestore.settings import host_and_port, redacted, split_address
from featurestore.wire.primary import Address, Primary, shown
from featurestore.wire.resp import ReplyError, encode, store_error
from featurestore.wire.socket import StoreSocket

log = logging.getLogger(__name__)

# Where an address names none.
PORT = 6379
# How often the servers are asked whether slots have moved: always, and while one of them is away.
LOOK_S, LOOK_AWAY_S = 2.0, 0.1
# A server answers within a millisecond; one that is stopped must not keep the others' answer back.
ANSWER_S = 0.5
# Of one look, those that wait for it share it; a slot that moves twice within this is found by the next call.
_FRESH_S = 0.05
# A server that gets its first slots has one by then, or gets none.
_GUEST_S = 60.0
# A cache of tags is emptied beyond: those of partitions are few, those of the chunks of generations go.
_MOST_TAGS = 50_000
_ASK = encode(b"CLUSTER", b"INFO") + encode(b"CLUSTER", b"SLOTS")


Owners = Sequence["Node | None"]
"""The server of each slot; None where it has none."""


class Node(Primary):
    """One server of a cluster, as connections take it. `options`: as of a `Primary`."""

    def __init__(self, topology: "Topology", address: Address) -> None:
        host, port = address
        super().__init__(f"redis://{'[' + host + ']' if ':' in host else host}:{port}")
        self.shown = shown(*address)
        self.options = {**topology.options, "host": host, "port": port}
        self.address = address
        self.made_at = asyncio.get_running_loop().time()
        self._topology = topology
        self._socket: StoreSocket | None = None

    async def is_sure(self) -> bool:
        """Whether most servers answer, believe the cluster whole, and that this one has slots."""
        await self._topology.refresh(anew=True)
        return self._topology.whole and self.address in self._topology.nodes

    async def said(self) -> "Said":
        """Return what the server says of the cluster. Raises StoreError, TimeoutError, OSError."""
        async with asyncio.timeout(ANSWER_S):
            if self._socket is None or self._socket.why is not None:
                self._socket = await self.dial(*self.address)
            info, slots = await self._socket.execute(_ASK, 2)
        for reply in (info, slots):
            if isinstance(reply, ReplyError):
                if "cluster support disabled" in str(reply):
                    raise StoreRefused(
                        f"the server at {self.shown} is in no cluster: use redis://{self.shown}"
                    )
                raise store_error(reply)
        return Said.read(info, slots, self.address)

    def close(self) -> None:
        """Drop the connection that asks."""
        super().close()
        if self._socket is not None:
            self._socket.give_up(StoreUnavailable("this process has closed its connection to the cluster"))


@dataclass(frozen=True, slots=True)
class Said:
    """What the server `by` says: `owners`: ranges of slots, first and last, with the address of their
    primary.
    """

    by: Address
    whole: bool
    epoch: int
    owners: Sequence[tuple[int, int, Address]]

    @classmethod
    def read(cls, info: bytes, slots: Sequence[Any], by: Address) -> "Said":
        """Read the replies to CLUSTER INFO and CLUSTER SLOTS of the server `by`."""
        fields = dict(line.split(b":", 1) for line in info.split(b"\r\n") if b":" in line)
        owners = []
        for first, last, (at, port, *_), *_ in slots:
            # A server that does not know its own address leaves it out.
            owners.append((first, last, ((at or b"").decode() or by[0], int(port))))
        epoch = int(fields.get(b"cluster_current_epoch", 0))
        return cls(by, fields.get(b"cluster_state") == b"ok", epoch, owners)

    @property
    def covered(self) -> int:
        """How many slots have a primary."""
        return sum(last + 1 - first for first, last, _ in self.owners)


class Topology:
    """The primaries of a cluster. `nodes`: those that have slots, by address; `changes` counts how often that
    changed; `owners`: the server of each slot, a new list with each change; `whole`: whether all slots are
    served, as far as was said; `guests`: servers that were named by another one and have no slots yet;
    `asks`: how often a server was named by another one, `strays`: how often that one had no slots.
    """

    def __init__(self, url: str) -> None:
        self.shown = redacted(url)
        parts = split_address(url)
        plain = replace(
            parts,
            scheme=parts.scheme.removesuffix("+cluster"),
            hosts=parts.hosts[:1],
        )
        self.options = Primary(str(plain)).options
        self._seeds = {
            address: Node(self, address) for address in (host_and_port(host, PORT) for host in parts.hosts)
        }
        self.nodes: dict[Address, Node] = {}
        self.guests: dict[Address, Node] = {}
        self.whole = False
        self._epoch = -1
        self.changes = self.asks = self.strays = 0
        self.owners: Owners = [None] * SLOTS
        self._by_tag: dict[bytes, Node] = {}
        self._changed: list[Callable[[], None]] = []
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._hurry = asyncio.Event()

    @property
    def seed(self) -> Node:
        """One of the servers of the address."""
        return next(iter(self._seeds.values()))

    def on_change(self, changed: Callable[[], None]) -> None:
        """Have `changed` called when another server has slots, or none."""
        self._changed.append(changed)

    def node_of(self, key: bytes) -> Node:
        """Return the server that has a key. Raises `StoreUnavailable` where none has."""
        tag = tag_of(key)
        node = self._by_tag.get(tag)
        if node is None:
            node = self.owners[slot_of_tag(tag)]
            if node is None:
                raise StoreUnavailable(f"no server of the cluster has slot {slot_of(key)}", LOOK_AWAY_S)
            if len(self._by_tag) >= _MOST_TAGS:
                self._by_tag.clear()
            self._by_tag[tag] = node
        return node

    def held(self) -> Mapping[Node, int]:
        """Return how many slots each server has."""
        return Counter(node for node in self.owners if node is not None)

    def at(self, address: Address) -> Node:
        """Return the server at an address; one without slots is about to have the first."""
        self.asks += 1
        self.strays += address not in self.nodes
        node = self.nodes.get(address) or self.guests.get(address)
        if node is None:
            node = self.guests[address] = Node(self, address)
            self.hurry()
        return node

    async def find(self) -> None:
        """Look for the servers. Raises `StoreUnavailable` where none answers, `StoreRefused` where a person
        must do something first.
        """
        await self.refresh()
        missing = [slot for slot, node in enumerate(self.owners) if node is None]
        if missing:
            raise StoreRefused(
                f"{len(missing):,} slots of the cluster at {self.shown} have no server (the first is "
                f"{missing[0]}): give them one, for instance by redis-cli --cluster fix"
            )

    async def refresh(self, *, anew: bool = False) -> None:
        """Look again, unless that was done just now; `anew`: in any case, from now on. Raises
        `StoreUnavailable`, `StoreRefused`.
        """
        loop = asyncio.get_running_loop()
        if anew and self._looking is not None:
            await asyncio.wait({self._looking})
        if not anew and loop.time() - self._looked_at < _FRESH_S:
            return
        if self._looking is None or self._looking.done():
            self._looking = loop.create_task(self._look(), name="look at the cluster")
        await asyncio.shield(self._looking)

    def hurry(self) -> None:
        """Look soon: something was not where it was believed."""
        self._hurry.set()

    async def follow(self, away: Callable[[], bool]) -> None:
        """Look for changes until cancelled; more often while `away` says that a server is."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AWAY_S):
                    await self._hurry.wait()
            if not (self._hurry.is_set() or away() or loop.time() - self._looked_at > LOOK_S):
                continue
            self._hurry.clear()
            try:
                await self.refresh()
            except StoreError as exc:
                log.warning("the cluster does not say where its slots are", extra={"why": str(exc)})
            await asyncio.sleep(_FRESH_S)

    def close(self) -> None:
        """Drop the connections that ask."""
        if self._looking is not None:
            self._looking.cancel()
        for node in (*self._seeds.values(), *self.nodes.values(), *self.guests.values()):
            node.close()

    async def _look(self) -> None:
        asked = list({**self._seeds, **self.guests, **self.nodes}.values())
        answers = await asyncio.gather(*[node.said() for node in asked], return_exceptions=True)
        said = [answer for answer in answers if isinstance(answer, Said)]
        if not said:
            for answer in answers:
                if isinstance(answer, StoreRefused):
                    raise answer
                if isinstance(answer, BaseException) and not isinstance(answer, StoreError | OSError):
                    raise answer
            raise StoreUnavailable(f"no server of the cluster at {self.shown} answers ({answers[0]})")
        newest = max(said, key=lambda each: (each.whole, each.epoch, each.covered))
        most = 2 * len({each.by for each in said} & self.nodes.keys()) > len(self.nodes)
        if newest.epoch < self._epoch and not most:
            raise StoreUnavailable("only a server of the cluster answers that was cut off from the others")
        self._epoch, self.whole = newest.epoch, newest.whole and (most or not self.nodes)
        # A server may know the newest epoch before it knows whose the slots are; of its own each knows it.
        own = [
            (first, last, address)
            for each in said
            if each.epoch == newest.epoch
            for first, last, address in each.owners
            if address == each.by
        ]
        self._take([*newest.owners, *own])
        self._looked_at = asyncio.get_running_loop().time()

    def _take(self, owned: Sequence[tuple[int, int, Address]]) -> None:
        addresses: list[Address | None] = [None] * SLOTS
        for first, last, address in owned:
            addresses[first : last + 1] = [address] * (last + 1 - first)
        nodes = {
            address: self.nodes.get(address) or self.guests.pop(address, None) or Node(self, address)
            for address in dict.fromkeys(addresses)
            if address is not None
        }
        owners = [None if address is None else nodes[address] for address in addresses]
        now = asyncio.get_running_loop().time()
        late = [address for address, guest in self.guests.items() if now - guest.made_at > _GUEST_S]
        if owners == self.owners and not late:
            return
        for address in late:
            self.guests.pop(address).close()
        gone = [node for address, node in self.nodes.items() if address not in nodes]
        self.nodes, self.owners = nodes, owners
        self._by_tag.clear()
        self.changes += 1
        for node in gone:
            node.close()
        log.info("the cluster has %d servers with slots", len(nodes), extra={"changes": self.changes})
        for changed in self._changed:
            changed()
