"""A trainer with the neural engine: it publishes, goes on from itself, and who rates is folded in."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from featurestore.generations.follower import Follower
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings as ratings
from tests.support.trainers import fitted, running_trainer, trainer_settings

pytestmark = pytest.mark.slow


async def test_goes_live_and_who_rates_is_folded_in(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    settings = trainer_settings(store_settings, tmp_path / "archive", engine="neural")
    follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
    following = asyncio.create_task(follower.run(stop), name="follower")
    async with running_trainer(settings):
        await store.ratings.append(ratings(60, 20))
        assert await wait_until_served(store.generations, 1, await fitted(store), 10, here=follower)
        live = follower.live
        assert live is not None
        liked, disliked = NewRating(b"likes", b"i1", 5.0, 1e9), NewRating(b"dislikes", b"i1", 1.0, 1e9)
        await store.ratings.append([liked, disliked])
        current = await store.users.current(live, [b"likes", b"dislikes", b"u1"])
        assert current.n.tolist() == [1, 1, 9]
        assert current.folded.tolist() == [True, True, False]
        row = store.items(1).row(b"i1")
        assert row is not None
        scores = live.scorer.score(current.vectors, np.arange(3), np.full(3, row))
        assert scores.rating[0] > scores.rating[1]
        await store.ratings.append(ratings(62, 25, seed=1))
        meta = await store.generations.meta(1, await fitted(store))
    stop.set()
    await following
    assert meta.summary.engine == "neural"
    assert meta.summary.n_users == 64
