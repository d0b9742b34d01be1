"""The hot connections to all servers of a cluster, used as one. Invariant: a call is carried out once, by the
server that has its key, wherever that moves meanwhile; replies come in the order of the calls.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from featurestore.cluster.slots import split_commands
from featurestore.cluster.topology import Node, Topology
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.wire.connection import BACKOFF_S, Connection, Prepare
from featurestore.wire.primary import Address
from featurestore.wire.resp import (
    ELSEWHERE,
    RepliesReader,
    ReplyError,
    encode,
    error_code,
    keys_of,
    store_error,
)
from featurestore.wire.socket import Astray

log = logging.getLogger(__name__)

# What a server says of a key that it does not have, or not yet; nothing was done.
REDIRECTS = frozenset({"MOVED", "ASK", "TRYAGAIN"})
# Of a call: up to the end of its key's tag, with the name of a function before it; and so many of them.
PREFIX_BYTES, MOST_PREFIXES = 192, 50_000
# A slot that moves key by key is asked for again after so long: a key moves within a millisecond.
AGAIN_S = (0.005, 0.1)
_ASKING = encode(b"ASKING")


def redirected(reply: object) -> bool:
    """Whether a reply says that the call is to be made elsewhere, or again."""
    return isinstance(reply, ReplyError) and error_code(reply) in REDIRECTS


def asked_at(reply: Exception) -> Address:
    """Return the address in an ASK."""
    host, _, port = str(reply).split()[-1].rpartition(":")
    return host, int(port)


class Router:
    """The same as a `Connection`, over one for each server. `make` makes one, which has `astray` look at its
    answers where this one `follows` slots; `load_library`: see there; `home`: a key whose server answers what
    has no key, as the time; `finds`: it looks for the servers.
    """

    def __init__(
        self,
        topology: Topology,
        make: Callable[[Node, Astray | None], Connection],
        timeout_s: float,
        load_library: Prepare,
        *,
        home: bytes,
        finds: bool = False,
        follows: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._topology = topology
        self._make, self._looks = make, self.astray if follows else None
        self._timeout_s = timeout_s
        self._home = home
        self._finds = finds
        self.load_library = load_library
        self._connections: dict[Node, Connection] = {}
        # Those whose connection is open, or about to be: none before `open`.
        self._opened: set[Node] | None = None
        self._opening: dict[Node, asyncio.Task[None]] = {}
        # By what stands before the tag's end in a call.
        self._by_prefix: dict[bytes, Connection] = {}
        self._again_already: set[asyncio.Future[list[Any]]] = set()
        self._gone = 0
        self._tasks: set[asyncio.Task[None]] = set()
        topology.on_change(self._follow)

    @property
    def connected(self) -> bool:
        """Whether calls to any server are taken now."""
        return any(each.connected for each in self._connections.values())

    @property
    def whole(self) -> bool:
        """Whether calls to every server are taken now."""
        nodes = self._topology.nodes.values()
        return self._opened is None or all(self.connection_of(node).connected for node in nodes)

    @property
    def reconnects_total(self) -> int:
        """Sockets after the first of each server, and how often slots have moved."""
        return (
            self._topology.changes
            + self._gone
            + self._topology.strays
            + sum(each.reconnects_total for each in self._connections.values())
        )

    def require(self) -> None:
        """Raise `StoreUnavailable` while the whole store is away."""
        if not self.connected:
            raise StoreUnavailable(
                f"no server of the cluster at {self._topology.shown} answers", BACKOFF_S[1]
            )

    def connection_of(self, node: Node) -> Connection:
        """Return the connection to a server; one that is not open yet fails each call."""
        connection = self._connections.get(node)
        if connection is None:
            connection = self._connections[node] = self._make(node, self._looks)
        return connection

    async def open(self) -> None:
        """Connect to all. Raises `StoreUnavailable`, `StoreRefused`."""
        if self._finds:
            await self._topology.find()
        self._opened = set()
        for node in list(self._topology.nodes.values()):
            if node not in self._opened:
                self._opened.add(node)
                await self.connection_of(node).open()

    async def close(self) -> None:
        """Drop all sockets; calls in flight fail."""
        self._opened = None
        tasks = [*self._opening.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections.values():
            await connection.close()

    def failure(self, reply: Exception) -> StoreError:
        """Return what an error reply means."""
        if error_code(reply) in ELSEWHERE:
            self._topology.hurry()
        return store_error(reply)

    def execute(
        self, payload: bytes, replies: int, *, at_once: bool = False, reader: RepliesReader | None = None
    ) -> "asyncio.Future[list[Any]]":
        """As `StoreSocket.execute`; a reader takes replies only where all are of one server."""
        if replies == 1:
            connection = self._by_prefix.get(payload[: payload.find(b"}", 0, PREFIX_BYTES)])
            if connection is not None:
                return connection.execute(payload, 1, at_once=at_once, reader=reader)
        return self._send(split_commands(payload, replies), at_once=at_once, reader=reader)

    def execute_calls(self, calls: Sequence[bytes], *, at_once: bool = False) -> "asyncio.Future[list[Any]]":
        """The same for commands that are not joined."""
        return self._send(calls, at_once=at_once)

    def apart(self, keys: Sequence[bytes]) -> list[list[int]]:
        """Return which of these keys are of one server, by their places."""
        parts: dict[Node, list[int]] = {}
        for place, key in enumerate(keys):
            parts.setdefault(self._topology.node_of(key), []).append(place)
        return list(parts.values())

    def _send(
        self, calls: Sequence[bytes], *, at_once: bool, reader: RepliesReader | None = None
    ) -> "asyncio.Future[list[Any]]":
        parts: dict[Connection, list[int]] = {}
        known, find = self._by_prefix, bytes.find
        try:
            for position, call in enumerate(calls):
                connection = known.get(call[: find(call, b"}", 0, PREFIX_BYTES)]) or self._connection_for(
                    call
                )
                try:
                    parts[connection].append(position)
                except KeyError:
                    parts[connection] = [position]
        except StoreUnavailable as exc:
            future: asyncio.Future[list[Any]] = self._loop.create_future()
            future.set_exception(exc)
            return future
        if self._opening and any(self._connections.get(node) in parts for node in self._opening):
            # It has become the server of these slots just now.
            future = self._loop.create_future()
            self._again(future, calls, [ReplyError("TRYAGAIN the server is not connected yet")] * len(calls))
            return future
        if len(parts) == 1:
            (connection,) = parts
            return connection.execute(b"".join(calls), len(calls), at_once=at_once, reader=reader)
        answers = _Answers(self._loop.create_future(), len(calls), len(parts))
        for connection, positions in parts.items():
            some = [calls[position] for position in positions]
            connection.execute(b"".join(some), len(some), at_once=at_once).add_done_callback(
                partial(answers.take, positions)
            )
        if not parts:
            answers.future.set_result([])
        return answers.future

    def _connection_for(self, call: bytes) -> Connection:
        """Return the connection to the server that has the key of a call. Raises `StoreUnavailable`."""
        node = self._node_of(call)
        connection = self.connection_of(node)
        # What ends before a brace that closes a tag, or the value of a key without one, names the slot: a
        # namespace, with which every key begins, has no braces.
        end = call.find(b"}", 0, PREFIX_BYTES)
        if end > 0 and node not in self._opening:
            if len(self._by_prefix) >= MOST_PREFIXES:
                self._by_prefix.clear()
            self._by_prefix[call[:end]] = connection
        return connection

    def _node_of(self, call: bytes) -> Node:
        """Return the server that answers a call. Raises `StoreUnavailable`."""
        return self._topology.node_of((keys_of(call) or [self._home])[0])

    def astray(self, future: "asyncio.Future[list[Any]]", payload: bytes, replies: list[Any]) -> bool:
        """Make calls again that were sent to the wrong server; return whether there are any."""
        for reply in replies:
            if type(reply) is ReplyError and redirected(reply) and future not in self._again_already:
                self._again(future, split_commands(payload, len(replies)), replies)
                return True
        return False

    def _again(self, future: "asyncio.Future[list[Any]]", calls: Sequence[bytes], replies: list[Any]) -> None:
        """Make the calls again that were sent elsewhere, then tell all replies."""
        self._do(self._follow_slots(future, calls, replies), "follow a slot")

    async def _follow_slots(
        self, future: "asyncio.Future[list[Any]]", calls: Sequence[bytes], replies: list[Any]
    ) -> None:
        loop = self._loop
        until, (pause_s, longest_s) = loop.time() + self._timeout_s, AGAIN_S
        try:
            left = [position for position, reply in enumerate(replies) if redirected(reply)]
            while left and loop.time() < until:
                if any(error_code(replies[position]) == "MOVED" for position in left):
                    await self._topology.refresh()
                found = await asyncio.gather(*[self._once(calls[each], replies[each]) for each in left])
                for position, reply in zip(left, found, strict=True):
                    replies[position] = reply
                left = [position for position in left if redirected(replies[position])]
                if left:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
            if left:
                raise StoreUnavailable("slots of the cluster are moving just now", longest_s)
        except asyncio.CancelledError:
            if not future.done():
                future.set_exception(StoreUnavailable("this process has closed its connection to the store"))
            raise
        except Exception as exc:  # noqa: BLE001 - the one who waits is told
            if not future.done():
                future.set_exception(exc)
        else:
            if not future.done():
                future.set_result(replies)

    async def _once(self, call: bytes, reply: Exception) -> Any:
        """Make one call again, where its last reply says."""
        ask = error_code(reply) == "ASK"
        node = self._topology.at(asked_at(reply)) if ask else self._node_of(call)
        await self.ready(node)
        connection = self.connection_of(node)
        # One write: nothing comes between the two. The answer is looked at by the caller.
        future = connection.execute(_ASKING + call if ask else call, 1 + ask)
        self._again_already.add(future)
        try:
            return (await future)[-1]
        finally:
            self._again_already.discard(future)

    async def ready(self, node: Node) -> None:
        """Wait for a server that has its first slots just now, until it is connected; no longer than a call
        may take.
        """
        self._open_soon(node)
        if (opening := self._opening.get(node)) is not None:
            await asyncio.wait({opening}, timeout=self._timeout_s)

    def _follow(self) -> None:
        """Connect to servers that have slots from now on, and leave those that have none."""
        self._by_prefix.clear()
        if self._opened is None:
            return
        nodes = set(self._topology.nodes.values())
        kept = nodes | set(self._topology.guests.values())
        for node in [node for node in self._connections if node not in kept]:
            self._opened.discard(node)
            connection = self._connections.pop(node)
            self._gone += connection.reconnects_total
            if (task := self._opening.pop(node, None)) is not None:
                task.cancel()
            self._do(connection.close(), "leave a server")
        for node in nodes:
            self._open_soon(node)

    def _open_soon(self, node: Node) -> None:
        if self._opened is not None and node not in self._opened:
            self._opened.add(node)
            self._opening[node] = asyncio.create_task(self._open(node), name="connect to a server")

    async def _open(self, node: Node) -> None:
        delay_s, longest_s = BACKOFF_S
        while True:
            try:
                await self.connection_of(node).open()
            except StoreError as exc:
                log.warning("a server of the cluster is not reached", extra={"why": str(exc)})
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, longest_s)
            else:
                del self._opening[node]
                return

    def _do(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Answers:
    """The replies to `size` calls that went to several servers. `future` gets them."""

    def __init__(self, future: "asyncio.Future[list[Any]]", size: int, parts: int) -> None:
        self.future = future
        self._left = parts
        self._replies: list[Any] = [None] * size
        self._failed: BaseException | None = None

    def take(self, positions: Sequence[int], part: "asyncio.Future[list[Any]]") -> None:
        """Take what one server has answered."""
        self._left -= 1
        if part.cancelled():
            self._failed = StoreUnavailable("given up")
        elif (failed := part.exception()) is not None:
            self._failed = failed
        else:
            for position, reply in zip(positions, part.result(), strict=True):
                self._replies[position] = reply
        if self._left or self.future.done():
            return
        if self._failed is None:
            self.future.set_result(self._replies)
        else:
            self.future.set_exception(self._failed)
