"""Restore: the ratings of an archive come back, with what only the store knows on top, whatever is killed."""

import asyncio
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.recovery.errors import RecoveryRefusedError, RecoveryStoppedError
from foldin.recovery.restoring import Plan, Restore, RestoreRequest
from tests.support.factories import rating
from tests.support.recovering import (
    GIVEN,
    LATER,
    Held,
    archive_ratings,
    empty,
    held,
    killed_restore,
    now_held,
    opened,
    restored,
)
from tests.support.servers import StoreServer
from tests.support.trainers import (
    fitted,
    refused,
    running_trainer,
    trainer_settings,
    until_drained,
    until_live,
)
from tests.support.waiting import wait_until_async
from trainer.errors import FitFailedError
from trainer.settings import TrainerSettings


async def replaced(settings: TrainerSettings, given: list[NewRating]) -> None:
    """As `POST /train` does; the history before is in the trash then."""
    async with opened(settings.store) as store:
        epoch = await store.epochs.begin()
        await store.ratings.append(given, epoch=epoch)
        await fitted(store, "epoch", epoch)
    await wait_until_async(lambda: trashed(settings), "the history before is in the trash")


def trashed(settings: TrainerSettings) -> list[Path]:
    return sorted((settings.archive_folder / "trash").glob("epoch-*Z"))


def values(of: Held) -> dict[tuple[str, str], float]:
    return {pair: value for pair, (value, _) in of.items()}


@pytest.mark.slow
async def test_emptied_store(own_server: StoreServer, settings: TrainerSettings) -> None:
    before = await archive_ratings(settings)
    empty(own_server)
    async with opened(settings.store) as store:
        await store.ratings.append([rating("new", "i3", 2.0), rating("u1", "fresh", 5.0)])
    assert "foldin restore" in await refused(settings)
    restoring = asyncio.create_task(restored(settings, settings.archive_folder))
    # All ratings are in the store before anything of the archive is moved.
    await wait_until_async(lambda: trashed(settings), "the archive is adopted")
    async with running_trainer(settings):
        generation, lines = await asyncio.wait_for(restoring, 40)
        async with opened(settings.store) as store:
            assert (await store.generations.live()).generation == generation
            assert await held(store) == before | {("new", "i3"): (2.0, 1e9), ("u1", "fresh"): (5.0, 1e9)}
            await until_drained(store, 2)
    assert any("2 from the live store on top" in line for line in lines)
    # It is this store's archive now: the next trainer leads, and learns all of it.
    async with running_trainer(settings), opened(settings.store) as store:
        await fitted(store)


async def test_a_folder_of_archives_will_do(own_server: StoreServer, settings: TrainerSettings) -> None:
    before = await archive_ratings(settings)
    elsewhere = settings.archive_folder.parent.with_name("copy")
    shutil.copytree(settings.archive_folder.parent, elsewhere)
    shutil.rmtree(settings.archive_folder.parent)
    empty(own_server)
    async with running_trainer(settings):
        await restored(settings, elsewhere)
        assert await now_held(settings) == before


