"""What a running stack publishes: ranking head and index; how well it predicts the ratings that arrive."""

import asyncio
from itertools import count, cycle
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
from tests.support.factories import low_rank_ratings
from tests.support.following import following, head_of, live_of
from tests.support.trainers import fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import some, wait_until_async
from trainer.app import Trainer
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.result_files import read_result
from trainer.fit_job.results import FitResult
from trainer.gate import Policy
from trainer.health.metrics import of_term
from trainer.publication import publish as publisher
from trainer.settings import TrainerSettings

GROUPS, PER_GROUP, USERS, LISTS = 4, 10, 60, 8
pytestmark = pytest.mark.usefixtures("quick_rounds")


def given() -> list[NewRating]:
    rng = np.random.default_rng(4)
    return [
        NewRating(b"u%d" % user, b"i%d" % item, float(rng.integers(1, 6)), 1e9 + k)
        for user in range(USERS)
        for k, item in enumerate((user % GROUPS * PER_GROUP + rng.permutation(PER_GROUP)[:7]).tolist())
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
        await wait_until_async(lambda: follower.live and follower.live.generation == generation, "served")
        live = follower.live
        return live is not None and live.ranking is not None and not live.by_popularity

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


# Whatever it is like, it goes live.
NO_GATE = Policy(baseline=float("inf"), live=float("inf"))


async def predicted(trainer: Trainer, store: Store, given: list[NewRating]) -> dict[str, float]:
    """Bring ratings, the same once more where they are not enough, until over 100 were predicted."""
    parts = cycle([given[start : start + 60] for start in range(0, len(given), 60)])
    sent = 0

    async def enough() -> bool:
        nonlocal sent
        part = next(parts)
        sent += len(part)
        await store.ratings.append(part)
        await until_drained(store)
        return measured(trainer).get("ratings", 0.0) > 100

    async def all_taken() -> bool:
        before = measured(trainer)
        await asyncio.sleep(0.2)
        arriving = trainer.term.arriving if trainer.term else None
        return arriving is not None and arriving.arrivals.empty() and measured(trainer) == before

    await wait_until_async(enough, "ratings are predicted")
    await wait_until_async(all_taken, "no more are being predicted")
    assert measured(trainer)["ratings"] <= sent
    return measured(trainer)


def measured(trainer: Trainer) -> dict[str, float]:
    """The samples of the metric, by `which`, and of how many ratings they are."""
    assert trainer.term is not None
    samples = [sample for metric in of_term(trainer.term) for sample in metric.samples]
    return {
        each.labels.get("which", "ratings"): each.value
        for each in samples
        if each.name.startswith("foldin_trainer_arriving_")
    }


@pytest.mark.slow
async def test_a_live_generation_that_is_worse_is_told_from_the_one_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mixed_up(request: FitRequest, *files: Any, **more: Any) -> FitResult:
        result = await fit_in_process(request, *files, **more)
        items = np.load(result.path / "items.npy")
        np.save(result.path / "items.npy", items[::-1])
        return read_result(result.path)

    settings = trainer_settings(store.settings, tmp_path / "archive", gate=NO_GATE)
    async with running_trainer(settings) as trainer:
        every = low_rank_ratings(users=120, items=20)
        await store.ratings.append(every[::2])
        good = await fitted(store)
        # There is none before it, so nothing is measured.
        await store.ratings.append(every[1:60:2])
        await until_drained(store)
        assert measured(trainer) == {}
        with monkeypatch.context() as patch:
            patch.setattr("trainer.refit.fit_in_process", mixed_up)
            bad = await fitted(store)
        # What the second has learned does not count, be it seen after the flip only.
        assert measured(trainer).get("ratings", 0.0) == 0.0
        found = await predicted(trainer, store, every[61:361:2])
        assert found["live"] > 1.5 * found["previous"]
        # Nothing happens by itself; a person goes back, and the two change places.
        assert (await store.generations.live()).generation == bad
        await store.generations.activate(good, hold=True)
        switch = some(trainer.term).switch
        await wait_until_async(lambda: switch.live and switch.live.generation == good, "the way back")
        assert measured(trainer) == {}
        found = await predicted(trainer, store, every[361:661:2])
        assert found["previous"] > 1.5 * found["live"]
