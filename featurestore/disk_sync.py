"""Waiting for the store's disk. Invariant: `wait` returns only after an fsync that began after the call."""

import asyncio

from featurestore.client import Client
from featurestore.errors import StoreError, StoreRefused, StoreUnavailable
from featurestore.wire.connection import Connection
from featurestore.wire.functions import LIBRARY, is_missing

# `appendfsync everysec` syncs once a second, and up to another second late when the disk is busy.
EVERYSEC_S = 2.0
# Nothing reads the key: it goes by itself when its process no longer writes it.
KEY_KEPT_S = 60


class DiskSync:
    """Group commit: one `WAITAOF` at a time, each for all calls that came before it was sent.

    `main`: the connection that says whether the store is there; `key` is written by each commit.
    """

    def __init__(self, url: str, timeout_s: float, main: Connection, key: bytes) -> None:
        self._wait_s = timeout_s + EVERYSEC_S
        # Of its own: others would give up a socket that is silent for so long.
        self._client = Client(url, timeout_s, main, block_s=self._wait_s)
        self._key = key
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Sync once. Raises `StoreRefused` where the store keeps no append-only file."""
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
        await self._client.aclose(close_connection_pool=True)

    async def _run(self) -> None:
        while self._waiting:
            # A call that comes from here on may have written after `WAITAOF`: it waits for the next one.
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
        # `WAITAOF` covers what its own connection has written, hence the small write before it: a pipeline
        # goes over one connection, and comes after every write that was acknowledged to this process.
        for last in (False, True):
            pipe = self._client.pipeline()
            # A function, which a store without memory takes too: so a removal is known to be on the disk.
            pipe.fcall(f"{LIBRARY}_keep_for", 1, self._key, 1, KEY_KEPT_S)
            pipe.waitaof(1, 0, int(1000 * self._wait_s))
            replies = await pipe.execute(raise_on_error=False)
            if last or not is_missing(replies[0]):
                break
            await self._client.load_library()
        self._client.raise_first(replies)
        synced, _ = replies[1]
        if synced < 1:
            raise StoreUnavailable("the store's disk did not confirm the write in time")

    def _fail(self, futures: list[asyncio.Future[None]], exc: StoreError) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(exc)