@pytest.mark.slow
async def test_rows_of_items_are_those_of_the_source(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    async with opened(settings.store) as store:
        # A catalogue that hardly anyone has rated.
        await store.items(1).register([b"i%d" % row for row in range(50)])
    await archive_ratings(settings)
    async with opened(settings.store) as store:
        await store.items(1).refresh()
        ids = list(store.items(1).ids)
    copy = settings.archive_folder.parent.with_name("copy")
    shutil.copytree(settings.archive_folder, copy)
    shutil.rmtree(settings.archive_folder.parent)
    empty(own_server)
    async with running_trainer(settings), opened(settings.store) as store:
        await restored(settings, copy)
        await store.items(2).refresh()
        assert list(store.items(2).ids) == ids


async def test_nothing_to_do(settings: TrainerSettings) -> None:
    before = await archive_ratings(settings)
    async with running_trainer(settings):
        generation, lines = await restored(settings, settings.archive_folder)
        assert generation is None
        assert any("nothing to do" in line for line in lines)
        assert await now_held(settings) == before
    async with opened(settings.store) as store:
        pointer = await store.generations.live()
    assert (pointer.epoch, pointer.pending) == (1, 0)


async def test_dry_run_changes_nothing(settings: TrainerSettings, tmp_path: Path) -> None:
    before = await archive_ratings(settings)
    copy = tmp_path / "copy"
    shutil.copytree(settings.archive_folder, copy)
    async with opened(settings.store) as store:
        await store.ratings.append([NewRating(b"u1", b"i1", math.nan, time.time()), rating("u2", "i1", 1.5)])
        now = await held(store)
    generation, lines = await restored(
        settings, copy, request=RestoreRequest(copy, live="none", dry_run=True)
    )
    assert generation is None
    assert any("1 pairs would be rated again" in line for line in lines), lines
    assert await now_held(settings) == now != before
    async with opened(settings.store) as store:
        assert (await store.generations.live()).last_epoch == 1


@pytest.mark.slow
async def test_undo_of_a_replaced_history(settings: TrainerSettings) -> None:
    """`curl -X POST /train` with three ratings and `"replace": true`."""
    before = await archive_ratings(settings)
    async with running_trainer(settings):
        await replaced(settings, [NewRating(b"u1", b"i%d" % k, 1.0, math.nan) for k in range(3)])
        async with opened(settings.store) as store:
            await store.ratings.append([rating("u1", "i11", 5.0, 2e9)])
        (entry,) = trashed(settings)
        await restored(settings, entry, request=RestoreRequest(entry, live="timed"))
        # What came in by other ways since is there; of the three ratings nothing is.
        assert await now_held(settings) == before | {("u1", "i11"): (5.0, 2e9)}
        await wait_until_async(lambda: len(trashed(settings)) > 1, "the other history in the trash")
        # And back: as it was, and nothing else.
        _, undone = trashed(settings)
        await restored(settings, undone, request=RestoreRequest(undone, live="none"))
        assert values(await now_held(settings)) == {("u1", f"i{k}"): 1.0 for k in range(3)} | {
            ("u1", "i11"): 5.0
        }


@pytest.mark.slow
async def test_what_the_source_has_not_seen_lies_on_top(settings: TrainerSettings, tmp_path: Path) -> None:
    before = await archive_ratings(settings)
    copy = tmp_path / "copy"
    shutil.copytree(settings.archive_folder, copy)
    pair, gone, lost = (min(each for each in before if each[0] == user) for user in ("u1", "u2", "u7"))
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
        # A store that lost something.
        await store.redis.set(store.keys.history(1, lost[0].encode()), b"")
        await restored(settings, copy)
        assert await now_held(settings) == now
        assert not any(user == "u3" for user, _ in await now_held(settings))
        assert gone not in await now_held(settings)
        # Twice does no harm: the deletion is remembered.
        await restored(settings, copy)
        assert await now_held(settings) == now


@pytest.mark.slow
async def test_point_in_time(settings: TrainerSettings) -> None:
    """A bad import at T: what arrived before stays, what comes in during the restore is added."""
    await archive_ratings(settings)
    async with opened(settings.store) as store:
        # Not archived yet when the restore begins.
        await store.ratings.append(LATER)
        before = await held(store)
    moment_ms = round(time.time() * 1000)
    await asyncio.sleep(0.05)
    junk = [rating(f"u{k}", f"i{k}", 1.0) for k in range(10)]

    def comes_in(name: str) -> None:
        if name == "planned":
            coming.set_result(None)

    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(junk)
        loop = asyncio.get_running_loop()
        coming = loop.create_future()
        adding = loop.create_task(add_when(coming, store))
        request = RestoreRequest(settings.archive_folder, live="none", until_ms=moment_ms)
        await restored(settings, settings.archive_folder, request=request, step=comes_in)
        await adding
        assert await now_held(settings) == before | {("meanwhile", "i1"): (4.0, 1e9)}
        with pytest.raises(RecoveryRefusedError, match="begins after that time"):
            await restored(settings, settings.archive_folder, request=RestoreRequest(Path(), until_ms=1000))


async def add_when(moment: "asyncio.Future[None]", store: Store) -> None:
    await moment
    await store.ratings.append([rating("meanwhile", "i1", 4.0)])


@pytest.mark.slow
async def test_a_user_who_is_forgotten_during_the_restore_stays_forgotten(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    before = await archive_ratings(settings)
    copy = tmp_path / "copy"
    shutil.copytree(settings.archive_folder, copy)
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(LATER)

        def forget(name: str) -> None:
            if name == "planned":
                moments.append(asyncio.get_running_loop().create_task(forget_and_return(store)))

        moments: list[asyncio.Task[None]] = []
        request = RestoreRequest(copy, live="none")
        # Read by now: the plan still has both users.
        await restored(settings, copy, request=request, step=forget)
        await moments[0]
        now = await now_held(settings)
    assert not any(user == "u3" for user, _ in now)
    assert {pair: entry for pair, entry in now.items() if pair[0] == "u4"} == {("u4", "i1"): (2.0, 1e9)}
    assert {pair: entry for pair, entry in now.items() if pair[0] not in {"u3", "u4"}} == {
        pair: entry for pair, entry in before.items() if pair[0] not in {"u3", "u4"}
    }


async def forget_and_return(store: Store) -> None:
    await store.ratings.forget(b"u3")
    await store.ratings.forget(b"u4")
    await store.ratings.append([rating("u4", "i1", 2.0)])


STEPS = ["begun", "planned", "items", "written", "loaded", "asked", "marked"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
async def test_killed_beside_a_trainer(settings: TrainerSettings, tmp_path: Path, step: str) -> None:
    before = await archive_ratings(settings)
    copy = tmp_path / "copy"
    shutil.copytree(settings.archive_folder, copy)
    async with running_trainer(settings), opened(settings.store) as store:
        await replaced(settings, [NewRating(b"u1", b"i1", 1.0, math.nan)])
        await store.ratings.append([rating("u1", "i11", 5.0, 2e9)])
        assert await asyncio.to_thread(killed_restore, settings, copy, step) == -9
        await store.ratings.append([rating("u2", "i11", 4.0, 2e9)])
        await restored(settings, copy, request=RestoreRequest(copy, live="timed"))
        now = await now_held(settings)
    wanted = before | {("u1", "i11"): (5.0, 2e9), ("u2", "i11"): (4.0, 2e9)}
    # Killed after all was written, the restore that took up all live ratings went on by itself.
    assert now == wanted or (step in STEPS[4:] and now == wanted | {("u1", "i1"): (1.0, None)})


@pytest.mark.slow
@pytest.mark.parametrize("step", [*STEPS, "adopted"])
async def test_killed_with_an_emptied_store(
    own_server: StoreServer, settings: TrainerSettings, step: str
) -> None:
    before = await archive_ratings(settings)
    empty(own_server)
    assert await asyncio.to_thread(killed_restore, settings, settings.archive_folder, step) == -9
    restoring = asyncio.create_task(restored(settings, settings.archive_folder))
    await wait_until_async(lambda: trashed(settings), "the archive is adopted")
    async with running_trainer(settings), opened(settings.store) as store:
        await restoring
        await until_live(store, 1, 2)
        assert await now_held(settings) == before
    assert len(trashed(settings)) == 1


async def test_damaged_and_missing_segments_are_named(settings: TrainerSettings, tmp_path: Path) -> None:
    await archive_ratings(settings, GIVEN)
    await archive_ratings(settings, LATER)
    copy = tmp_path / "copy"
    shutil.copytree(settings.archive_folder, copy)
    path = sorted(copy.rglob("*.parquet"))[-1]
    sound = path.read_bytes()
    damaged = bytearray(sound)
    # In the pages: half of a small file is its footer, which has much that says nothing of the ratings.
    for k in range(100, 164):
        damaged[k] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(RecoveryRefusedError, match=path.name):
        await restored(settings, copy)
    path.write_bytes(sound)
    first = sorted(copy.rglob("*.parquet"))[0]
    first.rename(first.with_name(first.name + ".damaged"))
    with pytest.raises(RecoveryRefusedError, match=first.name):
        await restored(settings, copy)
    request = RestoreRequest(copy, live="none", skip_damaged=True, dry_run=True)
    _, lines = await restored(settings, copy, request=request)
    assert any("no more" in line for line in lines)
    async with opened(settings.store) as store:
        assert (await store.generations.live()).last_epoch == 1


@pytest.mark.slow
async def test_another_scale_is_refused(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    await archive_ratings(settings)
    at = StoreSettings(url=own_server.url, namespace="half", partitions=4, scale="0:1", timeout_s=2.0)
    other = trainer_settings(at, tmp_path / "other")
    with pytest.raises(RecoveryRefusedError, match="FOLDIN_SCALE"):
        await restored(other, settings.archive_folder)


@pytest.mark.slow
async def test_a_call_that_prepares_a_history_is_not_disturbed(settings: TrainerSettings) -> None:
    await archive_ratings(settings)
    async with running_trainer(settings), opened(settings.store) as store:
        epoch = await store.epochs.begin()
        with pytest.raises(RecoveryRefusedError, match="is being prepared"):
            await restored(settings, settings.archive_folder)
        assert (await store.generations.live()).pending == epoch
        await store.epochs.abandon(epoch)


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A restore of so many ratings that it takes longer than a trainer leaves a history to a call."""
    load = Restore._load

    async def late(self: Restore, epoch: int, plan: Plan) -> None:
        await asyncio.sleep(seconds)
        await load(self, epoch, plan)

    monkeypatch.setattr(Restore, "_load", late)


@pytest.mark.slow
@pytest.mark.parametrize("held_on", [True, False], ids=["held", "not held"])
async def test_a_trainer_leaves_a_long_restore_alone(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, held_on: bool
) -> None:
    await archive_ratings(settings)
    copy = settings.archive_folder.parent.with_name("copy")
    shutil.copytree(settings.archive_folder, copy)
    slow(monkeypatch, 7.0)
    if not held_on:
        monkeypatch.setattr("foldin.recovery.restoring._HOLD_S", 1000.0)
    async with running_trainer(replace(settings, abandon_s=4.0)), opened(settings.store) as store:
        await store.ratings.append(LATER)
        restoring = restored(settings, copy, request=RestoreRequest(copy, live="none"))
        if held_on:
            assert (await restoring)[0] is not None
            assert (await store.generations.live()).epoch == 2
        else:
            with pytest.raises(RecoveryStoppedError, match="given up meanwhile"):
                await restoring
            assert (await store.generations.live()).epoch == 1


@pytest.mark.slow
async def test_of_two_restores_one_goes_on(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive_ratings(settings)
    copy = settings.archive_folder.parent.with_name("copy")
    shutil.copytree(settings.archive_folder, copy)
    slow(monkeypatch, 12.0)
    monkeypatch.setattr("foldin.recovery.restoring._SILENT_S", 4.0)
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(LATER)
        first = asyncio.create_task(restored(settings, copy, request=RestoreRequest(copy, live="none")))
        await asyncio.sleep(0.5)
        with pytest.raises(RecoveryRefusedError, match="is being prepared"):
            await restored(settings, copy)
        assert (await first)[0] is not None


@pytest.mark.slow
async def test_refused_by_the_trainer(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    await archive_ratings(settings)
    copy = settings.archive_folder.parent.with_name("copy")
    shutil.copytree(settings.archive_folder, copy)

    async def failing(*_args: object, **_kwargs: object) -> None:
        raise FitFailedError("no fit today", permanent=True)

    monkeypatch.setattr("trainer.refit.fit_in_process", failing)
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(LATER)
        now = await held(store)
        with pytest.raises(RecoveryStoppedError, match="no fit today"):
            await restored(settings, copy, request=RestoreRequest(copy, live="none"))
        assert await held(store) == now
        assert (await store.generations.live()).pending == 0
