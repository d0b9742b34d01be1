"""A user who was forgotten never comes back from an older copy, and loses nothing that was rated since."""

import asyncio
import contextlib
import math
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.commands import Commands
from featurestore.errors import StoreUnavailable
from featurestore.keys import partition_of
from featurestore.leases import Lease
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import Forgotten, RatingsLog
from featurestore.store import Store
from featurestore.users.active import ActiveUsers
from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryRefusedError
from foldin.recovery.manifest import read_manifest
from foldin.recovery.restoring import RestoreRequest
from tests.support.factories import rating
from tests.support.recovering import (
    LATER,
    Held,
    archive_ratings,
    empty,
    now_held,
    opened,
    restored,
)
from tests.support.servers import StoreServer
from tests.support.trainers import archived, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.erasures import ledger_files
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import read_segment
from trainer.erasure import older_copy
from trainer.erasure.older_copy import erase_again
from trainer.settings import TrainerSettings

BACK = {("u3", "i1"): (2.0, 3e9)}


def copy_of(settings: TrainerSettings, name: str) -> Path:
    folder = settings.archive_folder.parent.with_name(name)
    shutil.copytree(settings.archive_folder, folder)
    return folder


def without(held: Held, *users: str) -> Held:
    return {pair: entry for pair, entry in held.items() if pair[0] not in users}


async def until_released(store: Store) -> None:
    """No generation that is kept has seen a forgotten user: the store remembers none."""

    async def released() -> bool:
        return not await store.ratings.forgotten(1)

    for _ in range(2):
        await fitted(store)
    await wait_until_async(released, "the store remembers no forgotten user")


@pytest.mark.slow
@pytest.mark.parametrize("ledger", [True, False], ids=["as it is", "without the ledger"])
async def test_an_older_copy_brings_no_forgotten_user(settings: TrainerSettings, ledger: bool) -> None:
    before = await archive_ratings(settings)
    copy = copy_of(settings, "copy")
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await store.ratings.append(LATER[:5])
        await until_released(store)
        if not ledger:
            for path in ledger_files(settings.archive_folder):
                path.unlink()
        _, lines = await restored(settings, copy, request=RestoreRequest(copy, live="none"))
        now = await now_held(settings)
    erased = len(before) - len(without(before, "u3"))
    assert (f"  {erased} ratings of users who were forgotten since stay away" in lines) == ledger
    assert now == (without(before, "u3") if ledger else before)


@pytest.mark.slow
async def test_what_was_rated_after_coming_back_stays(settings: TrainerSettings) -> None:
    before = await archive_ratings(settings)
    copy = copy_of(settings, "copy")
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await store.ratings.append([rating("u3", "i1", 2.0, 3e9)])
        await until_drained(store)
        newer = copy_of(settings, "newer")
        # From the archive that has both, and from one that has none of it.
        for source in (newer, copy):
            await restored(settings, source, request=RestoreRequest(source, live="none"))
            wanted = without(before, "u3") | (BACK if source is newer else {})
            assert await now_held(settings) == wanted
        # Twice: what was restored came after the erasure, too, and is erased by the next one alone.
        await restored(settings, newer, request=RestoreRequest(newer, live="none"))
        assert await now_held(settings) == without(before, "u3") | BACK
        await store.ratings.forget(b"u3")
        await restored(settings, newer, request=RestoreRequest(newer, live="none"))
        assert await now_held(settings) == without(before, "u3")


