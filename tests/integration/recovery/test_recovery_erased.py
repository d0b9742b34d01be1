"""A user who was forgotten never comes back from an older copy, and loses nothing that was rated since."""

import contextlib
import math
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.commands import Commands
from featurestore.errors import StoreUnavailable
from featurestore.keys import partition_of
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import Forgotten, RatingsLog
from featurestore.store import Store
from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryRefusedError
from foldin.recovery.restoring import RestoreRequest
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import (
    LATER,
    Held,
    copied_files,
    empty,
    held,
    now_held,
    opened,
    put_back,
    restored,
    restored_and_led,
)
from tests.support.trainers import Crash, archived, erased, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.erasures import ledger_files
from trainer.archive.root import ArchiveRoot
from trainer.erasure.older_copy import erase_again
from trainer.settings import TrainerSettings

BACK = {("u3", "i1"): (2.0, 3e9)}
pytestmark = pytest.mark.usefixtures("quick_rounds")


def copy_of(settings: TrainerSettings, name: str) -> Path:
    return Path(shutil.copytree(settings.archive_folder, settings.archive_folder.parent.with_name(name)))


def without(held: Held, *users: str) -> Held:
    return {pair: entry for pair, entry in held.items() if pair[0] not in users}


async def rated_by(store: Store, user_id: bytes) -> set[bytes]:
    _, history = await store.users.history(1, user_id)
    registry = store.items(1)
    await registry.refresh()
    return {registry.id(row).encode() for row in history.item_row.tolist()}


async def test_an_older_copy_brings_no_forgotten_user_and_keeps_what_came_after(learned: Learned) -> None:
    settings, copy = learned.settings, copy_of(learned.settings, "copy")
    lines: list[str] = []
    async with running_trainer(settings), opened(settings.store) as store:

        async def restore(source: Path) -> Held:
            nonlocal lines
            _, lines = await restored(settings, source, request=RestoreRequest(source, live="none"))
            return await held(store)

        await store.ratings.forget(b"u3")
        await store.ratings.append([*LATER[:5], rating("u3", "i1", 2.0, 3e9)])
        # No generation that is kept has seen the user: the store does not remember who was forgotten.
        for _ in range(2):
            await fitted(store)

        async def released() -> bool:
            return not await store.ratings.forgotten(1)

        await wait_until_async(released, "the store remembers no forgotten user")
        await until_drained(store)
        newer = copy_of(settings, "newer")
        kept = without(learned.held, "u3")
        assert await restore(copy) == kept
        stay_away = len(learned.held) - len(kept)
        assert f"  {stay_away} ratings of users who were forgotten since stay away" in lines
        # From the archive that has both; twice: what was restored came after the erasure, too.
        for _ in range(2):
            assert without(await restore(newer), "late0") == kept | BACK
        # It is erased by the next one alone.
        await store.ratings.forget(b"u3")
        assert without(await restore(newer), "late0") == kept


async def test_a_backup_knows_who_was_forgotten_and_a_damaged_ledger_brings_no_one_back_unasked(
    learned: Learned, tmp_path: Path
) -> None:
    """The machine is gone. What is left is a backup, and an older copy of the archive."""
    settings, copy, backup = learned.settings, copy_of(learned.settings, "copy"), tmp_path / "backup"
    said: list[str] = []
    wanted = without(learned.held, "u3", "u4")
    async with running_trainer(settings), opened(settings.store) as store:
        for user in (b"u3", b"u4"):
            await erased(store, user)
            await back_up(store, settings, backup, said.append)
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
        request = RestoreRequest(copy, live="none")
        with pytest.raises(RecoveryRefusedError, match=ledger.name):
            await restored(settings, copy, request=request)
        # As `foldin undo` asks for it: nothing else that is damaged passes.
        undo = RestoreRequest(copy, live="timed", dry_run=True, skip_damaged_ledger=True)
        await restored(settings, copy, request=undo)
        segment = min(copy.rglob("*.parquet"))
        segment.write_bytes(segment.read_bytes()[:-40])
        with pytest.raises(RecoveryRefusedError, match=segment.name):
            await restored(settings, copy, request=undo)
        second = tmp_path / "second"
        await back_up(store, settings, second, said.append)
        assert any(ledger.name in line and "damaged" in line for line in said)
        with pytest.raises(RecoveryRefusedError, match="damaged"):
            await restored(settings, second)
        await restored(settings, second, request=RestoreRequest(second, live="none", skip_damaged=True))
        assert await now_held(settings) == wanted


