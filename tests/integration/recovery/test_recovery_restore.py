"""Restore: the ratings of an archive come back, with what only the store knows on top, whatever is killed."""

import asyncio
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.ratings.log import NewRating
from featurestore.store import Store
from foldin.recovery.errors import RecoveryRefusedError, RecoveryStoppedError
from foldin.recovery.restoring import Plan, Restore, RestoreRequest
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import (
    LATER,
    Held,
    archive_ratings,
    empty,
    held,
    killed_restore,
    now_held,
    opened,
    restored,
    restored_and_led,
    trashed,
)
from tests.support.trainers import fitted, refuses, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")


async def replaced(settings: TrainerSettings, given: list[NewRating]) -> None:
    """As `POST /train` does; the history before is in the trash then."""
    async with opened(settings.store) as store:
        epoch = await store.epochs.begin()
        await store.ratings.append(given, epoch=epoch)
        await fitted(store, "epoch", epoch)
    await wait_until_async(lambda: trashed(settings), "the history before is in the trash")


def values(of: Held) -> dict[tuple[str, str], float]:
    return {pair: value for pair, (value, _) in of.items()}


def without(of: Held, *users: str) -> Held:
    return {pair: entry for pair, entry in of.items() if pair[0] not in users}


def copy_of(learned: Learned, tmp_path: Path) -> Path:
    """An older copy of the archive."""
    return Path(shutil.copytree(learned.settings.archive_folder, tmp_path / "copy"))


async def test_emptied_store(learned: Learned) -> None:
    settings = learned.settings
    empty(learned.server)
    async with opened(settings.store) as store:
        await store.ratings.append([rating("new", "i3", 2.0), rating("u1", "fresh", 5.0)])
    assert "foldin restore" in await refuses(settings)
    async with restored_and_led(settings, settings.archive_folder) as (store, generation, lines):
        assert (await store.generations.live()).generation == generation
        on_top = {("new", "i3"): (2.0, 1e9), ("u1", "fresh"): (5.0, 1e9)}
        assert await held(store) == learned.held | on_top
        await until_drained(store, 2)
    assert any("2 from the live store on top" in line for line in lines)
    # It is this store's archive now: the next trainer leads, and learns all of it.
    async with running_trainer(settings), opened(settings.store) as store:
        await fitted(store)


async def test_a_folder_of_archives_will_do_and_rows_of_items_are_those_of_the_source(
    learned: Learned, tmp_path: Path
) -> None:
    settings = learned.settings
    async with running_trainer(settings), opened(settings.store) as store:
        # A catalogue that hardly anyone has rated.
        await store.items(1).register([b"j%d" % row for row in range(50)])
        await fitted(store)
        await store.items(1).refresh()
        ids = list(store.items(1).ids)
    shutil.move(settings.archive_folder.parent, tmp_path / "elsewhere")
    empty(learned.server)
    async with running_trainer(settings), opened(settings.store) as store:
        await restored(settings, tmp_path / "elsewhere")
        assert await held(store) == learned.held
        await store.items(2).refresh()
        assert list(store.items(2).ids) == ids


