"""Followers for tests: they load what is live, as a worker's does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from factors import RankingHead
from featurestore.generations.follower import Follower
from featurestore.generations.live import LiveGeneration
from featurestore.store import Store
from tests.support.waiting import some


def live_of(follower: Follower) -> LiveGeneration:
    return some(follower.live)


def head_of(follower: Follower) -> RankingHead:
    return some(live_of(follower).ranking).head


@asynccontextmanager
async def following(store: Store, folder: Path, name: str = "w") -> AsyncIterator[Follower]:
    follower = Follower(store, folder, name, 0.02)
    stop = asyncio.Event()
    task = asyncio.create_task(follower.run(stop))
    try:
        yield follower
    finally:
        stop.set()
        await task
