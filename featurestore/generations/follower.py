"""The live generation in a service process. Invariant: a caller that takes `Follower.live` once has one whole
generation for as long as it wants.

A new generation is loaded and checked beside the one that serves, then one reference is swapped. While the
store is away the old one goes on serving.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from featurestore.errors import FullReason, GenerationBroken, StoreError, StoreUnavailable
from featurestore.generations.deltas import decode_deltas
from featurestore.generations.item_table_file import TableCache
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import (
    ACTIVITY,
    RANKING,
    RANKING_INDEX,
    Beat,
    GenerationMeta,
    Kept,
    Pointer,
    read_pointer,
)
from featurestore.generations.states import as_fitted, room_for, updated
from featurestore.keys import whole

if TYPE_CHECKING:
    from featurestore.store import Store

log = logging.getLogger(__name__)

# Four beats fit into the two seconds after which a worker counts as gone.
BEAT_S = 0.5
# Half a millisecond of this event loop; what is left comes with the next poll, at once.
DELTAS_AT_ONCE = 64
# Nothing waits for a load, and each read of deltas costs it a new state of the ranker.
DELTAS_AT_LOAD = 256
# New ids take half a millisecond, too.
ITEMS_AT_ONCE = 2_000
# More news are work for a thread.
INLINE_ROWS = 200
# A larger table goes to a thread with any news: it may have to be copied to make room for an item.
INLINE_TABLE_ROWS = 20_000
# A load that failed costs the store the whole table: not again with each poll.
RETRY_LOAD_S = 1.0


class Follower:
    """Keeps `live` up to date from a `Store`; `pointer` is what was polled last.

    Counters for metrics: `loads_total`, `failures_total`; `polled_at` is `time.monotonic` of the last good
    poll.
    """

    def __init__(
        self,
        store: "Store",
        cache_dir: Path,
        worker_id: str,
        poll_s: float = 0.1,
        prepare: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare`: is awaited with an epoch before a generation of it is served for the first time. Raises
        `StoreRefused` where `cache_dir` cannot be written.
        """
        self._store = store
        self._keys = store.keys
        self._client = store.redis
        self._cache = TableCache(cache_dir, store.settings.namespace)
        self._worker_id = worker_id
        self._poll_s = poll_s
        self._prepare = prepare
        self.live: LiveGeneration | None = None
        self.pointer: Pointer | None = None
        self.loads_total = 0
        self.failures_total = 0
        self.polled_at = float("-inf")
        # Of the store that `live` came from.
        self._identity = store.identity
        self._numbers: frozenset[int] = frozenset()
        self._clock_offset = 0.0
        self._beaten_at = float("-inf")
        self._beaten: tuple[int, int] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._load_at = float("-inf")
        self._load_failure = ""

    @property
    def full(self) -> FullReason | None:
        """What has no room left for ratings, as the leader said last; it ends by itself where polls fail."""
        return self.pointer.full_at(time.monotonic() + self._clock_offset) if self.pointer else None

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set. Every error is logged and tried again."""
        failure = ""
        try:
            while not stop.is_set():
                try:
                    more = await self._poll()
                    failure = ""
                except StoreError as exc:
                    more = False
                    self.failures_total += 1
                    if str(exc) != failure:
                        log.warning("polling the store failed: %s", exc)
                    failure = str(exc)
                except Exception as exc:
                    # A defect. A worker that follows no more would be of no use, and go on: it tries again.
                    more = False
                    self.failures_total += 1
                    if repr(exc) != failure:
                        log.exception("polling the store failed unexpectedly")
                    failure = repr(exc)
                if not more:
                    with contextlib.suppress(TimeoutError):
                        # `wait_for` of Python 3.11 drops a cancellation that comes as `stop` is set.
                        async with asyncio.timeout(self._poll_s):
                            await stop.wait()
        finally:
            if self._loading is not None:
                self._loading.cancel()
                await asyncio.gather(self._loading, return_exceptions=True)
        with contextlib.suppress(StoreError):
            # A worker that says so is not waited for.
            await self._client.hdel(self._keys.workers, self._worker_id)

    async def _poll(self) -> bool:
        """Poll once; return whether there is more to be read at once."""
        if self._store.identity != self._identity:
            self._drop()
        live = self.live
        if live is not None:
            serves = (live.epoch, live.generation)
            # At once after a change: a switch of generations waits for this.
            if serves != self._beaten or time.monotonic() - self._beaten_at >= BEAT_S:
                self._beaten, self._beaten_at = serves, time.monotonic()
                # A store that is full, or that misses replicas, takes none; it is followed all the same.
                with contextlib.suppress(StoreUnavailable):
                    await self._beat(*serves)
        # One round trip, ten times a second: 0.13 ms of this event loop.
        pipe = self._client.pipeline()
        pipe.time()
        pipe.hgetall(self._keys.live)
        pipe.hkeys(self._keys.generations)
        pipe.hget(self._keys.config, "identity")
        items = None
        if live is not None:
            items = self._store.items(live.epoch)
            known = len(items)
            deltas = self._keys.deltas(live.epoch, live.generation)
            pipe.xrange(deltas, f"({live.after}", "+", DELTAS_AT_ONCE)
            pipe.lrange(self._keys.order(live.epoch), known, known + ITEMS_AT_ONCE - 1)
        (seconds, microseconds), pointer_fields, numbers, identity, *rest = await pipe.execute()
        if identity is None or identity.decode() != self._identity:
            # Emptied while it was connected; where the connection was lost, this has been done.
            await self._store.look_again()
            return True
        now = time.monotonic()
        self._clock_offset = seconds + microseconds / 1e6 - now
        self.pointer = pointer = read_pointer(pointer_fields, self._keys.live)
        self._numbers = frozenset(whole(number, self._keys.generations) for number in numbers)
        if live is not None and live.epoch != pointer.epoch and not pointer.pending:
            # The history that it serves has ended without it: it was stopped, or cut off, and not waited for.
            self.live = None
        self._store.users.polled(Kept(self._numbers), now)
        self.polled_at = now
        more = False
        if live is not None and items is not None and live is self.live:
            entries, ids = rest[:2]
            items.follow(known, ids)
            # An item that the catalogue has registered has the prior until it is rated.
            if entries or len(items) > live.n_items:
                followed = await self._with_deltas(live, entries, len(items))
                # A load that ended meanwhile has read these deltas, or does not need them.
                if self.live is live:
                    self.live = followed
            more = len(entries) == DELTAS_AT_ONCE or len(ids) == ITEMS_AT_ONCE
        self._load_what_is_live(pointer, now)
        return more

    def _load_what_is_live(self, pointer: Pointer, now: float) -> None:
        """Load what the pointer names, unless it is here or being loaded."""
        live = self.live
        here = (0, 0) if live is None else (live.epoch, live.generation)
        if (
            pointer.generation != 0
            and (pointer.epoch, pointer.generation) != here
            and (self._loading is None or self._loading.done())
            and now - self._load_at >= RETRY_LOAD_S
        ):
            name = f"load-generation-{pointer.generation}"
            self._loading = asyncio.create_task(self._load(pointer.epoch, pointer.generation), name=name)

    def _drop(self) -> None:
        """Serve nothing of a store that has been replaced: its item rows mean other items in the new one."""
        log.warning("the store is another one", extra={"was": self._identity, "now": self._store.identity})
        self._identity = self._store.identity
        self.live = self.pointer = None
        if self._store.users.copies is not None:
            self._store.users.copies.clear()
        self._load_at = float("-inf")

    async def _load(self, epoch: int, generation: int) -> None:
        """Load a generation and serve it."""
        generations = self._store.generations
        try:
            meta = await generations.meta(epoch, generation)
            table = await self._cache.table(meta, generations.load_items(meta))
            index = await generations.load_index(meta) if meta.index_bytes else b""
            ranking = await self._blob(meta, RANKING), await self._blob(meta, RANKING_INDEX)
            activity = await self._blob(meta, ACTIVITY)
            fitted = partial(as_fitted, meta, table, index, *ranking, activity_bytes=activity)
            live = await asyncio.to_thread(fitted)
            deltas = self._keys.deltas(epoch, generation)
            while entries := await self._client.xrange(deltas, f"({live.after}", "+", DELTAS_AT_LOAD):
                live = await self._with_deltas(live, entries)
            items = self._store.items(epoch)
            await items.refresh()
            await items.require_whole()
            if self._prepare is not None and (self.live is None or self.live.epoch != epoch):
                await self._prepare(epoch)
            if self.live is not None or await self._announce(epoch, generation):
                self.live = live
                self.loads_total += 1
                shown = {"epoch": epoch, "generation": generation, "items": live.n_items}
                log.info("generation live", extra=shown)
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._cache.remove_unused, self._numbers, generation)
            self._load_at, self._load_failure = float("-inf"), ""
        except StoreError as exc:
            # Keep the one that serves; the next poll tries again, or finds that the pointer has moved on.
            self._load_at = time.monotonic()
            self.failures_total += 1
            if self._load_failure != str(exc):
                log.warning("loading generation %d failed: %s", generation, exc)
            # Tried again and again, said once.
            self._load_failure = str(exc)

    async def _blob(self, meta: GenerationMeta, name: str) -> memoryview | None:
        """Return a blob of a generation, mapped; None where there is none, and where it is damaged: the
        generation is served without it.
        """
        if (blob := meta.blobs.get(name)) is None:
            return None
        try:
            return await self._cache.blob(meta, name, blob, self._store.generations.load_blob(meta, blob))
        except GenerationBroken as exc:
            log.warning("a part of a generation cannot be used", extra={"part": name, "why": str(exc)})
            return None

    async def _announce(self, epoch: int, generation: int) -> bool:
        """Say what this worker is about to serve; return whether that is still the live generation."""
        # Said first, asked second: a process that switches epochs either sees this worker and waits for it,
        # or had switched before.
        await self._beat(epoch, generation)
        self.pointer = await self._store.generations.live()
        return (self.pointer.epoch, self.pointer.generation) == (epoch, generation)

    async def _with_deltas(self, live: LiveGeneration, entries: Any, known: int = 0) -> LiveGeneration:
        """`known`: rows that have an item, be it without a delta."""
        key = self._keys.deltas(live.epoch, live.generation)
        deltas = decode_deltas(entries, live.model.item_width, live.after, key, live.rank)
        in_thread = len(deltas.rows) > INLINE_ROWS or live.n_items > INLINE_TABLE_ROWS
        room = (
            await asyncio.to_thread(room_for, live, deltas, known)
            if in_thread
            else room_for(live, deltas, known)
        )
        async with live.row_lock.writing():
            # Here, where whatever else reads it on the event loop is not half way through a row.
            room.write(deltas)
        if in_thread:
            return await asyncio.to_thread(updated, live, deltas, room)
        return updated(live, deltas, room)

    async def _beat(self, epoch: int, generation: int) -> None:
        at = time.monotonic() + self._clock_offset
        beat = Beat(epoch=epoch, generation=generation, at=at, pid=os.getpid())
        args = [self._worker_id.encode(), msgspec.json.encode(beat)]
        # By a function, which a store without memory takes: a switch of generations waits for workers.
        await self._client.call("beat", ([self._keys.workers], args))
