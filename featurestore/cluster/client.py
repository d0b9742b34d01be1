"""redis-py over all servers of a cluster. Invariant: a command goes to the server that has its key; one
without a key to the server of the pointer, or to all, as its kind wants.
"""

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any
from zlib import crc32

from redis.exceptions import AskError, MovedError, RedisError, TryAgainError

from featurestore.client import Client, StorePipeline, keys_of_command
from featurestore.cluster.router import AGAIN_S, Router
from featurestore.cluster.slots import slot_of_tag
from featurestore.cluster.topology import Node, Topology
from featurestore.errors import StoreChanged, StoreUnavailable
from featurestore.keys import tag_of
from featurestore.wire.resp import note_keys

_REDIRECTS = (AskError, MovedError, TryAgainError)
# Bits of a server's own cursor: as many keys as no server has. Before it stands which server it is of, and a
# mark that is another one when slots have moved; 63 bits in all.
_CURSOR_BITS, _MOST_SERVERS, _MARKS = 50, 2**7, 2**6 - 1
# Of several keys one after the other.
_OF_SEVERAL = frozenset({"UNLINK", "DEL"})
# Asked of every server: each writes its own files.
_OF_EACH = frozenset({"BGREWRITEAOF", "BGSAVE"})
_MOVED = "slots of the cluster have moved while its keys were listed: begin again"
# A glob that may be in a tag.
_GLOB = frozenset(b"*?[\\")
# How often streams of several servers are looked at, which no command can wait for.
_STREAMS_S = 0.02
# Answered by the server of the pointer.
_WITHOUT_KEYS = frozenset({"TIME", "INFO", "PING", "FUNCTION LIST", "FUNCTION LOAD"})

# A command with its options, as redis-py has it.
Asked = tuple[Sequence[Any], dict[str, Any]]


