"""Backup and verify while everything runs: nothing acknowledged is missing, and what differs is named."""

import asyncio
import math
import shutil
from pathlib import Path

import pytest

from featurestore.codecs import pack_entry
from featurestore.ratings.log import NewRating
from processes.errors import CannotStartError
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import GIVEN, LATER, Held, backed_up, empty, held, opened, restored, verified
from tests.support.trainers import archived, erased, fitted, running_trainer, until_drained
from tests.support.waiting import some
from trainer.archive.json_files import FORMAT
from trainer.errors import ArchiveRefusedError

pytestmark = pytest.mark.usefixtures("quick_rounds")


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


async def test_all_that_was_acknowledged_comes_back_from_the_backup_alone(learned: Learned) -> None:
    """The store, the archive and every merge go on while it is made, and while both are compared."""
    settings, target = learned.settings, learned.server.folder / "backup"
    acknowledged: Held = {}
    stop = asyncio.Event()

    async def load() -> None:
        number = 0
        async with opened(settings.store) as store:
            while not stop.is_set():
                user, value = f"w{number % 7}", 1.0 + number % 5
                await store.ratings.append([rating(user, f"i{k}", value, float(number)) for k in range(12)])
                acknowledged.update({(user, f"i{k}"): (value, float(number)) for k in range(12)})
                number += 1
                if number % 20 == 0:
                    await store.ratings.forget(b"u4")

    taken_back = GIVEN[9].item_id
    async with running_trainer(settings), opened(settings.store) as store:
        await store.items(1).register([b"unrated"])
        await store.ratings.append([NewRating(b"u1", taken_back, math.nan, 3e9)])
        await fitted(store)
        loading = asyncio.create_task(load())
        for _ in range(3):
            found = await verified(settings)
            # Those who rate meanwhile are counted; u5 to u9 stand still.
            assert (found.count, found.users >= 5) == (0, True), found.differences
            before = dict(acknowledged)
            manifest = await backed_up(settings, target)
        stop.set()
        await loading
        await store.items(1).refresh()
        items = list(store.items(1).ids)
    assert (manifest.epoch, manifest.namespace, manifest.partitions) == (1, "t", 4)
    shutil.rmtree(settings.archive_folder.parent)
    empty(learned.server)
    async with running_trainer(settings), opened(settings.store) as store:
        await restored(settings, target)
        now = await held(store)
        await store.items(2).refresh()
        assert list(store.items(2).ids) == items
        await until_drained(store, 2)
        found = await verified(settings)
    # Of those that rated on during the backup it may have more.
    assert now.keys() >= before.keys()
    assert all(now[pair][1] >= entry[1] for pair, entry in before.items())  # type: ignore[operator]  # all have one
    assert ("u1", taken_back.decode()) not in now
    assert found.count == found.moved == 0, found
    assert found.ratings == len(now)


async def test_again_what_is_new_is_copied_and_the_forgotten_leave(learned: Learned) -> None:
    settings, target = learned.settings, learned.server.folder / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        assert await store.telemetry.last_backup() is None
        await backed_up(settings, target)
        assert some(await store.telemetry.last_backup()).events == len(GIVEN)
        first = files(target)
        await store.ratings.append(LATER)
        await backed_up(settings, target)
        second = files(target)
        kept = [name for name in first if name.endswith(".parquet") and second.get(name) == first[name]]
        assert kept
        assert len(second) > len(first)
        (folder,) = target.iterdir()
        assert "u3" in {user for user, *_ in archived(settings, path=folder)}
        await erased(store, b"u3")
        await backed_up(settings, target)
    assert "u3" not in {user for user, *_ in archived(settings, path=folder)}


async def test_what_is_missing_damaged_or_newer_is_refused(learned: Learned) -> None:
    settings, target = learned.settings, learned.server.folder / "backup"
    async with running_trainer(settings):
        await backed_up(settings, target)
    (folder,) = target.iterdir()
    (segment, *_), (items,) = folder.glob("*.parquet"), folder.glob("items-*.list")
    manifest = folder / "manifest.json"
    for path in (segment, items):
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CannotStartError, match=path.name):
            await restored(settings, target)
        path.unlink()
        with pytest.raises(CannotStartError, match=path.name):
            await restored(settings, target)
        path.write_bytes(sound)
    said = manifest.read_text()
    manifest.write_text(said[:20])
    with pytest.raises(CannotStartError, match=r"manifest\.json"):
        await restored(settings, target)
    newer = said.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}')
    manifest.write_text(newer)
    for refused in (restored(settings, target), backed_up(settings, target)):
        with pytest.raises(ArchiveRefusedError, match="use the version that wrote it"):
            await refused
    assert manifest.read_text() == newer
    async with opened(settings.store) as store:
        assert (await store.generations.live()).last_epoch == 1


async def test_verify_names_what_differs(learned: Learned) -> None:
    settings = learned.settings
    async with running_trainer(settings), opened(settings.store) as store:
        same = await verified(settings)
        assert (same.users, same.ratings, same.moved, same.count) == (10, len(GIVEN), 0, 0)
        await store.items(1).refresh()
        keys, ids = store.keys, store.items(1).ids
        # Other bytes in a history, a rating that the store has lost, one that only it has.
        changed, lost = (min(g.item_id for g in GIVEN if g.user_id == user) for user in (b"u1", b"u2"))
        rated = {g.item_id for g in GIVEN if g.user_id == b"u3"}
        more = next(row for row, item_id in enumerate(ids) if item_id not in rated)
        for user, row, value in ((b"u1", ids.index(changed), 1.25), (b"u2", ids.index(lost), math.nan)):
            await store.redis.append(keys.history(1, user), pack_entry(row, value, 7.0))
        await store.redis.append(keys.history(1, b"u3"), pack_entry(more, 2.0, 7.0))
        # A count of its own, and a user who is gone from the store.
        await store.redis.hincrby(keys.user(1, b"u4"), "n", 2)
        await store.redis.delete(keys.user(1, b"u5"), keys.history(1, b"u5"))
        found = await verified(settings)
    text = "\n".join(found.differences)
    assert found.count == 5, text
    assert f"user u1, item {changed.decode()}: has another rating" in text
    assert f"user u2, item {lost.decode()}: is in the archive only" in text
    assert f"user u3, item {ids[more].decode()}: is in the store only" in text
    assert "user u4: the store has 11 events, the archive 9" in text
    assert "user u5: the archive has 9 events, the store 0" in text