@pytest.mark.slow
async def test_a_backup_knows_who_was_forgotten(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """The machine is gone. What is left is a backup, and an older copy of the archive."""
    before = await archive_ratings(settings)
    copy, backup = copy_of(settings, "copy"), tmp_path / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await back_up(store, settings, backup, lambda _line: None)
        await store.ratings.forget(b"u4")
        await back_up(store, settings, backup, lambda _line: None)
    (ledger,) = backup.rglob("erasures-*")
    manifest = read_manifest(ledger.parent)
    assert manifest is not None
    assert ledger.name in manifest.files
    own_server.kill()
    shutil.rmtree(own_server.folder / "appendonlydir")
    shutil.rmtree(settings.archive_folder.parent)
    own_server.start()
    async with running_trainer(settings):
        for source in (backup, copy):
            await restored(settings, source)
            assert await now_held(settings) == without(before, "u3", "u4")
    # Once: the second time it was known.
    assert len(ledger_files(settings.archive_folder)) == 1
    ledger.write_bytes(ledger.read_bytes()[:40])
    with pytest.raises(RecoveryRefusedError, match=ledger.name):
        await restored(settings, backup)


async def test_a_flipped_byte_in_the_last_erasure_brings_no_user_back_unasked(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    before = await archive_ratings(settings)
    copy, backup = copy_of(settings, "copy"), tmp_path / "backup"
    said: list[str] = []
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await until_released(store)
        (ledger,) = ledger_files(settings.archive_folder)
        content = bytearray(ledger.read_bytes())
        content[-20] ^= 4
        ledger.write_bytes(content)
        with pytest.raises(RecoveryRefusedError, match=ledger.name):
            await restored(settings, copy, request=RestoreRequest(copy, live="none"))
        # As `foldin undo` asks for it: nothing else that is damaged passes.
        undo = RestoreRequest(copy, live="timed", dry_run=True, skip_damaged_ledger=True)
        await restored(settings, copy, request=undo)
        segment = min(copy.rglob("*.parquet"))
        whole = segment.read_bytes()
        segment.write_bytes(whole[:-40])
        with pytest.raises(RecoveryRefusedError, match=segment.name):
            await restored(settings, copy, request=undo)
        segment.write_bytes(whole)
        await back_up(store, settings, backup, said.append)
    assert any(ledger.name in line and "damaged" in line for line in said)
    shutil.rmtree(settings.archive_folder.parent)
    async with running_trainer(settings):
        with pytest.raises(RecoveryRefusedError, match="damaged"):
            await restored(settings, backup)
        request = RestoreRequest(backup, live="none", skip_damaged=True)
        await restored(settings, backup, request=request)
        assert await now_held(settings) == without(before, "u3")


async def test_without_a_trainer(settings: TrainerSettings) -> None:
    """Erasures that wait count, of users whom the store does not know, too."""
    before = await archive_ratings(settings)
    copy = copy_of(settings, "copy")
    async with opened(settings.store) as store:
        # As of a store that lost its end.
        await store.redis.delete(store.keys.user(1, b"u4"), store.keys.history(1, b"u4"))
        for user in (b"u3", b"u4"):
            forgotten = await store.ratings.forget(user)
            await store.commands.ask("erase", epoch=1, user=user, at_ms=forgotten.at_ms)
        await store.ratings.append([rating("u3", "i1", 2.0, 3e9)])
    request = RestoreRequest(copy, live="none", dry_run=True)
    _, lines = await restored(settings, copy, request=request)
    erased = len(before) - len(without(before, "u3", "u4"))
    assert f"  {erased} ratings of users who were forgotten since stay away" in lines
    async with running_trainer(settings):
        await restored(settings, copy)
        assert await now_held(settings) == without(before, "u3", "u4") | BACK


async def test_a_store_that_was_put_back_from_an_older_copy(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    before = await archive_ratings(settings)
    own_server.stop()
    shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
    own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await store.ratings.forget(b"u4")
        await store.ratings.append([rating("u3", "i1", 2.0, 3e9)])
        await until_drained(store)
    own_server.stop()
    shutil.rmtree(own_server.folder / "appendonlydir")
    shutil.copytree(tmp_path / "aof", own_server.folder / "appendonlydir")
    own_server.start()
    async with opened(settings.store) as store:
        assert await now_held(settings) == before
        await store.ratings.append([rating("u4", "i2", 1.0, 3e9), rating("u5", "new", 4.0, 3e9)])
    restoring = asyncio.create_task(restored(settings, settings.archive_folder))
    trash = settings.archive_folder / "trash"
    await wait_until_async(lambda: list(trash.glob("epoch-*Z")), "the archive is adopted")
    async with running_trainer(settings):
        await asyncio.wait_for(restoring, 40)
        since = {("u4", "i2"): (1.0, 3e9), ("u5", "new"): (4.0, 3e9)}
        assert await now_held(settings) == without(before, "u3", "u4") | BACK | since


async def published_no_more(
    _active: ActiveUsers, _epoch: int, _users: Sequence[bytes], *, lease: Lease
) -> None:
    del lease


@pytest.mark.slow
async def test_adopting_a_store_that_was_put_back_erases_again(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """u1 was erased and came back before the copy: all of it stays. u3 and u4 were erased after it."""
    await archive_ratings(settings)
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u1")
        await store.ratings.append([rating("u1", "i1", 3.0, 3e9), rating("u1", "i2", 3.0, math.nan)])
        await until_drained(store)
    before = await now_held(settings)
    own_server.stop()
    shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
    own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([rating("u1", "i3", 3.0, 3e9)])
        await store.ratings.forget(b"u3")
        await store.ratings.forget(b"u4")
        await until_drained(store)
    own_server.stop()
    shutil.rmtree(own_server.folder / "appendonlydir")
    shutil.copytree(tmp_path / "aof", own_server.folder / "appendonlydir")
    own_server.start()
    since = [rating("u1", "i4", 1.0, 3e9), rating("u4", "i2", 1.0, 3e9), rating("u5", "new", 4.0, 3e9)]
    async with opened(settings.store) as store:
        assert await now_held(settings) == before
        assert {"u3", "u4"} <= {user for user, _ in before}
        assert {b"u3", b"u4"} <= {*await store.active.ids(1)}
        await store.ratings.append(since)
        expected = without(before, "u3", "u4")
        expected |= {(str(r.user_id, "ascii"), str(r.item_id, "ascii")): (r.rating, r.time) for r in since}
        # They leave those who may be neighbours by their erasures, not by the next generation alone.
        monkeypatch.setattr(ActiveUsers, "replace", published_no_more)
        async with running_trainer(replace(settings, adopt=True)):
            await until_drained(store)

            async def erased() -> bool:
                return not await store.redis.hlen(store.keys.erasing)

            await wait_until_async(erased, "both erasures have ended")
            assert not {b"u3", b"u4"} & {*await store.active.ids(1)}
            assert await now_held(settings) == expected
            assert {user for user, *_ in archived(settings)} == {user for user, _ in expected}
        # Nothing of theirs is in the trash that the archive went to.
        for segment in (settings.archive_folder / "trash").glob("epoch-*Z/*.parquet"):
            assert not {"u3", "u4"} & set(read_segment(segment)[0]["user_id"].to_pylist())
    async with running_trainer(settings):
        assert await now_held(settings) == expected


class KilledError(Exception):
    """The leader ends here."""


@pytest.mark.parametrize(
    "cut",
    [(Commands.ask, False), (Commands.ask, True), (RatingsLog.forget, True), (RatingsLog.append, False)],
)
async def test_a_leader_killed_while_it_erases_again_loses_no_later_rating(
    own_server: StoreServer,
    settings: TrainerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: tuple[Callable[..., Awaitable[object]], bool],
) -> None:
    """Before a step, or after it."""
    step, done = cut
    await archive_ratings(settings)
    own_server.stop()
    shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
    own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u4")
        await until_drained(store)
    put_back(own_server, tmp_path / "aof")
    root = ArchiveRoot(settings.archive_folder, guard=lambda: None)
    async with opened(settings.store) as store:
        await store.ratings.append([rating("u4", "i2", 1.0, 3e9), rating("u4", "new", 4.0, 3e9)])
        one = np.ones(1)
        await store.ratings.append_columns(Columns([b"u4"], [b"i3"], one, 3e9 * one, one.astype(np.uint8)))

        async def killed(*args: Any, **more: Any) -> None:
            if done:
                await step(*args, **more)
            raise KilledError

        with monkeypatch.context() as patch, contextlib.suppress(KilledError):
            owner = Commands if step is Commands.ask else RatingsLog
            patch.setattr(owner, step.__name__, killed)
            await erase_again(store, root)
        await erase_again(store, root)
        _, history = await store.users.history(1, b"u4")
        registry = store.items(1)
        await registry.refresh()
        left = {registry.id(row) for row in history.item_row.tolist()}, history.rating.tolist()
        assert left == ({"i2", "new"}, [1.0, 4.0])
        assert history.feedback.type_code.tolist() == [1]
        # So that the files of the store are written anew.
        assert await store.redis.hlen(store.keys.erasing)


@pytest.mark.parametrize("lost", [False, True], ids=["before the step", "after a step whose answer is lost"])
async def test_a_rating_that_comes_in_while_users_are_erased_again_stays(
    own_server: StoreServer,
    settings: TrainerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: bool,
) -> None:
    """`u3` has nothing that is kept, `u4` has a rating from after the copy."""
    await archive_ratings(settings)
    own_server.stop()
    shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
    own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await store.ratings.forget(b"u4")
        await until_drained(store)
    put_back(own_server, tmp_path / "aof")
    root = ArchiveRoot(settings.archive_folder, guard=lambda: None)
    forget, came_in = RatingsLog.forget, set[bytes]()

    async def interrupted(log: RatingsLog, user_id: bytes, *args: Any) -> Forgotten:
        is_first = user_id not in came_in
        came_in.add(user_id)
        if lost and is_first:
            await forget(log, user_id, *args)
        if is_first:
            await log.append([rating(user_id.decode(), "came in", 5.0, 3e9)])
        if lost and is_first:
            raise StoreUnavailable("the answer was lost")
        return await forget(log, user_id, *args)

    async with opened(settings.store) as store:
        await store.ratings.append([rating("u4", "i2", 1.0, 3e9)])
        with monkeypatch.context() as patch:
            patch.setattr(RatingsLog, "forget", interrupted)
            await erase_again(store, root)
        assert came_in == {b"u3", b"u4"}
        registry = store.items(1)
        await registry.refresh()
        left = {}
        for user_id in sorted(came_in):
            _, history = await store.users.history(1, user_id)
            left[user_id] = {registry.id(row) for row in history.item_row.tolist()}
        assert left == {b"u3": {"came in"}, b"u4": {"i2", "came in"}}


def put_back(own_server: StoreServer, files: Path) -> None:
    """Let the store have the files of an older copy."""
    own_server.stop()
    shutil.rmtree(own_server.folder / "appendonlydir")
    shutil.copytree(files, own_server.folder / "appendonlydir")
    own_server.start()


async def test_a_copy_that_lacks_no_event_is_looked_through_for_erased_attributes(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """Erasing a user without ratings leaves no event: the streams of the copy are those of the archive."""
    await archive_ratings(settings)
    async with opened(settings.store) as store:
        for user in (b"silent", b"other", b"damaged"):
            await store.attributes.change(user, lambda _: {"city": "Old"})
        damaged = store.keys.attributes(b"damaged")
        own_server.stop()
        shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
        own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        at_ms = (await store.ratings.forget(b"silent")).at_ms
        receipt = await store.commands.ask("erase", epoch=1, user=b"silent", at_ms=at_ms)
        assert await store.commands.wait(receipt, 20) is not None
    put_back(own_server, tmp_path / "aof")
    async with opened(settings.store) as store:
        assert await store.attributes.get(b"silent") == {"city": "Old"}
        # What cannot be read keeps nothing else from being looked at.
        await store.redis.delete(damaged)
        await store.redis.set(damaged, b"\xff")
        # It is not to be adopted: nothing is missing.
        async with running_trainer(settings):

            async def gone() -> bool:
                return await store.attributes.get(b"silent") is None

            await wait_until_async(gone, "the attributes are gone again")
            assert await store.attributes.get(b"other") == {"city": "Old"}
            # Also under a trainer that runs.
            await store.redis.hset(store.keys.attributes(b"silent"), mapping={"value": "{}", "at": at_ms})
            own_server.stop()
            own_server.start()

            async def gone_again() -> bool:
                with contextlib.suppress(StoreUnavailable):
                    return await store.attributes.get(b"silent") is None
                return False

            await wait_until_async(gone_again, "the attributes are gone once more")
        assert await store.redis.get(damaged) == b"\xff"


async def test_a_copy_between_the_two_steps_of_forgetting_names_the_user_no_more(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    await archive_ratings(settings)
    async with opened(settings.store) as store:
        for user in (b"u1", b"u2"):
            await store.redis.sadd(store.keys.active(1, partition_of(user, store.keys.partitions)), user)
        at_ms = (await store.ratings.forget(b"u1")).at_ms
        own_server.stop()
        shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
        own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        receipt = await store.commands.ask("erase", epoch=1, user=b"u1", at_ms=at_ms)
        assert await store.commands.wait(receipt, 20) is not None
    put_back(own_server, tmp_path / "aof")
    async with opened(settings.store) as store:
        assert {b"u1", b"u2"} <= set(await store.active.ids(1))
        async with running_trainer(settings):

            async def gone() -> bool:
                return b"u1" not in await store.active.ids(1)

            await wait_until_async(gone, "the user is named no more")
            assert b"u2" in await store.active.ids(1)


async def test_attributes_are_looked_through_again_when_the_store_has_started_not_when_a_connection_was_lost(
    own_server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive_ratings(settings)
    root = ArchiveRoot(settings.archive_folder, guard=lambda: None)
    looks: list[int] = []

    async def counted(_store: Store, epoch: int, *_: Any) -> int:
        looks.append(epoch)
        return 0

    monkeypatch.setattr(older_copy, "erase_attributes_again", counted)
    monkeypatch.setattr(older_copy, "_LOOK_S", 0.02)
    async with opened(settings.store) as store:
        asked = 0
        each = store.redis.each

        async def counted_each(*commands: Any) -> Any:
            nonlocal asked
            found = await each(*commands)
            asked += ["INFO", "replication"] in commands
            return found

        monkeypatch.setattr(store.redis, "each", counted_each)
        keeping = asyncio.create_task(older_copy.keep_attributes_erased(store, root))
        try:
            await wait_until_async(lambda: looks == [1], "the first look")
            # Twice: that it asks again says that what followed the first is over.
            for _ in range(2):
                before = asked
                await store.redis.client_kill_filter(_type="normal")
                await wait_until_async(lambda: asked > before, "it asks whether the process is the same")  # noqa: B023
            own_server.stop()
            own_server.start()
            await wait_until_async(lambda: len(looks) > 1, "another process of the store")
        finally:
            keeping.cancel()
    assert looks == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["adopt", "restore"])
async def test_attributes_of_an_older_copy_are_erased_again(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, way: str
) -> None:
    """`silent` has no rating, `later` only newer ones. What was given after the erasure stays."""
    await archive_ratings(settings)
    erased = (b"silent", b"later", b"again", b"spoilt")
    async with opened(settings.store) as store:
        for user in (*erased[:3], b"other"):
            await store.attributes.change(user, lambda _: {"city": "Old"})
        # Damaged: one of a user who is erased, and one of another.
        for user in (b"spoilt", b"spoilt too"):
            await store.redis.hset(store.keys.attributes(user), mapping={"value": "{", "at": "x"})
    own_server.stop()
    shutil.copytree(own_server.folder / "appendonlydir", tmp_path / "aof")
    own_server.start()
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([rating("u1", "i3", 3.0, 3e9)])
        for user in erased:
            at_ms = (await store.ratings.forget(user)).at_ms
            receipt = await store.commands.ask("erase", epoch=1, user=user, at_ms=at_ms)
            outcome = await store.commands.wait(receipt, 20)
            assert outcome is not None
            assert outcome.state == "done"
        await until_drained(store)
    own_server.stop()
    shutil.rmtree(own_server.folder / "appendonlydir")
    shutil.copytree(tmp_path / "aof", own_server.folder / "appendonlydir")
    own_server.start()
    async with opened(settings.store) as store:
        await store.ratings.append([rating("later", "i2", 1.0, 3e9)])
        await store.attributes.change(b"again", lambda _: {"city": "New"})
        assert await store.attributes.get(b"silent") == {"city": "Old"}
        restoring = None
        if way == "restore":
            restoring = asyncio.create_task(restored(settings, settings.archive_folder))
            trash = settings.archive_folder / "trash"
            await wait_until_async(lambda: list(trash.glob("epoch-*Z")), "the archive is adopted")
        async with running_trainer(replace(settings, adopt=way == "adopt")):
            if restoring is not None:
                await asyncio.wait_for(restoring, 40)
            await until_drained(store)

            async def ended() -> bool:
                return not await store.redis.hlen(store.keys.erasing)

            await wait_until_async(ended, "the erasures have ended")
        now = {user: await store.attributes.get(user) for user in (*erased, b"other")}
        new, old = {"city": "New"}, {"city": "Old"}
        assert now == {b"silent": None, b"later": None, b"spoilt": None, b"again": new, b"other": old}
        assert await store.redis.exists(store.keys.attributes(b"spoilt too"))
        assert ("later", "i2") in await now_held(settings)
    # Each was asked of the trainer, so that the store has written its files anew.
    own_server.stop()
    files = [path.read_bytes() for path in (own_server.folder / "appendonlydir").iterdir()]
    assert any(b"other" in content for content in files)
    assert not any(b"silent" in content for content in files)


@pytest.mark.slow
async def test_a_rebuilt_archive_tells_before_from_after(settings: TrainerSettings) -> None:
    before = await archive_ratings(settings)
    shutil.rmtree(settings.archive_folder / "epoch-000001")
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([rating("u1", "i11", 1.0, 3e9)])
        await until_drained(store)
        # u3 was in it when it was rebuilt, and is erased since; the next one is rebuilt after that.
        first = copy_of(settings, "first")
        await store.ratings.forget(b"u3")
        await store.ratings.append([rating("u3", "i1", 2.0, 3e9)])
        await until_drained(store)
    assert archived(settings)
    shutil.rmtree(settings.archive_folder / "epoch-000001")
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([rating("u1", "i10", 1.0, 3e9)])
        await until_drained(store)
        second = copy_of(settings, "second")
        for source, back in ((first, {}), (second, BACK)):
            await restored(settings, source, request=RestoreRequest(source, live="none"))
            now = await now_held(settings)
            assert without(now, "u1") == without(before, "u1", "u3") | back


async def test_an_emptied_store_keeps_them_away(own_server: StoreServer, settings: TrainerSettings) -> None:
    before = await archive_ratings(settings)
    copy = copy_of(settings, "copy")
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.forget(b"u3")
        await until_drained(store)
    empty(own_server)
    async with opened(settings.store) as store:
        await store.ratings.append([rating("u3", "i1", 2.0, 3e9)])
    restoring = asyncio.create_task(restored(settings, copy))
    trash = settings.archive_folder / "trash"
    await wait_until_async(lambda: list(trash.glob("epoch-*Z")), "the archive is adopted")
    async with running_trainer(settings):
        await asyncio.wait_for(restoring, 40)
        assert await now_held(settings) == without(before, "u3") | BACK