class ClusterClient(Client):
    """A `Client` of a cluster. `home`: a key whose server answers what has no key, as the time."""

    def __init__(self, topology: Topology, timeout_s: float, *, home: bytes) -> None:
        super().__init__(topology.seed, timeout_s)
        self._topology = topology
        self._timeout_s = timeout_s
        self._home = home
        self._clients: dict[Node, Client] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def client_of(self, node: Node) -> Client:
        """Return the client of one server."""
        for gone in self._clients.keys() - {*self._topology.nodes.values(), *self._topology.guests.values()}:
            client = self._clients.pop(gone)
            self._leaving.add(task := asyncio.create_task(client.aclose(close_connection_pool=True)))
            task.add_done_callback(self._leaving.discard)
        if node not in self._clients:
            main = self.main.connection_of(node) if isinstance(self.main, Router) else None
            self._clients[node] = Client(node, self._timeout_s, main)
        return self._clients[node]

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> StorePipeline:
        """Commands for one round trip to each server that has a key of any of them."""
        return _ClusterPipeline(self, transaction, shard_hint)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute one command."""
        name = _name(args)
        if name == "SCAN":
            return await self._scan(args, options)
        if name in _OF_EACH:
            return (await self.each(args))[0][0]
        if name in _OF_SEVERAL and len(args) > 2:
            pipe = self.pipeline()
            pipe.execute_command(*args, **options)
            return (await pipe.execute())[0]
        if name in {"XREAD", "XREADGROUP"} and len(keys_of_command(args)) > 1:
            return await self._read_streams(args, options)
        (reply,) = await self.run([(args, options)])
        if isinstance(reply, RedisError):
            note_keys(reply, keys_of_command(args))
            raise self.failure(reply)
        return reply

    async def check(self) -> None:
        """That of each server is asked for by itself."""

    async def each(self, *commands: Sequence[Any]) -> list[list[Any]]:
        """Return the replies of each server to these commands. Raises `StoreUnavailable` where one is
        away.
        """
        clients = [self.client_of(node) for node in self._topology.nodes.values()]
        return [each[0] for each in await asyncio.gather(*[client.each(*commands) for client in clients])]

    async def told_by_each(self, *commands: Sequence[str]) -> list[tuple[str, int, list[Any] | None]]:
        """As there; of each server with slots."""
        held = list(self._topology.held().items())
        asked = [self.client_of(node).each(*commands) for node, _ in held]
        told = await asyncio.gather(*asked, return_exceptions=True)
        found = list[tuple[str, int, list[Any] | None]]()
        for (node, slots), replies in zip(held, told, strict=True):
            if isinstance(replies, BaseException) and not isinstance(replies, StoreUnavailable):
                raise replies
            answered = None if isinstance(replies, BaseException) else replies[0]
            found.append((node.shown, slots, answered))
        return found

    async def load_library(self) -> None:
        """Give each server this version's functions, unless it has them. Raises `StoreUnavailable` where all
        are away.
        """
        nodes = self._topology.nodes.values(), self._topology.guests.values()
        loads = [self._load_library(node) for node in chain(*nodes)]
        failed = await asyncio.gather(*loads, return_exceptions=True)
        for each in failed:
            if each is not None and (None not in failed or not isinstance(each, StoreUnavailable)):
                raise each

    async def _load_library(self, node: Node) -> None:
        await self._ready(node)
        await self.client_of(node).load_library()

    async def _ready(self, node: Node) -> None:
        if isinstance(self.main, Router):
            await self.main.ready(node)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all sockets."""
        await asyncio.gather(*[each.aclose(close_connection_pool=True) for each in self._clients.values()])
        await super().aclose(close_connection_pool=close_connection_pool)

    async def run(self, commands: Sequence[Asked]) -> list[Any]:
        """Return the reply to each command, errors of redis-py as values. Raises `StoreUnavailable`."""
        replies: list[Any] = [None] * len(commands)
        left, loop = list(range(len(commands))), asyncio.get_running_loop()
        until, (pause_s, longest_s) = loop.time() + self._timeout_s, AGAIN_S
        while True:
            parts: dict[Node, list[int]] = {}
            for position in left:
                parts.setdefault(self._node_of(commands[position][0], replies[position]), []).append(position)
            answers = await asyncio.gather(
                *[self._ask(node, commands, replies, some) for node, some in parts.items()],
                return_exceptions=True,
            )
            for answer in answers:
                # All have ended before an error is told: nothing is done after that.
                if isinstance(answer, BaseException):
                    self._topology.hurry()
                    raise answer
            left = [position for position in left if isinstance(replies[position], _REDIRECTS)]
            if not left or loop.time() > until:
                break
            if any(type(replies[position]) is MovedError for position in left):
                await self._topology.refresh()
            if any(not isinstance(replies[position], AskError) for position in left):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
        if left:
            raise StoreUnavailable("slots of the cluster are moving just now", longest_s)
        return replies

    def _node_of(self, args: Sequence[Any], reply: Any) -> Node:
        # redis-py has MOVED as a kind of ASK.
        if type(reply) is AskError:
            return self._topology.at((reply.host, reply.port))
        return self._topology.node_of(key_of_command(args) or self._home)

    async def _ask(
        self, node: Node, commands: Sequence[Asked], replies: list[Any], some: Sequence[int]
    ) -> None:
        await self._ready(node)
        pipe, places = self.client_of(node).pipeline(), list[int]()
        for position in some:
            if type(replies[position]) is AskError:
                pipe.execute_command("ASKING")
                places.append(-1)
            args, options = commands[position]
            pipe.execute_command(*args, **options)
            places.append(position)
        for position, reply in zip(places, await pipe.execute(raise_on_error=False), strict=True):
            if position >= 0:
                replies[position] = reply

    async def _scan(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """SCAN over all servers, one after the other, or over the one that has all keys of a tag. What is
        there all along is found, or it raises: `StoreChanged` where keys have moved, `StoreUnavailable` while
        they do.
        """
        name, cursor, *rest = args
        pattern = _bytes(rest[rest.index(b"MATCH") + 1]) if b"MATCH" in rest else b""
        tag, slot = tag_of(pattern), None
        nodes = [node for _, node in sorted(self._topology.nodes.items())]
        mark = self._topology.changes
        if tag != pattern and _GLOB.isdisjoint(tag):
            slot, nodes = slot_of_tag(tag), [self._topology.node_of(pattern)]
            mark = crc32(nodes[0].shown.encode())
        mark = 1 + mark % _MARKS
        place, inner = divmod(int(cursor), 1 << _CURSOR_BITS)
        before, number = divmod(place, _MOST_SERVERS)
        if number >= len(nodes) or before not in ({0} if not int(cursor) else {mark}):
            raise StoreChanged(_MOVED)
        if not int(cursor):
            await self._require_still(nodes, slot)
        after, found = await self.client_of(nodes[number]).execute_command(name, inner, *rest, **options)
        if not after:
            number += 1
        if number == len(nodes):
            await self._require_still(nodes, slot)
            changes = self._topology.changes
            await self._topology.refresh(anew=True)
            if self._topology.changes != changes:
                raise StoreChanged(_MOVED)
            return 0, found
        return (mark * _MOST_SERVERS + number) << _CURSOR_BITS | int(after), found

    async def _require_still(self, nodes: Sequence[Node], slot: int | None) -> None:
        """Raise `StoreUnavailable` where keys of a slot, None for any, are on their way from one of these
        servers to another.
        """
        for node in nodes:
            told: dict[str, Any] = await self.client_of(node).execute_command("CLUSTER NODES")
            (own,) = [each for each in told.values() if "myself" in each["flags"]]
            if any(slot is None or int(each["slot"]) == slot for each in own["migrations"]):
                raise StoreUnavailable("a slot of the cluster is moving just now", AGAIN_S[1])

    async def _read_streams(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Read streams of several slots; wait for any, where that is asked for, by looking again."""
        words = [each.decode() if isinstance(each, bytes) else each for each in args]
        at = words.index("STREAMS")
        head, block_ms = list(args[:at]), 0
        if "BLOCK" in words[:at]:
            block = words.index("BLOCK")
            block_ms = int(head[block + 1])
            del head[block : block + 2]
        size = (len(args) - at - 1) // 2
        names, places = args[at + 1 : at + 1 + size], args[at + 1 + size :]
        commands = [
            ((*head, "STREAMS", name, place), options) for name, place in zip(names, places, strict=True)
        ]
        loop = asyncio.get_running_loop()
        until = loop.time() + block_ms / 1000
        while True:
            replies = await self.run(commands)
            self.raise_first(replies, [[name] for name in names])
            if (found := [each for reply in replies for each in reply or ()]) or loop.time() >= until:
                return found
            await asyncio.sleep(min(_STREAMS_S, max(0.0, until - loop.time())))


class _ClusterPipeline(StorePipeline):
    """A pipeline of a `ClusterClient`."""

    _client: ClusterClient

    async def replies(self) -> list[Any]:
        """As there; a removal of several keys is one of each."""
        commands, sizes = list[Asked](), list[int]()
        for args, options in self.command_stack:
            some: list[Sequence[Any]] = [args]
            if _name(args) in _OF_SEVERAL:
                some = [(args[0], key) for key in args[1:]]
            commands += [(each, dict(options)) for each in some]
            sizes.append(len(some))
        self.command_stack = []
        found = iter(await self._client.run(commands))
        return [_together([next(found) for _ in range(size)]) for size in sizes]


def _together(replies: list[Any]) -> Any:
    if len(replies) == 1:
        return replies[0]
    return next((each for each in replies if isinstance(each, RedisError)), None) or sum(replies)


def _name(args: Sequence[Any]) -> str:
    name = args[0]
    return (name.decode() if isinstance(name, bytes) else name).upper()


def key_of_command(args: Sequence[Any]) -> bytes:
    """Return the first key of a command; b"" of one without."""
    name = _name(args)
    if name in _WITHOUT_KEYS:
        return b""
    if name in {"FCALL", "FCALL_RO"}:
        return _bytes(args[3])
    return _bytes(keys_of_command(args)[0])


def _bytes(key: Any) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()
