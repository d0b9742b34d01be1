"""Generations of any size, made instead of fitted, and their way into a store.

Invariant: the tables have the layout and the distribution of a real fit, because they grow out of a small
one: rows are drawn from it and moved a little, so that no two are alike.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.data.datasets import synthetic
from benchmarks.data.made_head import MadeHead
from factors import FitSettings, Index, Model, Scale, fit, head_to_bytes, index_to_bytes
from factors.engine_api import vector_columns
from featurestore.generations.manifest import RANKING, RANKING_INDEX, GenerationSummary
from featurestore.leases import Lease
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store

SCALE = Scale(1, 5, 0.5)
SCALE_TEXT = "1:5:0.5"
# Users and items written at a time: 2 MB of records.
BATCH = 10_000
# Longer than the slowest batch, on a machine whose cores are all busy.
LEASE_MS = 60_000
# Of the standard deviation of the small fit's rows.
MOVED_BY = 0.1


@dataclass(frozen=True, slots=True)
class Generation:
    """A model with its tables: `users` float32 (n_users, user_width), `items` float32 (n_items, item_width).

    User and item ids are the rows in decimal. `index`: of the items, as the trainer would publish it, if
    wanted. `ranking`: the head beside it, whose users have rated what it says, if wanted; without one each
    user has rated once.
    """

    model: Model
    users: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    items: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    index: Index | None = None
    ranking: MadeHead | None = None

    def rated(self, user: int) -> list[int]:
        """Return the item rows that a user has rated."""
        return [user % len(self.items)] if self.ranking is None else self.ranking.rated[user].tolist()


def make(n_users: int, n_items: int, *, rank: int, seed: int) -> Generation:
    """Return a generation of that size; a small world is fitted in about a second."""
    rng = np.random.default_rng(seed)
    world = synthetic(600, 400, 24_000, rank=rank, seed=seed, scale=SCALE)
    settings = FitSettings(SCALE, rank=rank, link="gaussian", sweeps=3)
    with threadpool_limits(1, user_api="blas"):  # threads cost more than they bring at this size
        fitted = fit(world.ratings, world.n_users, world.n_items, settings=settings, rng=rng)
    # Fitted tables and not random numbers: scores, covariances and lookups then cost what they cost in life.
    users = _grown(fitted.users, n_users, vector_columns(rank), rng)
    items = _grown(fitted.items, n_items, vector_columns(rank), rng)
    return Generation(fitted.model, users, items)


def _grown(
    table: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    rows: int,
    columns: slice,
    rng: np.random.Generator,
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    grown: np.ndarray[tuple[int, int], np.dtype[np.float32]] = np.empty(
        (rows, table.shape[1]), dtype=np.float32
    )
    step = (MOVED_BY * table[:, columns].std(axis=0)).astype(np.float32)
    # In parts: random numbers for a million rows at once would take as much memory again.
    for start in range(0, rows, 65_536):
        part = slice(start, min(start + 65_536, rows))
        size = part.stop - part.start
        grown[part] = table[rng.integers(0, len(table), size)]
        grown[part, columns] += rng.standard_normal((size, len(step)), dtype=np.float32) * step
    return grown


def store_settings(url: str) -> StoreSettings:
    """Return the settings for a store that holds synthetic generations."""
    # Timeouts are long: while a generation is loaded, this process and the store share a core.
    return StoreSettings(url=url, scale=SCALE_TEXT, stream_limit=10_000_000, timeout_s=30.0)


def ids(start: int, stop: int) -> list[bytes]:
    """Return the ids of these rows."""
    return [b"%d" % row for row in range(start, stop)]


def load(url: str, generation: Generation) -> int:
    """Register the items, give each user one rating, publish; return the number of the live generation."""
    return asyncio.run(_load(url, generation))


async def _load(url: str, generation: Generation) -> int:
    store = await Store.open(store_settings(url), hot=False)
    try:
        epoch = (await store.generations.live()).epoch
        registry = store.items(epoch)
        n_items = len(generation.items)
        for start in range(0, n_items, BATCH):
            rows = await registry.register(ids(start, min(start + BATCH, n_items)))
            assert rows[0] == start
        # One rating each: of a user without any the counter rule takes the prior, not the record.
        n_users = len(generation.users)
        now = time.time()
        for start in range(0, n_users, BATCH):
            users = range(start, min(start + BATCH, n_users))
            given = [
                NewRating(b"%d" % u, b"%d" % row, 3.0, now) for u in users for row in generation.rated(u)
            ]
            for first in range(0, len(given), BATCH):
                await store.ratings.append(given[first : first + BATCH])
        lag = await store.stream.lag(epoch)
        assert sum(lag.values()) == n_users * len(generation.rated(0))
        return await _publish(store, epoch, generation)
    finally:
        await store.close()


@asynccontextmanager
async def leading(store: Store) -> AsyncIterator[Lease]:
    """Hold the lease of the store: a million users take longer to write than it lasts by itself."""
    lease = await store.leases.acquire("benchmark", LEASE_MS)
    assert lease is not None

    async def keep() -> None:
        while True:
            # Four times before it runs out: a renewal may be late by all but one of them.
            await asyncio.sleep(LEASE_MS / 4000)
            await lease.renew()

    keeper = asyncio.create_task(keep(), name="keep the lease")
    try:
        yield lease
    finally:
        keeper.cancel()
        await asyncio.wait({keeper})
        await lease.release()


async def _publish(store: Store, epoch: int, generation: Generation) -> int:
    n_users = len(generation.users)
    draft = GenerationSummary(
        generation=0,
        epoch=epoch,
        state="writing",
        created=time.time(),
        rank=generation.model.rank,
        link=generation.model.link,
        engine="variational",
        n_users=n_users,
        n_items=len(generation.items),
        n_ratings=n_users,
        metrics={},
    )
    async with leading(store) as lease:
        writer = await store.generations.begin(lease, draft, {})
        await writer.write_items(generation.items, generation.model)
        if generation.index is not None:
            await writer.write_index(index_to_bytes(generation.index))
        if (ranking := generation.ranking) is not None:
            await writer.write_blob(RANKING, head_to_bytes(ranking.head))
            if ranking.index is not None:
                await writer.write_blob(RANKING_INDEX, index_to_bytes(ranking.index))
        for start in range(0, n_users, BATCH):
            users = slice(start, min(start + BATCH, n_users))
            count = np.full(users.stop - users.start, len(generation.rated(0)), dtype=np.int64)
            await writer.write_users(ids(users.start, users.stop), count, generation.users[users])
        await writer.finish()
        assert await writer.flip()
        return writer.number
