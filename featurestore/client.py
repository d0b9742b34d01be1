"""redis-py for everything that is not hot. Invariant: a call ends within the timeout, its failure is a
`StoreError`, and the functions that it calls are those of this version.

Lookups, `rate` and chunks go over `wire/`, where one write carries the calls of many tasks. Whatever happens
a few times a second at most is written as every user of redis-py would write it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as LateReply

from featurestore.errors import StoreError, StoreUnavailable
from featurestore.wire.connection import Connection
from featurestore.wire.functions import function_name, is_missing, load_library
from featurestore.wire.resp import ReplyError

# A process has a leader's loop, a stream of commands and a few requests at a time: calls beyond wait here.
POOL_SOCKETS = 8


class Client(Redis):
    """`redis.asyncio.Redis` whose calls raise `StoreError`. `main`: the connection that mends the store.

    redis-py 8 retries ten times unless told otherwise, and a write whose reply was lost would be applied
    twice. Here nothing is retried: the caller knows whether its call may be repeated. A pooled socket that
    the store has closed is noticed and replaced before it is used.
    """

    def __init__(self, url: str, timeout_s: float, main: Connection) -> None:
        super().__init__(
            connection_pool=BlockingConnectionPool.from_url(
                url,
                max_connections=POOL_SOCKETS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                # Replies of RESP2 are what the wire and the functions speak too.
                protocol=2,
            )
        )
        self._main = main
        self._main_sockets = 0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute one command."""
        await self.check()
        with self.errors():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> "StorePipeline":
        """Commands for one round trip, without a transaction: what must happen in one step is a function."""
        return StorePipeline(self, transaction, shard_hint)

    async def call(self, function: str, keys: Sequence[bytes], args: Sequence[bytes] = ()) -> Any:
        """The reply of one server-side function."""
        return (await self.call_many([(function, keys, args)]))[0]

    async def call_many(self, calls: Sequence[tuple[str, Sequence[bytes], Sequence[bytes]]]) -> list[Any]:
        """Replies of several function calls, in one round trip. After all are answered an error raises.

        A store that has lost the library (restarted without it, failed over, flushed) gets it again, and
        those calls are repeated: a function that was not found has done nothing.
        """
        replies = await self._call_each(calls)
        missing = [position for position, reply in enumerate(replies) if is_missing(reply)]
        if missing:
            await load_library(self._main.execute)
            again = await self._call_each([calls[position] for position in missing])
            for position, reply in zip(missing, again, strict=True):
                replies[position] = reply
        self.raise_first(replies)
        return replies

    async def _call_each(self, calls: Sequence[tuple[str, Sequence[bytes], Sequence[bytes]]]) -> list[Any]:
        pipe = self.pipeline()
        for function, keys, args in calls:
            pipe.fcall(function_name(function), len(keys), *keys, *args)
        return await pipe.execute(raise_on_error=False)

    async def mend(self) -> None:
        """Bring back what a store that was wiped has lost."""
        await self._main.prepare()

    async def check(self) -> None:
        """Raise `StoreUnavailable` while the main connection is away.

        That one refuses replicas, and brings back what a store has lost before anything else reaches it.
        """
        self._main.require()
        if self._main.reconnects_total != self._main_sockets:
            # The sockets here may lead to a server that is no longer the one to ask.
            self._main_sockets = self._main.reconnects_total
            await self.connection_pool.disconnect(inuse_connections=False)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of redis-py as `StoreError`, and a cancellation that it has swallowed."""
        task = asyncio.current_task()
        cancels = 0 if task is None else task.cancelling()
        try:
            yield
            # redis-py sends by `wait_for`, which in Python 3.11 drops a cancellation that comes as its write
            # ends. A task group cancels once: it would wait for ever.
            if task is not None and task.cancelling() > cancels:
                raise asyncio.CancelledError
        except (LostConnection, LateReply) as exc:
            if exc.status_code is None:
                raise StoreUnavailable(f"cannot reach the store: {exc}") from exc
            raise self.failure(exc) from exc
        except RedisError as exc:
            raise self.failure(exc) from exc

    def failure(self, exc: RedisError) -> StoreError:
        """What an error reply means. redis-py takes the code off the text of those that it knows."""
        code = getattr(exc, "status_code", None)
        return self._main.failure(ReplyError(f"{code} {exc}" if code else str(exc)))

    def raise_first(self, replies: Sequence[Any]) -> None:
        """Raise the first error among replies."""
        for reply in replies:
            if isinstance(reply, RedisError):
                raise self.failure(reply)


class StorePipeline(Pipeline):
    """A pipeline of a `Client`."""

    def __init__(self, client: Client, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Execute all commands. With `raise_on_error` the first error raises, after all were answered."""
        await self._client.check()
        with self._client.errors():
            # redis-py would put the command into the message, and with it the ids of users.
            replies: list[Any] = await super().execute(raise_on_error=False)
        if raise_on_error:
            self._client.raise_first(replies)
        return replies
