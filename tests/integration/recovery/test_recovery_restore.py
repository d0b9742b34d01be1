"""Restore: ratings of an archive come back, with what only the store knows; who was forgotten does not."""

import asyncio
import math
import shutil
import time
from dataclasses import replace
from functools import partial
from operator import not_
from pathlib import Path

import pytest

from featurestore.ratings.log import NewRating
from featurestore.store import Store
from foldin.errors import StoppedError
from foldin.recovery.backing_up import back_up
from foldin.recovery.restoring import Plan, Restore
from processes.errors import CannotStartError
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import (
    LATER,
    Held,
    archive_ratings,
    backed_up,
    copied_files,
    copy_of,
    empty,
    held,
    killed_restore,
    now_held,
    opened,
    put_back,
    restored,
    restored_and_led,
    trashed,
    without,
)
from tests.support.trainers import archived, erased, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.erasures import ledger_files
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")


async def replaced(settings: TrainerSettings, given: list[NewRating]) -> None:
    async with opened(settings.store) as store:
        epoch = await store.epochs.begin()
        await store.ratings.append(given, epoch=epoch)
        await fitted(store, "epoch", epoch)
    await wait_until_async(lambda: trashed(settings), "the history before is in the trash")


async def test_nothing_to_do_and_a_dry_run(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
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
            with pytest.raises(CannotStartError, match="is being prepared"):
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
        with pytest.raises(CannotStartError, match="FOLDIN_SCALE"):
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
        with pytest.raises(CannotStartError, match="begins after that time"):
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
    with pytest.raises(CannotStartError, match=first.name):
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
                with pytest.raises(StoppedError, match="given up meanwhile"):
                    await restoring
            assert (await store.generations.live()).epoch == (2 if held_on else 1)


BACK = {("u3", "i1"): (2.0, 3e9)}


async def test_an_older_copy_brings_no_forgotten_user_and_keeps_what_came_after(learned: Learned) -> None:
    settings, copy = learned.settings, copy_of(learned.settings)
    lines: list[str] = []
    async with running_trainer(settings), opened(settings.store) as store:

        async def restore(source: Path) -> Held:
            nonlocal lines
            _, lines = await restored(settings, source, live="none")
            return await held(store)

        # A fit that begins before the erasure has ended may have seen the user.
        await erased(store, b"u3")
        await store.ratings.append([*LATER[:5], rating("u3", "i1", 2.0, 3e9)])
        # No generation that is kept has seen the user: the store does not remember who was forgotten.
        for _ in range(2):
            await fitted(store)
        await wait_until_async(lambda: store.ratings.forgotten(1), "no forgotten user is remembered", not_)
        await until_drained(store)
        newer = copy_of(settings, "newer")
        kept = without(learned.held, "u3")
        assert await restore(copy) == kept
        stay_away = len(learned.held) - len(kept)
        assert f"  {stay_away} ratings of 1 users who were forgotten since stay away" in lines
        # From the archive that has both; twice: what was restored came after the erasure, too.
        for _ in range(2):
            assert without(await restore(newer), "late0") == kept | BACK
        # It is erased by the next one alone.
        await store.ratings.forget(b"u3")
        assert without(await restore(newer), "late0") == kept


async def test_a_new_stack_gets_no_user_back_whom_the_ledger_it_is_given_names(
    learned: Learned, tmp_path: Path
) -> None:
    """The only backup is older than an erasure: without a newer ledger the restore says what that means."""
    settings, backup, newer = learned.settings, tmp_path / "backup", tmp_path / "newer"
    async with running_trainer(settings), opened(settings.store) as store:
        for user in (b"u3", b"u4"):
            await erased(store, user)
            if user == b"u3":
                await backed_up(settings, backup)
                _, lines = await restored(settings, backup, dry_run=True)
                assert not any("--erasures" in line for line in lines)
    shutil.copytree(settings.archive_folder, newer)
    shutil.rmtree(settings.archive_folder.parent)
    empty(learned.server)
    with pytest.raises(CannotStartError, match="no ledger"):
        await restored(settings, backup, dry_run=True, erasures=tmp_path)
    async with running_trainer(settings):
        for unhelpful in (None, backup / "epoch-000001"):
            _, lines = await restored(settings, backup, dry_run=True, erasures=unhelpful)
            assert any("forgotten after it was made come back" in line for line in lines)
        (ledger,) = ledger_files(newer)
        for given in (ledger, None):
            _, lines = await restored(settings, backup, erasures=given)
            assert not any("--erasures" in line for line in lines)
            assert any("of 1 users who were forgotten since stay away" in line for line in lines)
            assert await now_held(settings) == without(learned.held, "u3", "u4")


async def test_a_damaged_ledger_brings_no_forgotten_user_unasked(learned: Learned, tmp_path: Path) -> None:
    """The machine is gone. What is left is a backup, and an older copy of the archive."""
    settings, copy, backup = learned.settings, copy_of(learned.settings), tmp_path / "backup"
    said: list[str] = []
    wanted = without(learned.held, "u3", "u4")
    async with running_trainer(settings), opened(settings.store) as store:
        for user in (b"u3", b"u4"):
            await erased(store, user)
            await backed_up(settings, backup)
    shutil.rmtree(settings.archive_folder.parent)
    empty(learned.server)
    async with running_trainer(settings), opened(settings.store) as store:
        for source in (backup, copy):
            await restored(settings, source)
            assert await now_held(settings) == wanted
        # Once: the second time it was known.
        (ledger,) = ledger_files(settings.archive_folder)
        content = bytearray(ledger.read_bytes())
        content[-20] ^= 4
        ledger.write_bytes(content)
        with pytest.raises(CannotStartError, match=ledger.name):
            await restored(settings, copy, live="none")
        # As `foldin undo` asks for it: nothing else that is damaged passes.
        undo = partial(restored, settings, copy, live="timed", dry_run=True, skip_damaged_ledger=True)
        await undo()
        segment = min(copy.rglob("*.parquet"))
        segment.write_bytes(segment.read_bytes()[:-40])
        with pytest.raises(CannotStartError, match=segment.name):
            await undo()
        second = tmp_path / "second"
        await back_up(store, settings, second, said.append)
        assert any(ledger.name in line and "damaged" in line for line in said)
        with pytest.raises(CannotStartError, match="damaged"):
            await restored(settings, second)
        await restored(settings, second, live="none", skip_damaged=True)
        assert await now_held(settings) == wanted


@pytest.mark.parametrize(
    "way", ["adopt", *(pytest.param(each, marks=pytest.mark.slow) for each in ("restore", "emptied"))]
)
async def test_a_store_that_was_put_back_from_a_copy(learned: Learned, tmp_path: Path, way: str) -> None:
    """u1 was erased and came back before the copy; u3, u4 and users with attributes alone went after it."""
    settings, server = learned.settings, learned.server
    async with running_trainer(settings), opened(settings.store) as store:
        await erased(store, b"u1")
        await store.ratings.append([rating("u1", "i1", 3.0, 3e9), rating("u1", "i2", 3.0, math.nan)])
        for user in (b"silent", b"again", b"other"):
            await store.attributes.change(user, lambda _: {"city": "Old"})
        await until_drained(store)
    before = await now_held(settings)
    files = copied_files(server, tmp_path / "aof")
    async with running_trainer(settings), opened(settings.store) as store:
        for user in (b"u3", b"u4", b"silent", b"again"):
            await erased(store, user)
        await store.ratings.append([rating("u1", "i3", 3.0, 3e9), rating("u3", "i1", 2.0, 3e9)])
        await until_drained(store)
    if way == "emptied":
        empty(server)
    else:
        put_back(server, files)
    since = {("u1", "i4"): (1.0, 3e9), ("u4", "i2"): (1.0, 3e9), ("u5", "new"): (4.0, 3e9)}
    async with opened(settings.store) as store:
        assert await held(store) == ({} if way == "emptied" else before)
        await store.ratings.append([rating(*pair, *entry) for pair, entry in since.items()])
        await store.attributes.change(b"again", lambda _: {"city": "New"})
    wanted = without(before, "u3", "u4") | since
    if way == "adopt":
        async with running_trainer(replace(settings, adopt=True)), opened(settings.store) as store:
            await until_drained(store)
            await wait_until_async(lambda: store.redis.hlen(store.keys.erasing), "no erasure is left", not_)
            assert b"u3" not in await store.active.ids(1)
            assert await held(store) == wanted
            assert {user for user, *_ in archived(settings)} == {user for user, _ in wanted}
            # Nothing that was erased is in the trash that the archive went to.
            for entry in (settings.archive_folder / "trash").glob("epoch-*Z"):
                assert ("u4", "i2") not in {(u, i) for u, _, i, _ in archived(settings, path=entry)}
    else:
        async with restored_and_led(settings, settings.archive_folder) as (store, generation, lines):
            assert (await store.generations.live()).generation == generation
            assert await held(store) == wanted | BACK | {("u1", "i3"): (3.0, 3e9)}
            assert any(f"{len(since)} from the live store on top" in line for line in lines), lines
            await wait_until_async(lambda: store.redis.hlen(store.keys.erasing), "no erasure is left", not_)
    if way != "emptied":
        async with opened(settings.store) as store:
            now = {user: await store.attributes.get(user) for user in (b"silent", b"again", b"other")}
        assert now == {b"silent": None, b"again": {"city": "New"}, b"other": {"city": "Old"}}
        # Each was asked of the trainer, so that the store has written its files anew.
        server.stop()
        contents = [path.read_bytes() for path in (server.folder / "appendonlydir").iterdir()]
        assert any(b"other" in content for content in contents)
        assert not any(b"silent" in content for content in contents)
