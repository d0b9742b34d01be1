"""A trainer with the neural engine on real stores: it publishes, goes on from itself, and who rates is folded
in.
"""

import asyncio
from pathlib import Path

import numpy as np

from featurestore.generations.follower import Follower
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.trainers import running_trainer, trainer_settings


def ratings(users: int, items: int, seed: int = 0) -> list[NewRating]:
    rng = np.random.default_rng(seed)
    taste, kind = rng.normal(size=users), rng.normal(size=items)
    return [
        NewRating(
            f"u{user}".encode(),
            f"i{item}".encode(),
            float(np.clip(np.round(3 + taste[user] * kind[item]), 1, 5)),
            1e9 + user,
        )
        for user in range(users)
        for item in rng.permutation(items)[:9]
    ]


async def refitted(store: Store) -> int:
    outcome = await store.commands.wait(await store.commands.ask("refit", epoch=1), 60)
    assert outcome is not None
    assert outcome.state == "done", outcome
    assert outcome.generation is not None
    return outcome.generation


async def test_goes_live_and_who_rates_is_folded_in(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    settings = trainer_settings(store_settings, tmp_path / "archive", engine="neural")
    follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
    following = asyncio.create_task(follower.run(stop), name="follower")
    async with running_trainer(settings):
        await store.ratings.append(ratings(60, 20))
        assert await wait_until_served(store.generations, 1, await refitted(store), 10, here=follower)
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
        meta = await store.generations.meta(1, await refitted(store))
    stop.set()
    await following
    assert meta.summary.engine == "neural"
    assert meta.summary.n_users == 64
