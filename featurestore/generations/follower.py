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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from factors import (
    Float32s,
    ModelUnreadable,
    PosteriorModel,
    Ranker,
    Scorer,
    index_from_bytes,
    posterior_of,
)
from featurestore.client import StorePipeline
from featurestore.errors import StoreError
from featurestore.generations.item_table_file import TableCache
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import (
    Beat,
    Deltas,
    GenerationMeta,
    Kept,
    Pointer,
    decode_deltas,
    latest,
    read_pointer,
)

if TYPE_CHECKING:
    from featurestore.store import Store

log = logging.getLogger(__name__)

# Four beats fit into the two seconds after which a worker counts as gone.
BEAT_S = 0.5
# Half a millisecond of this event loop; what is left comes with the next poll, at once.
DELTAS_AT_ONCE = 64
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

    def __init__(self, store: "Store", cache_dir: Path, worker_id: str, poll_s: float = 0.1) -> None:
        """Raises `StoreRefused` where `cache_dir` cannot be written."""
        self._store = store
        self._keys = store.keys
        self._client = store.redis
        self._cache = TableCache(cache_dir, store.settings.namespace)
        self._worker_id = worker_id
        self._poll_s = poll_s
        self.live: LiveGeneration | None = None
        self.pointer: Pointer | None = None
        self.loads_total = 0
        self.failures_total = 0
        self.polled_at = float("-inf")
        self._after = "0"
        # The table that the items of `live` are the first rows of.
        self._room: Float32s | None = None
        self._numbers: frozenset[int] = frozenset()
        self._clock_offset = 0.0
        self._beaten_at = float("-inf")
        self._beaten: tuple[int, int] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._load_at = float("-inf")

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set. Errors of the store are logged and tried again."""
        failing = False
        try:
            while not stop.is_set():
                try:
                    more = await self._poll()
                    failing = False
                except StoreError as exc:
                    more = False
                    self.failures_total += 1
                    if not failing:
                        log.warning("polling the store failed", extra={"why": str(exc)})
                    failing = True
                if not more:
                    with contextlib.suppress(TimeoutError):
                        # `wait_for` of Python 3.11 drops a cancellation that comes as `stop` is set.
                        async with asyncio.timeout(self._poll_s):
                            await stop.wait()
        finally:
            if self._loading is not None:
                self._loading.cancel()
                await asyncio.gather(self._loading, return_exceptions=True)
        await self._say_goodbye()

    async def _poll(self) -> bool:
        """Poll once; return whether there is more to be read at once."""
        live = self.live
        # One round trip, ten times a second: 0.13 ms of this event loop.
        pipe = self._client.pipeline()
        pipe.time()
        pipe.hgetall(self._keys.live)
        pipe.hkeys(self._keys.generations)
        items = None
        if live is not None:
            items = self._store.items(live.epoch)
            known = len(items)
            deltas = self._keys.deltas(live.epoch, live.generation)
            pipe.xrange(deltas, f"({self._after}", "+", DELTAS_AT_ONCE)
            pipe.lrange(self._keys.order(live.epoch), known, known + ITEMS_AT_ONCE - 1)
            self._add_beat(pipe, live)
        (seconds, microseconds), pointer_fields, numbers, *rest = await pipe.execute()
        now = time.monotonic()
        self._clock_offset = seconds + microseconds / 1e6 - now
        self.pointer = pointer = read_pointer(pointer_fields)
        self._numbers = frozenset(map(int, numbers))
        self._store.users.kept = Kept.of(self._numbers)
        self.polled_at = now
        more = False
        if live is not None and items is not None and live is self.live:
            entries, ids = rest[:2]
            items.learn(range(known, known + len(ids)), ids)
            if entries:
                await self._apply(live, decode_deltas(entries, live.model.item_width, self._after))
            more = len(entries) == DELTAS_AT_ONCE or len(ids) == ITEMS_AT_ONCE
        # What the pointer names is loaded, unless it is here or being loaded.
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
        return more

    async def _load(self, epoch: int, generation: int) -> None:
        """Load a generation and serve it."""
        generations = self._store.generations
        try:
            meta = await generations.meta(epoch, generation)
            table = await self._cache.table(meta, generations.load_items(meta))
            deltas = latest(await generations.read_deltas(meta))
            await self._store.items(epoch).refresh()
            index = await generations.load_index(meta) if meta.index_bytes else b""
            live, room = await asyncio.to_thread(_live_generation, meta, table, deltas, index)
            if self.live is not None or await self._announce(epoch, generation):
                self.live, self._after, self._room = live, deltas.after, room
                self.loads_total += 1
                shown = {"epoch": epoch, "generation": generation, "items": live.n_items}
                log.info("generation live", extra=shown)
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._cache.remove_unused, self._numbers, generation)
            self._load_at = float("-inf")
        except StoreError as exc:
            # Keep the one that serves; the next poll tries again, or finds that the pointer has moved on.
            self._load_at = time.monotonic()
            self.failures_total += 1
            log.warning("loading a generation failed", extra={"generation": generation, "why": str(exc)})

    async def _announce(self, epoch: int, generation: int) -> bool:
        """Say what this worker is about to serve; return whether that is still the live generation."""
        # Said first, asked second: a process that switches epochs either sees this worker and waits for it,
        # or had switched before.
        pipe = self._client.pipeline()
        pipe.hset(self._keys.workers, self._worker_id, self._encode_beat(epoch, generation))
        pipe.hgetall(self._keys.live)
        _, fields = await pipe.execute()
        self.pointer = read_pointer(fields)
        return (self.pointer.epoch, self.pointer.generation) == (epoch, generation)

    async def _apply(self, live: LiveGeneration, deltas: Deltas) -> None:
        news = latest(deltas)
        n_items = max(live.n_items, int(news.rows.max(initial=-1)) + 1)
        room = live.items if self._room is None else self._room
        if len(news.rows) > INLINE_ROWS or live.n_items > INLINE_TABLE_ROWS:
            room, scorer = await asyncio.to_thread(_update, live, room, news, n_items)
        else:
            room, scorer = _update(live, room, news, n_items)
        # A load that ended meanwhile has read these deltas, or does not need them.
        if self.live is live:
            self._after, self._room = deltas.after, room
            self.live = replace(live, items=scorer.items, scorer=scorer, n_items=n_items)

    def _add_beat(self, pipe: StorePipeline, live: LiveGeneration) -> None:
        """Tell twice a second, and at once after a change, what this worker serves."""
        now = time.monotonic()
        serves = (live.epoch, live.generation)
        if serves != self._beaten or now - self._beaten_at >= BEAT_S:
            self._beaten, self._beaten_at = serves, now
            pipe.hset(self._keys.workers, self._worker_id, self._encode_beat(*serves))

    def _encode_beat(self, epoch: int, generation: int) -> bytes:
        at = time.monotonic() + self._clock_offset
        return msgspec.json.encode(Beat(epoch=epoch, generation=generation, at=at, pid=os.getpid()))

    async def _say_goodbye(self) -> None:
        with contextlib.suppress(StoreError):
            await self._client.hdel(self._keys.workers, self._worker_id)


def _live_generation(
    meta: GenerationMeta, table: Float32s, deltas: Deltas, index_bytes: bytes
) -> tuple[LiveGeneration, Float32s]:
    """What is served of a generation, and the table that its items are the first rows of."""
    index = None
    if index_bytes:
        try:
            index = index_from_bytes(index_bytes, meta.model, meta.item_rows)
        except ModelUnreadable as exc:
            # Without it the answers are exact, and later.
            log.warning("the index of a generation cannot be used", extra={"why": str(exc)})
    posterior = posterior_of(meta.model)
    n_items = max(meta.item_rows, int(deltas.rows.max(initial=-1)) + 1)
    room = _with_rows(posterior, table, meta.item_rows, deltas)
    items = room[:n_items]
    live = LiveGeneration(
        epoch=meta.summary.epoch,
        generation=meta.summary.generation,
        posterior=posterior,
        items=items,
        n_items=n_items,
        scorer=Scorer(posterior, items),
        ranker=Ranker(posterior, items, index),
        meta=meta,
    )
    return live, room


def _update(live: LiveGeneration, room: Float32s, news: Deltas, n_items: int) -> tuple[Float32s, Scorer]:
    """The table with the `news`, and a scorer of its first `n_items` rows."""
    room = _with_rows(live.posterior, room, live.n_items, news)
    if n_items == live.n_items:
        live.ranker.update(news.rows, live.items)
        return room, live.scorer
    items = room[:n_items]
    live.ranker.update(news.rows, items)
    return room, Scorer(live.posterior, items)


def _with_rows(posterior: PosteriorModel, room: Float32s, n_items: int, news: Deltas) -> Float32s:
    """The table of `n_items` rows and spare ones with the `news`; rows between are the prior. A copy, with an
    eighth more rows, where it was too small.
    """
    needed = max(n_items, int(news.rows.max(initial=-1)) + 1)
    if needed > len(room):
        larger = np.empty((needed + needed // 8 + 1024, room.shape[1]), dtype=room.dtype)
        larger[:n_items] = room[:n_items]
        room = larger
    room[n_items:needed] = posterior.prior_item
    room[news.rows] = news.vectors
    return room
