"""Restore: the ratings of an archive come back, with what only the store knows on top, whatever is killed."""

import asyncio
import math
import time
from dataclasses import replace

import pytest

from featurestore.codecs import pack_history
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from foldin.recovery.errors import RecoveryRefusedError, RecoveryStoppedError
from foldin.recovery.restoring import Plan, Restore
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import (
    GIVEN,
    LATER,
    archive_ratings,
    copy_of,
    empty,
    held,
    killed_restore,
    now_held,
    opened,
    restored,
    restored_and_led,
    trashed,
    without,
)
from tests.support.trainers import fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")


async def replaced(settings: TrainerSettings, given: list[NewRating]) -> None:
    async with opened(settings.store) as store:
        epoch = await store.epochs.begin()
        await store.ratings.append(given, epoch=epoch)
        await fitted(store, "epoch", epoch)
    await wait_until_async(lambda: trashed(settings), "the history before is in the trash")


async def test_nothing_to_do_and_a_dry_run_change_nothing(
    learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long the history of a call is waited for.
    monkeypatch.setattr("foldin.recovery.restoring._SILENT_S", 0.0)
    settings, copy = learned.settings, copy_of(learned.settings)
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            generation, lines = await restored(settings, settings.archive_folder)
            assert generation is None
            assert any("nothing to do" in line for line in lines)
            # While a call prepares a history nothing disturbs it.
            epoch = await store.epochs.begin()
            with pytest.raises(RecoveryRefusedError, match="is being prepared"):
                await restored(settings, settings.archive_folder)
            await store.epochs.abandon(epoch)
        gone = min(learned.held)
        await store.ratings.append([rating(*gone, math.nan, time.time()), rating("u2", "i1", 1.5)])
        now = await held(store)
        generation, lines = await restored(settings, copy, live="none", dry_run=True)
        assert generation is None
        assert any("1 pairs would be rated again" in line for line in lines), lines
        assert await held(store) == now != learned.held
        assert (await store.generations.live()).epoch == 1
        other = replace(settings, store=replace(settings.store, namespace="half", scale="0:1"))
        with pytest.raises(RecoveryRefusedError, match="FOLDIN_SCALE"):
            await restored(other, copy)


async def test_undo_of_a_replaced_history(learned: Learned) -> None:
    settings = learned.settings
    async with running_trainer(settings):
        await replaced(settings, [NewRating(b"u1", b"i%d" % k, 1.0, math.nan) for k in range(3)])
        async with opened(settings.store) as store:
            await store.ratings.append([rating("u1", "i11", 5.0, 2e9)])
        (entry,) = trashed(settings)
        await restored(settings, entry, live="timed")
        # What came in by other ways since is there; of the three ratings nothing is.
        assert await now_held(settings) == learned.held | {("u1", "i11"): (5.0, 2e9)}
        await wait_until_async(lambda: len(trashed(settings)) > 1, "the other history in the trash")
        _, undone = trashed(settings)
        await restored(settings, undone, live="none")
        found = {pair: value for pair, (value, _) in (await now_held(settings)).items()}
        assert found == {("u1", f"i{k}"): 1.0 for k in range(3)} | {("u1", "i11"): 5.0}


async def compacted(store: Store, epoch: int, *users: bytes) -> None:
    """What a reader of a long history does."""
    for user in users:
        _, history = await store.users.history(epoch, user)
        await store.redis.set(store.keys.history(epoch, user), pack_history(history))


async def test_an_older_copy_brings_nothing_back_that_was_taken_back_since(learned: Learned) -> None:
    """Also where the histories do not say so any more, in the archive and in what waits for it."""
    settings, copy = learned.settings, copy_of(learned.settings)
    items = [item.encode() for user, item in sorted(learned.held) if user == "u1"]
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            given = [NewRating(b"u1", item, math.nan, 3e9) for item in items[:2]]
            again = next(each for each in GIVEN if each.user_id == b"u2")
            given += [NewRating(b"u2", again.item_id, math.nan, 3e9), again]
            await store.ratings.append([*given, rating("u1", items[1].decode(), 1.5, 4e9)])
            await until_drained(store)
        await store.ratings.append([NewRating(b"u1", items[2], math.nan, 3e9)])
        await compacted(store, 1, b"u1")
        now = await held(store)
        assert len(now) == len(learned.held) - 2
        # Lost, so that there is something to bring back, and a new history that has to know all of it.
        await store.redis.delete(store.keys.history(1, b"u2"))
        lost = len(now) - len(await held(store))
        _, lines = await restored(settings, copy, dry_run=True)
        assert any(f"{lost} pairs would be rated again" in line for line in lines), lines
        async with running_trainer(settings):
            for epoch in (2, 3):
                await restored(settings, copy)
                assert await held(store, epoch) == now
                await until_drained(store, epoch)
                await compacted(store, epoch, b"u1")
                await store.redis.delete(store.keys.history(epoch, b"u2"))


async def test_point_in_time(learned: Learned) -> None:
    """A bad import at T; what comes in meanwhile is added, and who is forgotten stays forgotten."""
    settings = learned.settings
    async with opened(settings.store) as store:
        # Not archived yet when the restore begins.
        await store.ratings.append(LATER)
        before = await held(store)
        # By the clock of the store, whose next millisecond is another one.
        moment_ms = await store.time_ms() + 1
        while await store.time_ms() <= moment_ms:
            pass
        await store.ratings.append([rating(f"u{k}", f"i{k}", 1.0) for k in range(10)])
    changing = list[asyncio.Task[None]]()

    async with running_trainer(settings), opened(settings.store) as store:

        async def change() -> None:
            await store.ratings.append([rating("meanwhile", "i1", 4.0)])
            await store.ratings.forget(b"u3")
            await store.ratings.forget(b"u4")
            await store.ratings.append([rating("u4", "i1", 2.0)])

        def comes_in(name: str) -> None:
            # Read by now: the plan still has both users.
            if name == "planned":
                changing.append(asyncio.get_running_loop().create_task(change()))

        await restored(settings, settings.archive_folder, live="none", until_ms=moment_ms, step=comes_in)
        await changing[0]
        added = {("meanwhile", "i1"): (4.0, 1e9), ("u4", "i1"): (2.0, 1e9)}
        assert await now_held(settings) == without(before, "u3", "u4") | added
        with pytest.raises(RecoveryRefusedError, match="begins after that time"):
            await restored(settings, settings.archive_folder, until_ms=1000)


async def long_ago(store: Store) -> None:
    """Move the moment when a restore last said that it goes on, as if it had been silent since."""
    if (await store.generations.live()).pending:
        await store.redis.hset(store.keys.live, "pending_since", "0")


STEPS = ["begun", "written", "asked", "marked"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
async def test_killed_beside_a_trainer(learned: Learned, step: str) -> None:
    settings, copy = learned.settings, copy_of(learned.settings)
    async with running_trainer(settings), opened(settings.store) as store:
        await replaced(settings, [NewRating(b"u1", b"i1", 1.0, math.nan)])
        await store.ratings.append([rating("u1", "i11", 5.0, 2e9)])
        await killed_restore(settings, copy, step)
        await long_ago(store)
        await store.ratings.append([rating("u2", "i11", 4.0, 2e9)])
        await restored(settings, copy, live="timed")
        now = await now_held(settings)
    wanted = learned.held | {("u1", "i11"): (5.0, 2e9), ("u2", "i11"): (4.0, 2e9)}
    # Killed after all was written, the restore that took up all live ratings went on by itself.
    assert now == wanted or (step in STEPS[2:] and now == wanted | {("u1", "i1"): (1.0, None)})


@pytest.mark.slow
@pytest.mark.parametrize("step", [*STEPS[1:], "adopted"])
async def test_killed_with_an_emptied_store(learned: Learned, step: str) -> None:
    settings = learned.settings
    empty(learned.server)
    await killed_restore(settings, settings.archive_folder, step)
    async with opened(settings.store) as store:
        await store.redis.delete(store.keys.lease)
        await long_ago(store)
    async with restored_and_led(settings, settings.archive_folder) as (store, _, _):
        assert await held(store) == learned.held
    assert len(trashed(settings)) == 1


async def test_a_segment_that_was_set_aside_is_named(learned: Learned) -> None:
    settings = learned.settings
    await archive_ratings(settings, LATER)
    copy = copy_of(settings)
    first, *_ = sorted(copy.rglob("*.parquet"))
    first.rename(first.with_name(first.name + ".damaged"))
    with pytest.raises(RecoveryRefusedError, match=first.name):
        await restored(settings, copy)
    _, lines = await restored(settings, copy, live="none", skip_damaged=True, dry_run=True)
    assert any("no more" in line for line in lines)
    async with opened(settings.store) as store:
        assert (await store.generations.live()).last_epoch == 1


@pytest.mark.parametrize("held_on", [True, False], ids=["held", "not held"])
async def test_a_trainer_leaves_a_restore_alone_that_says_that_it_goes_on(
    learned: Learned, monkeypatch: pytest.MonkeyPatch, held_on: bool
) -> None:
    settings, copy = replace(learned.settings, abandon_s=60.0 if held_on else 0.0), copy_of(learned.settings)
    monkeypatch.setattr("foldin.recovery.restoring._HOLD_S", 0.05 if held_on else 1000.0)
    load, loading, goes_on = Restore._load, asyncio.Event(), asyncio.Event()

    async def late(self: Restore, epoch: int, plan: Plan) -> None:
        loading.set()
        await goes_on.wait()
        await load(self, epoch, plan)

    monkeypatch.setattr(Restore, "_load", late)
    async with opened(settings.store) as store:
        await store.ratings.append(LATER)
        async with running_trainer(learned.settings):
            await until_drained(store)
        restoring = asyncio.create_task(restored(settings, copy, live="none"))
        await loading.wait()
        began = await store.generations.live()
        async with running_trainer(settings):
            await wait_until_async(
                store.generations.live,
                "it says that it goes on, or is given up",
                lambda now: now.pending_since > began.pending_since if held_on else not now.pending,
            )
            goes_on.set()
            if held_on:
                assert (await restoring)[0] is not None
            else:
                with pytest.raises(RecoveryStoppedError, match="given up meanwhile"):
                    await restoring
            assert (await store.generations.live()).epoch == (2 if held_on else 1)
