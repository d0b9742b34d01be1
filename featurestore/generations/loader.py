"""Loads generations, and the rows that were folded in since. Invariant: what is loaded was checked, and has
all that the store had when the load ended; the item table and the ranking head of a state have the same
items.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from factors import (
    BlendedRanker,
    Float32s,
    Float64s,
    HeadLikeness,
    Int64s,
    ModelUnreadable,
    PosteriorModel,
    Ranker,
    RankingHead,
    Scorer,
    SideAttributes,
    head_from_bytes,
    index_from_bytes,
    item_statistics,
    popular_factors,
    posterior_of,
    read_index,
    side_attributes_from_bytes,
)
from featurestore.errors import GenerationBroken
from featurestore.generations.activity import (
    Positives,
    activity_from_bytes,
    is_by_events,
    positives_from_bytes,
)
from featurestore.generations.deltas import Deltas, decode_deltas
from featurestore.generations.item_table_file import TableCache
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import (
    ACTIVITY,
    HEAD_WAITS,
    POSITIVES,
    RANKING,
    RANKING_INDEX,
    USER_ATTRIBUTES,
    GenerationMeta,
)

if TYPE_CHECKING:
    from featurestore.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

# What lies beside the items and is served.
BLOBS = (RANKING, RANKING_INDEX, ACTIVITY, USER_ATTRIBUTES, POSITIVES)
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
        blobs = {name: await self._blob(meta, name) for name in BLOBS}
        live = await asyncio.to_thread(as_fitted, meta, table, index, blobs)
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
        rank = 0 if live.by_popularity else live.rank
        deltas = decode_deltas(entries, live.model.item_width, live.after, key, rank)
        if live.by_popularity:
            counts = item_statistics(deltas.vectors).count.astype(np.float64)
            factors = popular_factors(counts, live.meta.summary.n_users)
            deltas = replace(deltas, ranked=deltas.rows, factors=factors)
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


@dataclass(frozen=True, slots=True)
class Room:
    """Where deltas are written: a table with room for them, of which `n_items` rows will be items, and the
    ranking head, if there is one, with as many.
    """

    table: Float32s
    n_items: int
    head: RankingHead | None

    def write(self, news: Deltas) -> None:
        """Write the `news`."""
        self.table[news.rows] = news.vectors
        if self.head is not None:
            self.head.items[news.ranked] = news.factors


def as_fitted(
    meta: GenerationMeta,
    table: Float32s,
    index_bytes: bytes,
    blobs: Mapping[str, memoryview | None],
) -> LiveGeneration:
    """What is served of a generation, as it was fitted. `table` may have spare rows; `blobs`: by name."""
    index = None
    if index_bytes:
        try:
            index = index_from_bytes(index_bytes, meta.model, meta.item_rows)
        except ModelUnreadable as exc:
            # Without it the answers are exact, and later.
            log.warning("the index of a generation cannot be used", extra={"why": str(exc)})
    posterior = posterior_of(meta.model)
    items = table[: meta.item_rows]
    ranking = _ranking(meta, posterior, blobs[RANKING], blobs[RANKING_INDEX])
    by_popularity = ranking is None and meta.summary.n_ratings > 0 and HEAD_WAITS in meta.summary.metrics
    positives = _usable(positives_from_bytes, blobs[POSITIVES], meta, "the positive events of the items")
    return LiveGeneration(
        epoch=meta.summary.epoch,
        generation=meta.summary.generation,
        posterior=posterior,
        items=items,
        n_items=len(items),
        scorer=Scorer(posterior, items),
        ranker=Ranker(posterior, items, index),
        meta=meta,
        ranking=_popular(meta, posterior, items) if by_popularity else ranking,
        likeness=None if ranking is None else HeadLikeness(ranking.head, weights_of(items, positives)),
        by_popularity=by_popularity,
        activity=_usable(activity_from_bytes, blobs[ACTIVITY], meta, "the activity of the items"),
        positives=positives,
        user_attributes=user_attributes_of(posterior, blobs[USER_ATTRIBUTES]),
        by_events=ranking is not None
        and is_by_events(meta.summary.n_ratings, None if positives is None else positives.fitted),
        table=table,
    )


def _popular(meta: GenerationMeta, posterior: PosteriorModel, items: Float32s) -> BlendedRanker:
    """Return what ranks until the head of a fit is there: how often items are chosen."""
    counts = item_statistics(items).count.astype(np.float64)
    return BlendedRanker(RankingHead.of_popularity(counts, meta.summary.n_users), posterior)


def _usable(
    read: Callable[[memoryview, int], T], data: memoryview | None, meta: GenerationMeta, what: str
) -> T | None:
    """What is stored beside a generation; None where there is nothing, or this version cannot read it."""
    try:
        return None if data is None else read(data, meta.item_rows)
    except GenerationBroken as exc:
        log.warning("%s cannot be used", what, extra={"why": str(exc)})
        return None


def weights_of(items: Float32s, positives: Positives | None) -> Callable[[Int64s], Float64s]:
    """What the ratings and the positive events of items weigh (m,), by their rows (m,)."""

    def weigh(rows: Int64s) -> Float64s:
        found = item_statistics(items[rows]).count.astype(np.float64)
        return found if positives is None else found + positives.weights[rows]

    return weigh


def user_attributes_of(posterior: PosteriorModel, data: memoryview | None) -> SideAttributes | None:
    """How attributes of users are encoded; None where they play no part, or cannot be read."""
    try:
        known = None if data is None else side_attributes_from_bytes(data)
    except ModelUnreadable as exc:
        log.warning("attributes of users cannot be used", extra={"why": str(exc)})
        return None
    fits = known is not None and known.encoding.width == posterior.parameters.users.attribute_width
    return known if fits else None


def _ranking(
    meta: GenerationMeta,
    posterior: PosteriorModel,
    head_bytes: memoryview | None,
    index_bytes: memoryview | None,
) -> BlendedRanker | None:
    """What ranks by the head of a generation; None where there is none that this version reads."""
    if head_bytes is None:
        return None
    try:
        head = head_from_bytes(head_bytes, meta.item_rows)
    except ModelUnreadable as exc:
        # Without it lists are by expected rating, as those of a generation that never had one.
        log.warning("the ranking head of a generation cannot be used", extra={"why": str(exc)})
        return None
    index = None
    if index_bytes is not None:
        try:
            index = read_index(bytes(index_bytes), head.parameters.rank, meta.item_rows)
        except ModelUnreadable as exc:
            log.warning("the index of a ranking head cannot be used", extra={"why": str(exc)})
    return BlendedRanker(head, posterior, index)


def room_for(live: LiveGeneration, news: Deltas, known: int) -> Room:
    """Return room for the `news` and for `known` rows; rows that are in between are the prior."""
    table = live.items if live.table is None else live.table
    n_items = max(live.n_items, known, int(news.rows.max(initial=-1)) + 1)
    if n_items > len(table):
        # An eighth more, so that a table that grows row by row is copied a few times, not each time.
        table = np.empty((n_items + n_items // 8 + 1024, table.shape[1]), dtype=table.dtype)
        table[: live.n_items] = live.items
    table[live.n_items : n_items] = live.posterior.prior_item
    # For its pages alone: those that are on the disk only are read here, not by who writes to them.
    table.take(news.rows, axis=0)
    if live.ranking is None:
        return Room(table, n_items, None)
    head = live.ranking.with_room(n_items)
    head.items.take(news.ranked, axis=0)
    return Room(table, n_items, head)


def updated(live: LiveGeneration, news: Deltas, room: Room) -> LiveGeneration:
    """The generation with the items of `room`, in which the `news` are."""
    items, scorer = live.items, live.scorer
    if room.n_items > live.n_items:
        items = room.table[: room.n_items]
        scorer = Scorer(live.posterior, items)
    positives = live.positives
    if positives is not None:
        positives = positives.updated(news.counted, news.positives, room.n_items)
    # Before what ranks: of an item that is in a list it is asked how like others it is.
    if live.likeness is not None and room.head is not None:
        changed = np.union1d(news.rows, news.counted)
        live.likeness.update(changed, room.head, weights_of(items, positives))
    live.ranker.update(news.rows, items)
    if live.ranking is not None and room.head is not None:
        live.ranking.follow(news.ranked, room.head)
    activity = live.activity
    if activity is not None:
        activity = activity.updated(news.rated, news.levels[:, 0], room.n_items)
    return replace(
        live,
        items=items,
        n_items=room.n_items,
        scorer=scorer,
        table=room.table,
        after=news.after,
        activity=activity,
        positives=positives,
    )
