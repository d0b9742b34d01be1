"""The connection of the hot paths, shared by all tasks of an event loop. Invariant: nothing is sent twice,
since only the caller knows whether its write may be repeated.

It outlasts its sockets: while the store is away calls fail at once, and it comes back by itself.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from featurestore.errors import StoreError, StoreFull, StoreUnavailable
from featurestore.wire.primary import SETTLE_S, Address, Primary, login_command, ssl_context
from featurestore.wire.resp import ELSEWHERE, ReplyError, encode, error_code, store_error
from featurestore.wire.socket import Astray, StoreSocket

log = logging.getLogger(__name__)

# With at most half a second between attempts a store that is back is noticed well within two seconds.
BACKOFF_S = (0.02, 0.5)

# Makes sure of the store, or brings back what it has lost.
Prepare = Callable[[], Awaitable[None]]
# Calls a socket; what stands around that, for each socket anew.
Execute = Callable[..., "asyncio.Future[list[Any]]"]
Around = Callable[[Execute], Execute]


def swallow(future: "asyncio.Future[Any]") -> None:
    """Take the failure of a future that no task may wait for, so that it does no harm."""
    if not future.cancelled():
        future.exception()


class Connection(Protocol):
    """Connections to the servers of a store, used as one. `execute`: see `StoreSocket.execute`;
    `reconnects_total` grows when what was stored there may be gone; `load_library` gives servers the
    functions that a call did not find.
    """

    load_library: Prepare

    @property
    def execute(self) -> Execute:
        """Send commands."""

    @property
    def connected(self) -> bool:
        """Whether calls are taken now."""

    @property
    def reconnects_total(self) -> int:
        """Sockets after the first."""

    def execute_calls(self, calls: Sequence[bytes], *, at_once: bool = False) -> "asyncio.Future[list[Any]]":
        """Send commands that are not joined."""

    def apart(self, keys: Sequence[bytes]) -> list[list[int]]:
        """Return which of these keys are of one server, by their places."""

    def require(self) -> None:
        """Raise `StoreUnavailable` while the store is away."""

    def failure(self, reply: Exception) -> StoreError:
        """Return what an error reply means, and act on it."""

    async def open(self) -> None:
        """Connect. Raises `StoreUnavailable` or `StoreRefused`; from then on it reconnects itself."""

    async def close(self) -> None:
        """Drop all sockets; calls in flight fail."""


class ServerConnection:
    """A connection to one server that lasts as long as its owner, over as many sockets as that takes.

    `execute` is that of the present socket (`StoreSocket.execute`). `reconnects_total` counts sockets after
    the first. `prepare` makes sure of the store at each new socket, before any call is taken; `load_library`
    gives it the functions that a call did not find. `block_s`: how long a command may block beyond the
    timeout. `around`: what traces calls; `astray`: see `StoreSocket`.
    """

    def __init__(
        self,
        primary: Primary,
        timeout_s: float,
        name: str,
        *,
        prepare: Prepare | None = None,
        load_library: Prepare | None = None,
        block_s: float = 0.0,
        around: Around | None = None,
        astray: Astray | None = None,
    ) -> None:
        self._primary = primary
        self._astray = astray
        self._around = around
        self._shown = primary.shown
        self._timeout_s = timeout_s
        self._block_s = block_s
        self._name = name
        # This one asks where the primary is; others follow.
        self._finds = prepare is not None
        self._prepare = prepare or _nothing
        self.load_library = load_library or _nothing
        self._away = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.reconnects_total = 0
        # One that was given up takes the place of the next until there is one: calls fail at once.
        self._socket = self._new_socket()
        self._socket.why = StoreUnavailable(f"not connected to the store at {self._shown}", BACKOFF_S[1])
        # Bound to the present socket, so that a hot call takes no step through this class.
        self.execute = self._call_of(self._socket)
        # Of the primary that was last connected: None before the first.
        self._last: Address | None = None
        primary.on_move(self._leave)

    @property
    def connected(self) -> bool:
        """Whether calls are taken now."""
        return self._socket.why is None

    def require(self) -> None:
        """Raise `StoreUnavailable` while the store is away."""
        if self._socket.why is not None:
            raise StoreUnavailable(str(self._socket.why), self._socket.why.retry_after_s)

    async def open(self) -> None:
        """Connect for the first time.

        Raises `StoreUnavailable` or `StoreRefused`; from then on it reconnects itself.
        """
        await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name=f"store-{self._name}")

    def execute_calls(self, calls: Sequence[bytes], *, at_once: bool = False) -> "asyncio.Future[list[Any]]":
        """The same for commands that are not joined."""
        return self.execute(b"".join(calls), len(calls), at_once=at_once)

    def apart(self, keys: Sequence[bytes]) -> list[list[int]]:
        """All are."""
        return [list(range(len(keys)))]

    async def close(self) -> None:
        """Drop the socket; calls in flight fail."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._socket.give_up(StoreUnavailable("this process has closed its connection to the store"))
        # The transport closes its socket in the next turn.
        await asyncio.sleep(0)

    def failure(self, reply: Exception) -> StoreError:
        """What an error reply means; leaves a server that has become a replica."""
        error = store_error(reply)
        if error_code(reply) in ELSEWHERE:
            self._socket.give_up(StoreUnavailable(str(error)))
        return error

    def _call_of(self, socket: StoreSocket) -> Execute:
        return socket.execute if self._around is None else self._around(socket.execute)

    def _leave(self) -> None:
        self._socket.give_up(StoreUnavailable("the primary of the store is elsewhere now"))

    def _socket_lost(self, socket: StoreSocket) -> None:
        if socket is self._socket:
            # The next attempt comes within this time: a caller who waits longer waits for nothing.
            socket.why = StoreUnavailable(str(socket.why), BACKOFF_S[1])
            self._away.set()

    async def _keep(self) -> None:
        while True:
            await self._away.wait()
            log.warning(
                "store connection lost", extra={"connection": self._name, "why": str(self._socket.why)}
            )
            delay_s, longest_s = BACKOFF_S
            while True:
                try:
                    await self._connect()
                except StoreError as exc:
                    self._socket.why = StoreUnavailable(str(exc), BACKOFF_S[1])
                    # Jittered, so that the workers of all hosts do not knock at the same moment.
                    await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                    delay_s = min(2 * delay_s, longest_s)
                else:
                    self.reconnects_total += 1
                    log.info("store connection restored", extra={"connection": self._name})
                    break

    async def _connect(self) -> None:
        # Before all else: a socket that is lost as soon as it is the present one sets it again.
        self._away.clear()
        primary = self._primary
        if self._finds:
            await primary.find()
            if self._last not in {None, primary.address}:
                await asyncio.sleep(SETTLE_S)
        address = primary.address
        socket: StoreSocket | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                socket = await self._dial(address)
                await self._greet(socket)
                await self._prepare()
        except TimeoutError as exc:
            raise StoreUnavailable(f"the store at {self._shown} did not answer in time") from exc
        except (OSError, UnicodeError) as exc:  # the second: a name that no host can have
            raise StoreUnavailable(f"cannot reach the store at {self._shown}: {exc}") from exc
        else:
            # The store was prepared over other sockets; this one may have been lost meanwhile.
            if socket.why is not None:
                raise socket.why
            if address != primary.address:
                raise StoreUnavailable("the primary of the store has moved meanwhile")
            self._last = address
            self._socket, self.execute, socket = socket, self._call_of(socket), None
        finally:
            if socket is not None:
                socket.give_up(StoreUnavailable("the store did not get ready"))

    async def _dial(self, address: Address) -> StoreSocket:
        loop = asyncio.get_running_loop()
        options = self._primary.options
        if "path" in options:
            _, socket = await loop.create_unix_connection(self._new_socket, options["path"])
        else:
            host, port = address
            _, socket = await loop.create_connection(self._new_socket, host, port, ssl=ssl_context(options))
        return socket

    def _new_socket(self) -> StoreSocket:
        return StoreSocket(self._timeout_s + self._block_s, self._socket_lost, self._astray)

    async def _greet(self, socket: StoreSocket) -> None:
        options = self._primary.options
        login = login_command(options)
        commands = [] if login is None else [login]
        if options.get("db"):
            commands.append(encode(b"SELECT", b"%d" % options["db"]))
        # Where no password is given nothing else says that the server wants one, or is still loading.
        commands.append(encode(b"PING"))
        count = len(commands)
        # Naming the connection and asking for the role may be forbidden to this user; both are a help, not a
        # need.
        commands += [encode(b"CLIENT", b"SETNAME", b"foldin-" + self._name.encode()), encode(b"ROLE")]
        replies = await socket.execute(b"".join(commands), len(commands))
        for reply in replies[:count]:
            # A store whose disk is full says so to PING too, and is read all the same.
            if isinstance(reply, ReplyError) and not isinstance(store_error(reply), StoreFull):
                raise store_error(reply)
        role = replies[-1]
        if isinstance(role, list) and role and role[0] in {b"slave", b"replica"}:
            raise StoreUnavailable(f"the store at {self._shown} is a read-only replica")


async def _nothing() -> None:
    """For a connection whose store others prepare."""
