"""A trainer beside an experiment over generations: items of all arms are kept current, refits wait."""

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from featurestore.errors import StoreUnavailable
from featurestore.experiments.definition import Arm, Definition
from featurestore.experiments.stored import Winner
from featurestore.generations.follower import Follower
from featurestore.generations.manifest import Pointer
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings, rating
from tests.support.trainers import fitted, running_trainer, trainer_settings, until_drained, until_live
from tests.support.waiting import wait_until_async
from trainer.publication.switch import Switch
from trainer.schedule import Rules
from trainer.settings import TrainerSettings


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    # Twenty new events are worth a fit.
    return trainer_settings(store_settings, tmp_path / "archive", rules=Rules(20, 10**6))


@pytest.mark.slow
async def test_items_of_every_arm_are_kept_up_to_date_and_automatic_refits_wait(
    store: Store, settings: TrainerSettings, tmp_path: Path
) -> None:
    follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
    following = asyncio.create_task(follower.run(stop))
    fits = settings.archive_folder / "epoch-000001" / "fits"
    try:
        async with running_trainer(settings) as trainer:
            await store.ratings.append(low_rank_ratings())
            numbers = [await fitted(store), await fitted(store)]
            arms = tuple(Arm(f"g{number}", 0.5, generation=number) for number in numbers)
            # One of a history that has ended, which comes first by name, changes nothing.
            ended = msgspec.json.encode(Definition(arms, 1e9, 77))
            await store.redis.hset(store.keys.experiments, "a", ended)
            await store.experiments.begin("fits", Definition(arms, 1e9, 1))
            assert (await store.experiments.all()).of_epoch(1).over_generations is not None

            def both() -> bool:
                return all(follower.holds(number) for number in numbers)

            await wait_until_async(both, "both generations are served")
            # A request is carried out: who is in no arm gets what it brings, and both arms stay.
            third = await fitted(store)
            await wait_until_async(lambda: both() and follower.holds(third), "three generations are served")
            await store.ratings.append([rating(f"u{k}", "fresh", 5.0, 2e9) for k in range(30)])
            await until_drained(store)
            row = (await store.items(1).rows([b"fresh"]))[0]
            assert row is not None

            def learned() -> bool:
                held = [follower.live, *follower.arms.values()]
                known = [each for each in held if each is not None and row < each.n_items]
                # The first word of a stored row is how many ratings it rests on.
                return len(known) == 3 and all(each.items[row, 0] == 30.0 for each in known)

            await wait_until_async(learned, "the new item in all three generations")
            folded = [each.items[row] for each in follower.arms.values()]
            assert all(np.isfinite(each).all() for each in folded)
            # Thirty events were worth a fit: it waits.
            leads = trainer.term
            assert leads is not None
            assert leads.switch.experiments
            assert leads.refitter.fitting_since is None
            assert (await store.generations.live()).generation == third
            assert {int(path.name[-6:]) for path in fits.glob("generation-*")} == {*numbers, third}
            assert await store.experiments.end("fits", 2, Winner(generation=numbers[1], hold=False))
            await until_live(store, third + 1)
    finally:
        stop.set()
        await following


@pytest.mark.slow
async def test_upkeep_goes_on_where_experiments_are_of_another_type(
    store: Store, settings: TrainerSettings
) -> None:
    unused = settings.archive_folder / "epoch-000001" / "fits" / "generation-000099"
    async with running_trainer(settings):
        await store.ratings.append(low_rank_ratings())
        await fitted(store)
        await store.redis.set(store.keys.experiments, b"x")
        unused.mkdir()
        await wait_until_async(lambda: not unused.exists(), "an unused fit is removed")


async def test_fits_of_arms_stay_where_the_store_stumbles_as_a_term_begins(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = settings.archive_folder / "epoch-000001" / "fits"
    async with running_trainer(settings):
        await store.ratings.append(low_rank_ratings())
        numbers = [await fitted(store), await fitted(store)]
        arms = tuple(Arm(f"g{number}", 0.5, generation=number) for number in numbers)
        await store.experiments.begin("fits", Definition(arms, 1e9, 1))
        # With this one the first is neither live nor the one before: that it is an arm is all that keeps it.
        third = await fitted(store)
    follow, calls = Switch.follow, 0

    async def stumbling(switch: Switch, pointer: Pointer) -> None:
        nonlocal calls
        # Not for others, whose term that would end.
        if (task := asyncio.current_task()) is not None and task.get_name() == "follow and merge":
            calls += 1
            if calls <= 3:
                raise StoreUnavailable("away for a moment")
        await follow(switch, pointer)

    monkeypatch.setattr(Switch, "follow", stumbling)
    (unused := fits / "generation-000099").mkdir()
    async with running_trainer(settings):
        await wait_until_async(lambda: not unused.exists(), "an unused fit is removed")
        assert calls > 3
        assert {int(path.name[-6:]) for path in fits.glob("generation-*")} == {*numbers, third}
