"""A user who was forgotten never comes back from an older copy, and loses nothing that was rated since."""

import math
import shutil
from dataclasses import replace
from functools import partial
from operator import not_
from pathlib import Path

import pytest

from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryRefusedError
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import (
    LATER,
    Held,
    backed_up,
    copied_files,
    copy_of,
    empty,
    held,
    now_held,
    opened,
    put_back,
    restored,
    restored_and_led,
    without,
)
from tests.support.trainers import archived, erased, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.archive.erasures import ledger_files

BACK = {("u3", "i1"): (2.0, 3e9)}
pytestmark = pytest.mark.usefixtures("quick_rounds")


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
        with pytest.raises(RecoveryRefusedError, match=ledger.name):
            await restored(settings, copy, live="none")
        # As `foldin undo` asks for it: nothing else that is damaged passes.
        undo = partial(restored, settings, copy, live="timed", dry_run=True, skip_damaged_ledger=True)
        await undo()
        segment = min(copy.rglob("*.parquet"))
        segment.write_bytes(segment.read_bytes()[:-40])
        with pytest.raises(RecoveryRefusedError, match=segment.name):
            await undo()
        second = tmp_path / "second"
        await back_up(store, settings, second, said.append)
        assert any(ledger.name in line and "damaged" in line for line in said)
        with pytest.raises(RecoveryRefusedError, match="damaged"):
            await restored(settings, second)
        await restored(settings, second, live="none", skip_damaged=True)
        assert await now_held(settings) == wanted


@pytest.mark.parametrize("way", ["adopt", "restore", "emptied"])
async def test_a_store_that_was_put_back_from_an_older_copy(
    learned: Learned, tmp_path: Path, way: str
) -> None:
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
                assert ("u4", "i2") not in {
                    (user, item) for user, _, item, _ in archived(settings, path=entry)
                }
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
