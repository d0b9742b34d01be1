"""Waiting for the store's disk. Invariant: `wait` returns only after an fsync that began after the call."""

import asyncio

from featurestore.errors import StoreError, StoreRefused, StoreUnavailable
from featurestore.wire.connection import Connection
from featurestore.wire.resp import ReplyError, encode

# `appendfsync everysec` syncs once a second, and up to another second late when the disk is busy.
EVERYSEC_S = 2.0


class DiskSync:
    """Group commit: one `WAITAOF` at a time, each for all calls that came before it was sent.

    `connection` is its own, so that lookups never wait behind `WAITAOF`.
    """

    def __init__(self, connection: Connection, key: bytes, timeout_s: float) -> None:
        self._connection = connection
        self._wait_s = timeout_s + EVERYSEC_S
        # `WAITAOF` covers what its own connection has written, hence the small write before it: that comes
        # after every write that was acknowledged to this process.
        self._payload = encode(b"SET", key, b"1", b"EX", b"60") + encode(
            b"WAITAOF", b"1", b"0", b"%d" % (1000 * self._wait_s)
        )
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect. Raises `StoreRefused` where the store keeps no append-only file."""
        await self._connection.open()
        try:
            await self._sync()
        except StoreUnavailable:
            raise
        except StoreError as exc:
            raise StoreRefused(
                f"durability=fsync needs a store with appendonly yes ({exc}); "
                "switch it on, or use durability=store"
            ) from exc

    async def wait(self) -> None:
        """Return when everything written so far is on disk.

        Raises `StoreUnavailable` when that is not known in time.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="store-fsync")
        await future

    async def close(self) -> None:
        """Stop; calls that still wait get `StoreUnavailable`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(self._waiting, StoreUnavailable("this process is closing"))
        await self._connection.close()

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._sync()
            except StoreError as exc:
                self._fail(batch, exc)
            except asyncio.CancelledError:
                self._fail(batch, StoreUnavailable("this process is closing"))
                raise
            else:
                for future in batch:
                    if not future.done():
                        future.set_result(None)

    async def _sync(self) -> None:
        replies = await self._connection.execute(self._payload, 2, wait_s=self._wait_s)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._connection.failure(reply)
        if replies[1][0] < 1:
            raise StoreUnavailable("the store's disk did not confirm the write in time")

    def _fail(self, futures: list[asyncio.Future[None]], exc: StoreError) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(exc)
