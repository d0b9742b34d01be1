"""The ranking head and the index of a running stack: published, loaded by services, kept up to date."""

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factors import Float32s, Index, Model, Ranker
from factors.model.layout import item_layout
from featurestore.codecs import pack_histories
from featurestore.generations.served import wait_until_served
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.support.following import following, head_of, live_of
from tests.support.trainers import fitted, running_trainer
from tests.support.waiting import wait_until_async
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.results import FitResult
from trainer.publication import publish as publisher
from trainer.settings import TrainerSettings

GROUPS, PER_GROUP, USERS, LISTS = 4, 10, 60, 8
pytestmark = pytest.mark.usefixtures("quick_rounds")


def given() -> list[NewRating]:
    rng = np.random.default_rng(4)
    return [
        NewRating(
            b"u%d" % user, b"i%d" % (user % GROUPS * PER_GROUP + item), float(rng.integers(1, 6)), 1e9 + k
        )
        for user in range(USERS)
        for k, item in enumerate(rng.permutation(PER_GROUP)[:7].tolist())
    ]


def small_index(model: Model, items: Float32s, users: Float32s, rng: np.random.Generator) -> Index:
    centres = np.ascontiguousarray(items[:LISTS, item_layout(model).mean])
    return Index(centres, (np.arange(len(items)) % LISTS).astype(np.uint16), 1, 0.97)


async def test_a_fit_is_published_with_an_index_that_is_used_and_a_head_that_new_items_join(
    store: Store, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "build_index", small_index)

    async def joined(item: bytes) -> int:
        def known(row: int | None) -> bool:
            items = head_of(follower).items
            return row is not None and row < len(items) and bool(items[row].any())

        what = f"{item!r} in the head of the service"
        return int(await wait_until_async(lambda: store.items(1).row(item), what, known))

    async with following(store, tmp_path / "cache") as follower:
        async with running_trainer(settings):
            await store.ratings.append(given())
            generation = await fitted(store)
            assert await wait_until_served(store.generations, 1, generation, 100, here=follower)
            live = live_of(follower)
            assert live.meta.summary.metrics["index_recall_at_10"] == 0.97
            without = Ranker(live.posterior, live.items)
            assert live.ranker.multiplications(1) < without.multiplications(1)
            profile = await store.users.profile(live, b"u3")
            known = profile.history.item_row[:5]
            (found,) = live.ranker.top(profile.vector[None], 2, [known])
            assert len(set(found.item_rows.tolist()) - set(known.tolist())) == 2
            # Chosen by users of group 0: two who were in the fit, and two who were not.
            raters = [b"u0", b"u4", b"x1", b"x2"]
            others = [NewRating(user, b"i%d" % row, 4.0, 2e9) for user in raters[2:] for row in range(4)]
            await store.ratings.append(others)
            await store.ratings.append([NewRating(user, b"fresh", 4.0, 2e9 + 9) for user in raters])
            row = await joined(b"fresh")
            # Relevant to those of its group who have not chosen it, not to those of another.
            relevance = {}
            for user in (b"u8", b"u1"):
                _, history = await store.users.history(1, user)
                scores = head_of(follower).scores(pack_histories([history]), np.array([row]))
                relevance[user] = float(scores[0])
            assert relevance[b"u8"] > relevance[b"u1"] + 0.1
        # A trainer that starts folds in again what came after the fit, from the archive.
        async with running_trainer(settings):
            await store.ratings.append([NewRating(user, b"later", 4.0, 2e9 + 20) for user in (b"u0", b"x1")])
            await joined(b"later")
            assert live_of(follower).generation == generation


async def test_predictions_of_many_new_ratings_do_not_wait_for_lists(
    store: Store, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def has_head(generation: int) -> bool:
        await wait_until_async(
            lambda: follower.live and follower.live.generation == generation, "it is served"
        )
        return follower.live is not None and follower.live.ranking is not None

    looked, fits = asyncio.Event(), count()

    async def one_by_one(request: FitRequest, *files: Any, **more: Any) -> FitResult:
        if next(fits):
            # At once it would not be seen that there is none before.
            await looked.wait()
        return await fit_in_process(request, *files, **more)

    monkeypatch.setattr("trainer.fit_job.job.HEAD_AT_ONCE", USERS)
    monkeypatch.setattr("trainer.refit.fit_in_process", one_by_one)
    async with following(store, tmp_path / "cache") as follower, running_trainer(settings):
        await store.ratings.append(given())
        first = await fitted(store)
        assert not await has_head(first)
        looked.set()
        # The head is not asked for: it comes with a fit that goes on from this one.
        assert await has_head(first + 1)
        # What is new by now is little beside what is known: lists and predictions change together.
        await store.ratings.append([NewRating(b"x", b"i1", 4.0, 2e9)])
        assert await has_head(await fitted(store))
