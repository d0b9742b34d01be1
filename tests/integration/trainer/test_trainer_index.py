"""The index of a large catalogue: built by the trainer, shown, and used by services wherever they are."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from factors import Float32s, Index, Model
from factors.model.layout import item_layout
from featurestore.generations.follower import Follower
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.trainers import running_trainer, trainer_settings
from trainer.publication import publish as publisher

LISTS = 8


def small_index(model: Model, items: Float32s, users: Float32s, rng: np.random.Generator) -> Index:
    """An index of any catalogue, however small."""
    centres = np.ascontiguousarray(items[:LISTS, item_layout(model).mean])
    return Index(centres, (np.arange(len(items)) % LISTS).astype(np.uint16), 1, 0.97)


async def test_an_index_is_published_with_its_recall_and_loaded(
    store: Store, store_settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "build_index", small_index)
    follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
    following = asyncio.create_task(follower.run(stop))
    given = [
        NewRating(b"u%d" % user, b"i%d" % item, float(1 + (user * item) % 5), 1e9)
        for user in range(12)
        for item in range(20)
    ]
    async with running_trainer(trainer_settings(store_settings, tmp_path / "archive")):
        await store.ratings.append(given)
        command = await store.commands.ask("refit", epoch=1)
        outcome = await store.commands.wait(command, 60)
        assert outcome is not None
        assert outcome.generation is not None
        assert await wait_until_served(store.generations, 1, outcome.generation, 10, here=follower)
    live = follower.live
    assert live is not None
    assert live.meta.summary.metrics["index_recall_at_10"] == 0.97
    assert live.meta.summary.index_chunks == 1
    assert live.ranker.multiplications(1) == pytest.approx(2 / LISTS * live.ranker.multiplications())
    profile = await store.users.profile(live, b"u3")
    (found,) = live.ranker.top(profile.vector[None], 2, [profile.history.item_row[:5]])
    assert len(found.item_rows) == 2
    assert not np.intersect1d(found.item_rows, profile.history.item_row[:5]).size
    stop.set()
    await following