async def test_erasures_that_wait_for_a_trainer_count(learned: Learned) -> None:
    """Of users whom the store does not know, too."""
    settings, copy = learned.settings, copy_of(learned.settings, "copy")
    async with opened(settings.store) as store:
        # As of a store that lost its end.
        await store.redis.delete(store.keys.user(1, b"u4"), store.keys.history(1, b"u4"))
        for user in (b"u3", b"u4"):
            at_ms = (await store.ratings.forget(user)).at_ms
            await store.commands.ask("erase", epoch=1, user=user, at_ms=at_ms)
        await store.ratings.append([rating("u3", "i1", 2.0, 3e9)])
    request, kept = RestoreRequest(copy, live="none", dry_run=True), without(learned.held, "u3", "u4")
    _, lines = await restored(settings, copy, request=request)
    stay_away = len(learned.held) - len(kept)
    assert f"  {stay_away} ratings of users who were forgotten since stay away" in lines
    async with running_trainer(settings):
        await restored(settings, copy)
        assert await now_held(settings) == kept | BACK


@pytest.mark.parametrize("way", ["adopt", "restore", "emptied"])
async def test_a_store_that_was_put_back_from_an_older_copy(
    learned: Learned, tmp_path: Path, way: str
) -> None:
    """u1 was erased and came back before the copy: all of it stays. u3 and u4 were erased after it, and so
    were users of whom there are attributes alone.
    """
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

    async def ended(store: Store) -> bool:
        return not await store.redis.hlen(store.keys.erasing)

    if way == "adopt":
        async with running_trainer(replace(settings, adopt=True)), opened(settings.store) as store:
            await until_drained(store)
            await wait_until_async(lambda: ended(store), "the erasures have ended")
            assert not {b"u3", b"u4"} & {*await store.active.ids(1)}
            assert await held(store) == wanted
            assert {user for user, *_ in archived(settings)} == {user for user, _ in wanted}
            # Nothing that was erased is in the trash that the archive went to.
            for entry in (settings.archive_folder / "trash").glob("epoch-*Z"):
                assert ("u4", "i2") not in {
                    (user, item) for user, _, item, _ in archived(settings, path=entry)
                }
    else:
        async with restored_and_led(settings, settings.archive_folder) as (store, _, _):
            assert await held(store) == wanted | BACK | {("u1", "i3"): (3.0, 3e9)}
            await wait_until_async(lambda: ended(store), "the erasures have ended")
    if way != "emptied":
        async with opened(settings.store) as store:
            now = {user: await store.attributes.get(user) for user in (b"silent", b"again", b"other")}
        assert now == {b"silent": None, b"again": {"city": "New"}, b"other": {"city": "Old"}}
        # Each was asked of the trainer, so that the store has written its files anew.
        server.stop()
        contents = [path.read_bytes() for path in (server.folder / "appendonlydir").iterdir()]
        assert any(b"other" in content for content in contents)
        assert not any(b"silent" in content for content in contents)


@pytest.fixture
async def lacking(learned: Learned, tmp_path: Path) -> TrainerSettings:
    """A store that was put back from before `u3` and `u4` were erased."""
    files = copied_files(learned.server, tmp_path / "aof")
    async with running_trainer(learned.settings), opened(learned.settings.store) as store:
        await erased(store, b"u3")
        await erased(store, b"u4")
        await until_drained(store)
    put_back(learned.server, files)
    return learned.settings


