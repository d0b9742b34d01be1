"""The states of a live generation: as it was fitted, then with what was folded in since. Invariant: the item
table and the ranking head of a state have the same items.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

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
from featurestore.generations.deltas import Deltas
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import GenerationMeta

log = logging.getLogger(__name__)

T = TypeVar("T")


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
    head_bytes: memoryview | None = None,
    head_index_bytes: memoryview | None = None,
    *,
    activity_bytes: memoryview | None = None,
    positive_bytes: memoryview | None = None,
    user_attribute_bytes: memoryview | None = None,
) -> LiveGeneration:
    """What is served of a generation, as it was fitted. `table` may have spare rows."""
    index = None
    if index_bytes:
        try:
            index = index_from_bytes(index_bytes, meta.model, meta.item_rows)
        except ModelUnreadable as exc:
            # Without it the answers are exact, and later.
            log.warning("the index of a generation cannot be used", extra={"why": str(exc)})
    posterior = posterior_of(meta.model)
    items = table[: meta.item_rows]
    ranking = _ranking(meta, posterior, head_bytes, head_index_bytes)
    positives = _usable(positives_from_bytes, positive_bytes, meta, "the positive events of the items")
    return LiveGeneration(
        epoch=meta.summary.epoch,
        generation=meta.summary.generation,
        posterior=posterior,
        items=items,
        n_items=len(items),
        scorer=Scorer(posterior, items),
        ranker=Ranker(posterior, items, index),
        meta=meta,
        ranking=ranking,
        likeness=None if ranking is None else HeadLikeness(ranking.head, weights_of(items, positives)),
        activity=_usable(activity_from_bytes, activity_bytes, meta, "the activity of the items"),
        positives=positives,
        user_attributes=user_attributes_of(posterior, user_attribute_bytes),
        by_events=ranking is not None
        and is_by_events(meta.summary.n_ratings, None if positives is None else positives.fitted),
        table=table,
    )


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
        counts = item_statistics(news.vectors).count.astype(np.int64)
        events = None if positives is None else positives.gained(news.rows.astype(np.int64))
        activity = activity.updated(news.rows, counts, room.n_items, events)
    after = news.after
    return replace(
        live,
        items=items,
        n_items=room.n_items,
        scorer=scorer,
        table=room.table,
        after=after,
        activity=activity,
        positives=positives,
    )
