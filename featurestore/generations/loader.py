"""Loads generations, and the rows that were folded in since. Invariant: what is loaded was checked, and has
all that the store had when the load ended.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import GenerationBroken
from featurestore.generations.deltas import decode_deltas
from featurestore.generations.item_table_file import TableCache
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import (
    ACTIVITY,
    POSITIVES,
    RANKING,
    RANKING_INDEX,
    USER_ATTRIBUTES,
    GenerationMeta,
)
from featurestore.generations.states import as_fitted, room_for, updated

if TYPE_CHECKING:
    from featurestore.store import Store

log = logging.getLogger(__name__)

# Nothing waits for a load, and each read of deltas costs it a new state of the ranker.
DELTAS_AT_LOAD = 256
# More news are work for a thread.
INLINE_ROWS = 200
# A larger table goes to a thread with any news: it may have to be copied to make room for an item.
INLINE_TABLE_ROWS = 20_000


class GenerationLoader:
    """Loads generations of a `Store`, by files that the processes of a host share."""

    def __init__(self, store: "Store", cache_dir: Path) -> None:
        """Raises `StoreRefused` where `cache_dir` cannot be written."""
        self._store = store
        self._cache = TableCache(cache_dir, store.settings.namespace)

    async def load(self, epoch: int, generation: int) -> LiveGeneration:
        """Return a generation with the items folded in so far. Raises `StoreError`."""
        generations = self._store.generations
        meta = await generations.meta(epoch, generation)
        table = await self._cache.table(meta, generations.load_items(meta))
        index = await generations.load_index(meta) if meta.index_bytes else b""
        ranking = await self._blob(meta, RANKING), await self._blob(meta, RANKING_INDEX)
        activity = await self._blob(meta, ACTIVITY)
        users = await self._blob(meta, USER_ATTRIBUTES)
        positives = await self._blob(meta, POSITIVES)
        fitted = partial(
            as_fitted,
            *(meta, table, index, *ranking),
            activity_bytes=activity,
            positive_bytes=positives,
            user_attribute_bytes=users,
        )
        live = await asyncio.to_thread(fitted)
        deltas = self._store.keys.deltas(epoch, generation)
        while entries := await self._store.redis.xrange(deltas, f"({live.after}", "+", DELTAS_AT_LOAD):
            live = await self.with_deltas(live, entries)
        return live

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

    async def with_deltas(self, live: LiveGeneration, entries: Any, known: int = 0) -> LiveGeneration:
        """Return `live` with the entries of its stream. `known`: rows that have an item, be it without a
        delta.
        """
        key = self._store.keys.deltas(live.epoch, live.generation)
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

    async def remove_unused(self, generations: Collection[int], current: int) -> None:
        """Remove files of generations that are no longer there."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._cache.remove_unused, generations, current)