@pytest.mark.parametrize(
    "cut",
    [(Commands.ask, False), (Commands.ask, True), (RatingsLog.forget, True), (RatingsLog.append, False)],
)
async def test_a_leader_that_ends_while_it_erases_again_loses_no_later_rating(
    lacking: TrainerSettings,
    monkeypatch: pytest.MonkeyPatch,
    cut: tuple[Callable[..., Awaitable[object]], bool],
) -> None:
    """Before a step, or after it."""
    step, done = cut
    root = ArchiveRoot(lacking.archive_folder, guard=lambda: None)
    async with opened(lacking.store) as store:
        await store.ratings.append([rating("u4", "i2", 1.0, 3e9), rating("u4", "new", 4.0, 3e9)])
        one = np.ones(1)
        await store.ratings.append_columns(Columns([b"u4"], [b"i3"], one, 3e9 * one, one.astype(np.uint8)))

        async def killed(*args: Any, **more: Any) -> None:
            if done:
                await step(*args, **more)
            raise Crash

        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            owner = Commands if step is Commands.ask else RatingsLog
            patch.setattr(owner, step.__name__, killed)
            await erase_again(store, root)
        await erase_again(store, root)
        _, history = await store.users.history(1, b"u4")
        assert await rated_by(store, b"u4") == {b"i2", b"new"}
        assert history.rating.tolist() == [1.0, 4.0]
        assert history.feedback.type_code.tolist() == [1]
        # So that the files of the store are written anew.
        assert await store.redis.hlen(store.keys.erasing)


@pytest.mark.parametrize("lost", [False, True], ids=["before the step", "after a step whose answer is lost"])
async def test_a_rating_that_comes_in_while_users_are_erased_again_stays(
    lacking: TrainerSettings, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """`u3` has nothing that is kept, `u4` has a rating from after the copy."""
    root = ArchiveRoot(lacking.archive_folder, guard=lambda: None)
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

    async with opened(lacking.store) as store:
        await store.ratings.append([rating("u4", "i2", 1.0, 3e9)])
        with monkeypatch.context() as patch:
            patch.setattr(RatingsLog, "forget", interrupted)
            await erase_again(store, root)
        left = {user: await rated_by(store, user) for user in came_in}
    assert left == {b"u3": {b"came in"}, b"u4": {b"i2", b"came in"}}


async def test_a_copy_that_lacks_no_event_is_looked_through_for_erased_attributes_and_names(
    learned: Learned, tmp_path: Path
) -> None:
    """Erasing a user without ratings leaves no event: the streams of the copy are those of the archive. And
    of `u1` the copy is between the two steps of forgetting.
    """
    settings, server = learned.settings, learned.server
    async with opened(settings.store) as store:
        for user in (b"silent", b"other"):
            await store.attributes.change(user, lambda _: {"city": "Old"})
        await store.redis.sadd(store.keys.active(1, partition_of(b"u1", store.keys.partitions)), b"u1")
        await store.ratings.forget(b"u1")
        damaged = store.keys.attributes(b"damaged")
    files = copied_files(server, tmp_path / "aof")
    async with running_trainer(settings), opened(settings.store) as store:
        await erased(store, b"silent")
        await erased(store, b"u1")
    put_back(server, files)
    async with opened(settings.store) as store:
        assert await store.attributes.get(b"silent") == {"city": "Old"}
        assert b"u1" in await store.active.ids(1)
        # What cannot be read keeps nothing else from being looked at.
        await store.redis.set(damaged, b"\xff")

        async def gone() -> bool:
            # The store may have started just now.
            with contextlib.suppress(StoreUnavailable):
                return await store.attributes.get(b"silent") is None
            return False

        async def named_no_more() -> bool:
            return b"u1" not in await store.active.ids(1)

        # It is not to be adopted: nothing is missing.
        async with running_trainer(settings):
            await wait_until_async(gone, "the attributes are gone again")
            await wait_until_async(named_no_more, "the user is named no more")
            assert await store.attributes.get(b"other") == {"city": "Old"}
            # Also under a trainer that runs.
            await store.redis.hset(store.keys.attributes(b"silent"), mapping={"value": "{}", "at": 1})
            server.stop()
            server.start()
            await wait_until_async(gone, "the attributes are gone once more")
        assert await store.redis.get(damaged) == b"\xff"
