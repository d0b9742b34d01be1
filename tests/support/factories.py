"""Small whole things for tests: models, tables, ratings, generations that a test can publish in one line."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from factors import (
    FitSettings,
    Float32s,
    Histories,
    Int64s,
    Link,
    Model,
    Ranker,
    RankingHead,
    Ratings,
    Scale,
    Scorer,
    fit_ranking,
    head_to_bytes,
    posterior_of,
    prior_model,
)
from featurestore.catalogue.item import CatalogueItem
from featurestore.codecs import pack_histories
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import ACTIVITY, HEAD_WAITS, RANKING, GenerationMeta, GenerationSummary
from featurestore.generations.writer import GenerationWriter
from featurestore.leases import Lease
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.servers import StoreServer
from tests.support.waiting import some

SCALE = Scale(1.0, 5.0)


def make_model(rank: int = 2, scale: Scale = SCALE, link: Link = "gaussian") -> Model:
    return prior_model(FitSettings(scale=scale, rank=rank, link=link))


def make_items(model: Model, n_items: int, seed: int = 0) -> Float32s:
    """An item table (n_items, item_width): items folded in from ratings of made-up users."""
    rng = np.random.default_rng(seed)
    users = np.repeat(posterior_of(model).prior_user[None], 5, axis=0)
    users = users + rng.normal(0.0, 0.3, users.shape).astype(np.float32) * (users != 0)
    offsets = np.arange(n_items + 1, dtype=np.int64) * 3
    rows = np.stack([rng.permutation(5)[:3] for _ in range(n_items)]).ravel() if n_items else np.empty(0)
    values = rng.uniform(model.scale.low, model.scale.high, len(rows))
    histories = Histories(offsets, rows.astype(np.int32), values, np.full(len(rows), np.nan))
    return posterior_of(model).fold_in_items(users, histories)


def make_head(n_items: int, seed: int = 0) -> RankingHead:
    """A ranking head of made-up users who chose items that lie side by side."""
    rng = np.random.default_rng(seed)
    n_users = 3 * n_items
    first = np.repeat(rng.integers(0, n_items, n_users), 3)
    item_row = (first + rng.integers(0, 3, len(first))) % n_items
    user_row = np.repeat(np.arange(n_users), 3)
    unknown = np.full(len(first), np.nan)
    ratings = Ratings(user_row.astype(np.int32), item_row.astype(np.int32), np.full(len(first), 3.0), unknown)
    return fit_ranking(ratings, n_users, n_items, rng=rng).head


def rating(user: str, item: str, value: float = 3.0, at: float = 1e9) -> NewRating:
    return NewRating(user.encode(), item.encode(), value, at)


def low_rank_ratings(users: int = 30, items: int = 12, seed: int = 0, prefix: str = "u") -> list[NewRating]:
    """Nine ratings of each user that a fit can learn: of rank one."""
    rng = np.random.default_rng(seed)
    taste, kind = rng.normal(size=users), rng.normal(size=items)
    return [
        NewRating(
            f"{prefix}{user}".encode(),
            f"i{item}".encode(),
            float(np.clip(np.round(3 + taste[user] * kind[item]), 1, 5)),
            1e9 + user,
        )
        for user in range(users)
        for item in rng.permutation(items)[:9]
    ]


def make_draft(
    model: Model, n_users: int = 0, n_items: int = 0, n_ratings: int = 0, *, epoch: int = 1
) -> GenerationSummary:
    counts, metrics = (n_users, n_items, n_ratings), {"rmse": 0.9, "nan": float("nan")}
    made = (model.rank, model.link, "variational")
    return GenerationSummary(0, epoch, "writing", time.time(), *made, *counts, metrics)


async def lead(store: Store, token: str = "test-trainer", ttl_ms: int = 60_000) -> Lease:
    return some(await store.leases.acquire(token, ttl_ms))


@dataclass(frozen=True, slots=True)
class Written:
    writer: GenerationWriter
    model: Model
    items: Float32s
    meta: GenerationMeta

    def rating_of(self, history: Histories, row: int) -> float:
        """The rating of an item row that this generation gives a user with this history."""
        posterior = posterior_of(self.model)
        user = posterior.fold_in_users(self.items, history)
        scores = Scorer(posterior, self.items).score(user, np.zeros(1, dtype=np.int64), np.array([row]))
        return float(scores.rating[0])


def as_live(written: Written, epoch: int = 1) -> LiveGeneration:
    posterior = posterior_of(written.model)
    return LiveGeneration(
        epoch=epoch,
        generation=written.writer.number,
        posterior=posterior,
        items=written.items,
        n_items=len(written.items),
        scorer=Scorer(posterior, written.items),
        ranker=Ranker(posterior, written.items),
        meta=written.meta,
    )


async def write_generation(
    store: Store,
    lease: Lease,
    *,
    epoch: int = 1,
    n_items: int = 8,
    users: Sequence[bytes] = (),
    seed: int = 0,
    model: Model | None = None,
    head: RankingHead | None = None,
    activity: bytes | None = None,
    items: Float32s | None = None,
    head_waits: bool = False,
) -> Written:
    """A finished generation with the records of `users` as of now, not live yet."""
    model = model or make_model()
    items = make_items(model, n_items, seed) if items is None else items
    draft = make_draft(model, len(users), n_items, epoch=epoch)
    if head_waits:
        draft = replace(draft, n_ratings=100, metrics={HEAD_WAITS: 1.0})
    writer = await store.generations.begin(lease, draft, {0: "1-1"})
    await writer.write_items(items, model)
    if head is not None:
        await writer.write_blob(RANKING, head_to_bytes(head))
    if activity is not None:
        await writer.write_blob(ACTIVITY, activity)
    if users:
        seen = [await store.users.history(epoch, user) for user in users]
        n: Int64s = np.array([n for n, _ in seen], dtype=np.int64)
        vectors = posterior_of(model).fold_in_users(items, pack_histories([history for _, history in seen]))
        await writer.write_users(users, n, vectors)
    return Written(writer, model, items, await writer.finish())


async def publish(store: Store, lease: Lease, **options: Any) -> Written:
    """The same, live."""
    written = await write_generation(store, lease, **options)
    assert await written.writer.flip(automatic=False)
    return written


async def put_items(store: Store, *items: CatalogueItem) -> None:
    """Let the catalogue have these items, whatever it has under their ids."""
    await store.catalogue.change({item.item_id.encode(): partial(_becomes, item) for item in items})


def _becomes(item: CatalogueItem, _before: CatalogueItem | None) -> CatalogueItem:
    return item


async def keys_of(store: Store, after: str = "*") -> list[bytes]:
    """The keys of the store's namespace; `after`: a pattern of what stands behind its name."""
    pattern = f"*{store.settings.namespace}{after}"
    return [key async for key in store.redis.scan_iter(match=pattern, count=1000)]


async def publish_for_ann(
    store: Store, ratings: Mapping[str, float], n_items: int = 8, **options: Any
) -> Written:
    """A live generation of `item-0`, `item-1` and so on, that knows user `ann` by these ratings, if any."""
    await store.items(1).register([b"item-%d" % row for row in range(n_items)])
    await store.ratings.append([rating("ann", item, value) for item, value in ratings.items()])
    users = [b"ann"] if ratings else []
    return await publish(store, await lead(store), n_items=n_items, users=users, **options)


@asynccontextmanager
async def opened(at: StoreServer | StoreSettings, *, hot: bool = True) -> AsyncIterator[Store]:
    if isinstance(at, StoreServer):
        at = StoreSettings(url=at.url, partitions=4, timeout_s=30.0)
    store = await Store.open(at, hot=hot)
    try:
        yield store
    finally:
        await store.close()
