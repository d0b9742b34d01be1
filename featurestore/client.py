"""redis-py for everything that is not hot. Invariant: a call ends within the timeout, its failure is a
`StoreError`, and the functions that it calls are those of this version.

Lookups, `rate` and chunks go over `wire/`, where one write carries the calls of many tasks. Whatever happens
a few times a second at most is written as every user of redis-py would write it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha1
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import Connection as PlainSocket
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as LateReply

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.wire.connection import Connection
from featurestore.wire.functions import LIBRARY, LIBRARY_TEXT, is_missing
from featurestore.wire.primary import Primary
from featurestore.wire.resp import ReplyError, note_keys, store_error

# A process has a leader's loop, a stream of commands and a few requests at a time: calls beyond wait here.
POOL_SOCKETS = 8

# Keys and arguments of one call of a function.
Call = tuple[Sequence[bytes], Sequence[bytes]]


class _Following(PlainSocket):
    """Goes to where the primary is at that moment."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary

    async def connect(self) -> None:
        """Connect there."""
        self.host, self.port = self._primary.address
        await super().connect()  # type: ignore[no-untyped-call]  # redis-py


class _FollowingOverTls(_Following, SSLConnection):
    pass


class Client(Redis):
    """`redis.asyncio.Redis` whose calls raise `StoreError`. `main`: while that connection is away nothing is
    asked.
    """

    def __init__(self, primary: Primary, timeout_s: float, main: Connection | None = None) -> None:
        options: dict[str, Any] = {**primary.options}
        kind = options.pop("connection_class", PlainSocket)
        if kind is not UnixDomainSocketConnection:
            kind = _FollowingOverTls if kind is SSLConnection else _Following
            options["primary"] = primary
        defaults: dict[str, Any] = {
            "max_connections": POOL_SOCKETS,
            "timeout": timeout_s,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            # redis-py 8 retries ten times unless told otherwise, and a write whose reply was lost would be
            # applied twice: the caller knows whether its call may be repeated. A pooled socket that the store
            # has closed needs no retry: it is noticed and replaced before it is used.
            "retry": Retry(NoBackoff(), 0),
        }
        # Replies of RESP2 are what the wire and the functions speak too.
        pool = BlockingConnectionPool(connection_class=kind, **{**defaults, **options, "protocol": 2})
        try:
            pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py; it connects when it is used
        except TypeError as exc:
            raise ValueError(f"an option of the address is not known: {exc}") from exc
        super().__init__(connection_pool=pool)
        self.main = main
        self._shown = primary.shown
        self._main_sockets = 0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute one command."""
        await self.check()
        with self.errors(args):
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> "StorePipeline":
        """Commands for one round trip, without a transaction: what must happen in one step is a function."""
        return StorePipeline(self, transaction, shard_hint)

    async def call(self, function: str, *calls: Call) -> list[Any]:
        """Replies of calls of one server-side function, in one round trip. After all are answered an error
        raises.
        """
        name, replies = f"{LIBRARY}_{function}", dict[int, Any]()
        left = list(range(len(calls)))
        for last in (False, True):
            pipe = self.pipeline()
            for position in left:
                keys, args = calls[position]
                pipe.fcall(name, len(keys), *keys, *args)
            replies |= zip(left, await pipe.execute(raise_on_error=False), strict=True)
            # A store may have lost the library: restarted without it, failed over, flushed. Only these calls
            # are repeated: a function that was not found has done nothing.
            left = [position for position in left if is_missing(replies[position])]
            if last or not left:
                break
            await self.load_library()
        self.raise_first([replies[position] for position in range(len(calls))], [keys for keys, _ in calls])
        return list(replies.values())

    async def change_fields(
        self, key: bytes, fields: Mapping[Any, bytes] | None = None, gone: Sequence[bytes] = ()
    ) -> int:
        """Set `fields` of a hash and remove those that are `gone`, in one step; return how many of these were
        there. By a function, which a store refuses that is moving to another one.
        """
        sets = [
            part.encode() if isinstance(part, str) else part
            for pair in (fields or {}).items()
            for part in pair
        ]
        args = [b"%d" % len(fields or {}), *sets, *gone]
        (reply,) = await self.call("change_fields", ([key], args))
        return int(reply[1])

    async def of_each(
        self, command: str, keys: Iterable[bytes], *args: Any, raise_on_error: bool = True
    ) -> list[Any]:
        """Return the replies to a command of each key, in one round trip."""
        pipe = self.pipeline()
        for key in keys:
            pipe.execute_command(command, key, *args)
        return await pipe.execute(raise_on_error=raise_on_error)

    async def pages(self, match: bytes | None, count: int, *scan: str | bytes) -> AsyncIterator[Any]:
        """Yield the keys that fit a pattern, those that are found among `count` keys at a time; or by `scan`,
        a command like SSCAN and its key, what that key has. What is there all along comes, perhaps twice.
        """
        pattern = () if match is None else (b"MATCH", match)
        cursor, more = 0, True
        while more:
            cursor, found = await self.execute_command(
                *(scan or ("SCAN",)), cursor, *pattern, b"COUNT", count
            )
            yield found
            more = cursor != 0

    async def each(self, *commands: Sequence[str]) -> list[list[Any]]:
        """Return the replies of each server of the store to these commands; here there is one."""
        pipe = self.pipeline()
        for command in commands:
            pipe.execute_command(*command)
        return [await pipe.execute()]

    async def told_by_each(self, *commands: Sequence[str]) -> list[tuple[str, int, list[Any] | None]]:
        """Return of each server its address, how many slots it has, and its replies to these commands, None
        of one that is away. Here there is one without slots, which must answer.
        """
        (replies,) = await self.each(*commands)
        return [(self._shown, 0, replies)]

    async def load_library(self) -> None:
        """Give the store this version's functions, unless it has them."""
        if not await self.function_list(LIBRARY):
            try:
                await self.function_load(LIBRARY_TEXT)
            except StoreError as exc:
                # Another process may have been faster.
                if "already exists" not in str(exc):
                    raise

    async def check(self) -> None:
        """Raise `StoreUnavailable` while the main connection is away.

        That one refuses replicas, and brings back what a store has lost before anything else reaches it.
        """
        if self.main is None:
            return
        self.main.require()
        if self.main.reconnects_total != self._main_sockets:
            # The sockets here may lead to a server that is no longer the one to ask.
            self._main_sockets = self.main.reconnects_total
            await self.connection_pool.disconnect(inuse_connections=False)

    @contextmanager
    def errors(self, command: Sequence[Any] = ()) -> Iterator[None]:
        """Raise errors of redis-py as `StoreError`, and a cancellation that it has swallowed."""
        task = asyncio.current_task()
        cancels = 0 if task is None else task.cancelling()
        try:
            yield
        except (LostConnection, LateReply) as exc:
            if exc.status_code is None:
                raise StoreUnavailable(f"cannot reach the store: {exc}") from exc
            raise self.failure(exc) from exc
        except RedisError as exc:
            note_keys(exc, keys_of_command(command))
            raise self.failure(exc) from exc
        except RuntimeError as exc:
            # So says uvloop where the other end closes the connection between two writes.
            if "handler is closed" not in str(exc):
                raise
            raise StoreUnavailable(f"cannot reach the store: {exc}") from exc
        finally:
            # redis-py sends by `wait_for`, which in Python 3.11 drops a cancellation that comes as its write
            # ends, whatever becomes of the reply. A task group cancels once: it would wait for ever.
            if task is not None and task.cancelling() > cancels:
                raise asyncio.CancelledError

    def failure(self, exc: RedisError) -> StoreError:
        """What an error reply means. redis-py takes the code off the text of those that it knows."""
        code = getattr(exc, "status_code", None)
        reply = ReplyError(f"{code} {exc}" if code else str(exc))
        reply.__notes__ = getattr(exc, "__notes__", [])
        return store_error(reply) if self.main is None else self.main.failure(reply)

    def raise_first(self, replies: Iterable[Any], keys: Iterable[Sequence[bytes]]) -> None:
        """Raise the first error among replies to commands with these `keys`."""
        for reply, of in zip(replies, keys, strict=True):
            if isinstance(reply, RedisError):
                note_keys(reply, of)
                raise self.failure(reply)