async def test_nothing_to_do_and_a_dry_run_change_nothing(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long the history of a call is waited for.
    monkeypatch.setattr("foldin.recovery.restoring._SILENT_S", 0.0)
    settings, copy = learned.settings, copy_of(learned, tmp_path)
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
        await store.ratings.append(
            [NewRating(gone[0].encode(), gone[1].encode(), math.nan, time.time()), rating("u2", "i1", 1.5)]
        )
        now = await held(store)
        request = RestoreRequest(copy, live="none", dry_run=True)
        generation, lines = await restored(settings, copy, request=request)
        assert generation is None
        assert any("1 pairs would be rated again" in line for line in lines), lines
        assert await held(store) == now != learned.held
        assert (await store.generations.live()).epoch == 1
        other = replace(settings, store=replace(settings.store, namespace="half", scale="0:1"))
        with pytest.raises(RecoveryRefusedError, match="FOLDIN_SCALE"):
            await restored(other, copy)


async def test_undo_of_a_replaced_history(learned: Learned) -> None:
    """`curl -X POST /train` with three ratings and `"replace": true`."""
    settings = learned.settings
    async with running_trainer(settings):
        await replaced(settings, [NewRating(b"u1", b"i%d" % k, 1.0, math.nan) for k in range(3)])
        async with opened(settings.store) as store:
            await store.ratings.append([rating("u1", "i11", 5.0, 2e9)])
        (entry,) = trashed(settings)
        await restored(settings, entry, request=RestoreRequest(entry, live="timed"))
        # What came in by other ways since is there; of the three ratings nothing is.
        assert await now_held(settings) == learned.held | {("u1", "i11"): (5.0, 2e9)}
        await wait_until_async(lambda: len(trashed(settings)) > 1, "the other history in the trash")
        # And back: as it was, and nothing else.
        _, undone = trashed(settings)
        await restored(settings, undone, request=RestoreRequest(undone, live="none"))
        given = {("u1", f"i{k}"): 1.0 for k in range(3)}
        assert values(await now_held(settings)) == given | {("u1", "i11"): 5.0}


async def test_what_the_source_has_not_seen_lies_on_top(learned: Learned, tmp_path: Path) -> None:
    settings, copy = learned.settings, copy_of(learned, tmp_path)
    pair, gone, lost = (min(each for each in learned.held if each[0] == user) for user in ("u1", "u2", "u7"))
    user, item = (each.encode() for each in pair)
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([NewRating(user, item, 1.0, 2e9), *LATER])
        await store.ratings.append([NewRating(gone[0].encode(), gone[1].encode(), math.nan, 2e9)])
        await store.ratings.forget(b"u3")
        now = await held(store)
        assert now[pair] == (1.0, 2e9)
        generation, lines = await restored(settings, copy)
        assert generation is None, "the store has all of it"
        assert any("forgotten" in line for line in lines)
        # A store that lost something. Twice does no harm: the deletion is remembered.
        await store.redis.set(store.keys.history(1, lost[0].encode()), b"")
        for _ in range(2):
            await restored(settings, copy)
            assert await now_held(settings) == now
        assert gone not in now
        assert not any(user == "u3" for user, _ in now)


async def test_point_in_time(learned: Learned) -> None:
    """A bad import at T: what arrived before stays, what comes in during the restore is added."""
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
    adding = list[asyncio.Task[None]]()

    async with running_trainer(settings), opened(settings.store) as store:

        async def add() -> None:
            await store.ratings.append([rating("meanwhile", "i1", 4.0)])

        def comes_in(name: str) -> None:
            if name == "planned":
                adding.append(asyncio.get_running_loop().create_task(add()))

        request = RestoreRequest(settings.archive_folder, live="none", until_ms=moment_ms)
        await restored(settings, settings.archive_folder, request=request, step=comes_in)
        await adding[0]
        assert await now_held(settings) == before | {("meanwhile", "i1"): (4.0, 1e9)}
        with pytest.raises(RecoveryRefusedError, match="begins after that time"):
            await restored(settings, settings.archive_folder, request=RestoreRequest(Path(), until_ms=1000))


async def forget_and_return(store: Store) -> None:
    await store.ratings.forget(b"u3")
    await store.ratings.forget(b"u4")
    await store.ratings.append([rating("u4", "i1", 2.0)])


async def test_a_user_who_is_forgotten_during_the_restore_stays_forgotten(
    learned: Learned, tmp_path: Path
) -> None:
    settings, copy = learned.settings, copy_of(learned, tmp_path)
    moments: list[asyncio.Task[None]] = []
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(LATER)

        def forget(name: str) -> None:
            # Read by now: the plan still has both users.
            if name == "planned":
                moments.append(asyncio.get_running_loop().create_task(forget_and_return(store)))

        await restored(settings, copy, request=RestoreRequest(copy, live="none"), step=forget)
        await moments[0]
        now = await now_held(settings)
    assert now == without(learned.held, "u3", "u4") | {("u4", "i1"): (2.0, 1e9)}


async def long_ago(store: Store) -> None:
    """Move the moment when a restore last said that it goes on, as if it had been silent since."""
    if (await store.generations.live()).pending:
        await store.redis.hset(store.keys.live, "pending_since", "0")


STEPS = ["begun", "written", "asked", "marked"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
async def test_killed_beside_a_trainer(learned: Learned, tmp_path: Path, step: str) -> None:
    settings, copy = learned.settings, copy_of(learned, tmp_path)
    async with running_trainer(settings), opened(settings.store) as store:
        await replaced(settings, [NewRating(b"u1", b"i1", 1.0, math.nan)])
        await store.ratings.append([rating("u1", "i11", 5.0, 2e9)])
        assert await asyncio.to_thread(killed_restore, settings, copy, step) == -9
        await long_ago(store)
        await store.ratings.append([rating("u2", "i11", 4.0, 2e9)])
        await restored(settings, copy, request=RestoreRequest(copy, live="timed"))
        now = await now_held(settings)
    wanted = learned.held | {("u1", "i11"): (5.0, 2e9), ("u2", "i11"): (4.0, 2e9)}
    # Killed after all was written, the restore that took up all live ratings went on by itself.
    assert now == wanted or (step in STEPS[2:] and now == wanted | {("u1", "i1"): (1.0, None)})


@pytest.mark.slow
@pytest.mark.parametrize("step", [*STEPS[1:], "adopted"])
async def test_killed_with_an_emptied_store(learned: Learned, step: str) -> None:
    settings = learned.settings
    empty(learned.server)
    assert await asyncio.to_thread(killed_restore, settings, settings.archive_folder, step) == -9
    async with opened(settings.store) as store:
        await store.redis.delete(store.keys.lease)
        await long_ago(store)
    async with restored_and_led(settings, settings.archive_folder) as (store, _, _):
        assert await held(store) == learned.held
    assert len(trashed(settings)) == 1


async def test_damaged_and_missing_segments_are_named(learned: Learned, tmp_path: Path) -> None:
    settings = learned.settings
    await archive_ratings(settings, LATER)
    copy = copy_of(learned, tmp_path)
    first, *_, path = sorted(copy.rglob("*.parquet"))
    sound = path.read_bytes()
    damaged = bytearray(sound)
    # In the pages: half of a small file is its footer, which has much that says nothing of the ratings.
    for k in range(100, 164):
        damaged[k] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(RecoveryRefusedError, match=path.name):
        await restored(settings, copy)
    path.write_bytes(sound)
    first.rename(first.with_name(first.name + ".damaged"))
    with pytest.raises(RecoveryRefusedError, match=first.name):
        await restored(settings, copy)
    request = RestoreRequest(copy, live="none", skip_damaged=True, dry_run=True)
    _, lines = await restored(settings, copy, request=request)
    assert any("no more" in line for line in lines)
    async with opened(settings.store) as store:
        assert (await store.generations.live()).last_epoch == 1


@pytest.mark.parametrize("held_on", [True, False], ids=["held", "not held"])
async def test_a_trainer_leaves_a_restore_alone_that_says_that_it_goes_on(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_on: bool
) -> None:
    settings, copy = replace(learned.settings, abandon_s=60.0 if held_on else 0.0), copy_of(learned, tmp_path)
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
        restoring = asyncio.create_task(restored(settings, copy, request=RestoreRequest(copy, live="none")))
        await loading.wait()
        began = await store.generations.live()

        async def told() -> bool:
            now = await store.generations.live()
            return now.pending_since > began.pending_since if held_on else not now.pending

        async with running_trainer(settings):
            await wait_until_async(told, "it says that it goes on, or is given up")
            goes_on.set()
            if held_on:
                assert (await restoring)[0] is not None
            else:
                with pytest.raises(RecoveryStoppedError, match="given up meanwhile"):
                    await restoring
            assert (await store.generations.live()).epoch == (2 if held_on else 1)
