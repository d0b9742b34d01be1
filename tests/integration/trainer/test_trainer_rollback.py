"""A generation that arriving ratings condemn is taken back by the trainer itself; a good one is not."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.generations.manifest import RolledBack
from featurestore.ratings.context_schema import ContextField
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings as ratings
from tests.support.trainers import fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import wait_until_async
from trainer.fit_job.job import FitRequest
from trainer.fit_job.process import fit_in_process
from trainer.fit_job.result_files import read_result
from trainer.fit_job.results import FitResult
from trainer.gate import Policy
from trainer.rollback.betting import Bet
from trainer.settings import TrainerSettings

# Whatever it is like, it goes live.
NO_GATE = Policy(baseline=float("inf"), live=float("inf"))


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive", gate=NO_GATE)


def mix_up_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each fit from now on have the items of others."""

    async def mixed_up(request: FitRequest, *files: Any, **_: object) -> FitResult:
        result = await fit_in_process(request, *files)
        items = np.load(result.path / "items.npy")
        np.save(result.path / "items.npy", items[::-1])
        return read_result(result.path)

    monkeypatch.setattr("trainer.refit.fit_in_process", mixed_up)


async def arrive(store: Store, given: list[NewRating]) -> None:
    """Bring them some at a time, as they come in life."""
    for start in range(0, len(given), 60):
        await store.ratings.append(given[start : start + 60])
        await until_drained(store)


async def live(store: Store) -> tuple[int, RolledBack | None]:
    pointer = await store.generations.live()
    return pointer.generation, pointer.rolled_back


async def spoiled(store: Store, known: list[NewRating], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Two generations, the second, which is live, with mixed up items."""
    await store.ratings.append(known)
    good = await fitted(store)
    with monkeypatch.context() as patch:
        mix_up_items(patch)
        bad = await fitted(store)
    assert await live(store) == (bad, None)
    return good, bad


@pytest.mark.slow
async def test_a_bad_generation_is_taken_back_by_itself(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ratings(users=120, items=20)
    async with running_trainer(settings):
        good, bad = await spoiled(store, every[::2], monkeypatch)
        arriving = asyncio.create_task(arrive(store, every[1::2]))

        async def taken_back() -> bool:
            return (await live(store))[0] == good

        await wait_until_async(taken_back, "the good generation is live again")
        await arriving
        _, why = await live(store)
        assert why is not None
        assert (why.generation, why.to) == (bad, good)
        # They are judged 60 at a time. Eight stakes side by side pay two nats for not knowing the best one.
        assert why.ratings <= 240
        assert why.loss > 2 * why.loss_before
        # A person may insist.
        await store.generations.activate(bad, hold=False)
        await arrive(store, ratings(users=120, items=20, prefix="v")[::3])
        assert await live(store) == (bad, why)
        # The next fit goes live, and is good enough to stay.
        new = await fitted(store)
        await arrive(store, ratings(users=120, items=20, prefix="w")[::3])
        assert await live(store) == (new, why)


@pytest.mark.slow
async def test_what_a_person_holds_stays(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ratings(users=120, items=20)
    async with running_trainer(settings):
        _, bad = await spoiled(store, every[::2], monkeypatch)
        await store.generations.activate(bad, hold=True)
        await arrive(store, every[1::2])
        assert await live(store) == (bad, None)


@pytest.mark.slow
async def test_ratings_that_it_has_learned_do_not_count(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer may see them after the flip only."""
    judged: list[int] = []
    add = Bet.add

    def counted(self: Bet, user_id: bytes, first: float, second: float, rating: float) -> None:
        judged.append(1)
        add(self, user_id, first, second, rating)

    monkeypatch.setattr(Bet, "add", counted)
    every = ratings(users=120, items=20)
    async with running_trainer(settings):
        first, second, third = every[::3], every[1::3], every[2::3]
        await store.ratings.append(first)
        await fitted(store)
        await store.ratings.append(second)
        assert await fitted(store) == (await store.generations.live()).generation
        assert sum(judged) == 0
        # Of accounts that were made since, too.
        await arrive(store, ratings(users=120, items=20, prefix="v")[::9])
        await arrive(store, third[:70])
        await wait_until_async(lambda: sum(judged) > 60, "those that arrive after it count")
        assert sum(judged) <= 70


@pytest.mark.slow
async def test_good_generations_stay(store: Store, settings: TrainerSettings) -> None:
    every = ratings(users=200, items=20, seed=3)
    async with running_trainer(settings):
        for k in range(5):
            await arrive(store, every[k::6])
            generation = await fitted(store)
            assert await live(store) == (generation, None)
        await arrive(store, every[5::6])
        assert await live(store) == (generation, None)


@pytest.mark.slow
async def test_what_was_told_with_a_rating_counts(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[tuple[float, float]] = []
    add = Bet.add

    def noted(self: Bet, user_id: bytes, first: float, second: float, rating: float) -> None:
        errors.append((first - rating, second - rating))
        add(self, user_id, first, second, rating)

    monkeypatch.setattr(Bet, "add", noted)
    # Half of them a step up, the others one down, and nothing but the context says which.
    up = np.random.default_rng(0).integers(0, 2, 2_400) * 2.0 - 1.0
    await store.contexts.tell([ContextField("mood", "number")])
    told = await store.contexts.rows([{"mood": float(step)} for step in up])
    assert told is not None
    every = [
        replace(each, rating=3.0 + 0.5 * (each.rating - 3.0) + step, context=context)
        for each, step, context in zip(ratings(users=120, items=20), up.tolist(), told, strict=False)
    ]
    async with running_trainer(settings):
        await store.ratings.append(every[::2])
        await fitted(store)
        await fitted(store)
        await arrive(store, every[1::2][:300])
        await wait_until_async(lambda: len(errors) > 100, "ratings are judged")
    # The steps alone have a variance of 1.
    assert np.square(errors).mean(axis=0).max() < 0.5