def digest_of_value(value: bytes | None) -> bytes:
    """Return what tells a function whether a value is still this one, None for none. There is nothing to gain
    by making two alike.
    """
    return b"" if value is None else sha1(value, usedforsecurity=False).hexdigest().encode()


def keys_of_command(command: Sequence[Any]) -> list[bytes]:
    """The first argument, or of a command that reads several streams those."""
    texts = [arg.encode() if isinstance(arg, str) else arg for arg in command if isinstance(arg, str | bytes)]
    if b"STREAMS" not in texts:
        return texts[1:2]
    behind = texts[texts.index(b"STREAMS") + 1 :]
    return behind[: len(behind) // 2]


class StorePipeline(Pipeline):
    """A pipeline of a `Client`."""

    def __init__(self, client: Client, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Execute all commands. With `raise_on_error` the first error raises, after all were answered."""
        await self._client.check()
        # By then the stack is empty.
        keys = [keys_of_command(command) for command, _ in self.command_stack]
        replies = await self.replies()
        if raise_on_error:
            self._client.raise_first(replies, keys)
        return replies

    async def replies(self) -> list[Any]:
        """Execute all commands; return their replies, errors as redis-py has them."""
        with self._client.errors():
            # redis-py would put the command into the message, and with it the ids of users.
            replies: list[Any] = await super().execute(raise_on_error=False)
        return replies
