"""Backup and verify while everything runs: nothing acknowledged is missing, and what differs is named."""

import asyncio
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.catalogue.catalogue import Change
from featurestore.catalogue.item import CatalogueItem
from featurestore.codecs import ENTRY_BYTES, pack_entry
from featurestore.ratings.log import NewRating
from foldin.commands.progress import Shown
from foldin.recovering import run_verify
from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryRefusedError, RecoveryStoppedError
from foldin.recovery.manifest import Manifest, read_manifest
from foldin.recovery.verifying import Verified, verify
from foldin.settings import FrontDoorSettings, VerifyOptions
from tests.support.factories import rating
from tests.support.recovering import GIVEN, LATER, Held, archive_ratings, held, opened, restored
from tests.support.servers import StoreServer
from tests.support.trainers import fitted, running_trainer, until_drained
from trainer.archive.json_files import FORMAT
from trainer.settings import TrainerSettings


async def backed_up(settings: TrainerSettings, target: Path) -> Manifest:
    async with opened(settings.store) as store:
        return await back_up(store, settings, target, lambda _line: None)


async def verified(settings: TrainerSettings) -> Verified:
    async with opened(settings.store) as store:
        return await verify(store, settings, lambda _line: None)


def wipe(server: StoreServer, settings: TrainerSettings) -> None:
    """The machine is gone."""
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.rmtree(settings.archive_folder.parent)
    server.start()


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


async def test_the_catalogue_comes_back_from_a_backup(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """What the store has stays; attributes of users who were forgotten since do not come back."""
    target = tmp_path / "backup"
    known = {"a": CatalogueItem("a", "A", hidden=True), "b": CatalogueItem("b", attributes={"year": 1.0})}
    await archive_ratings(settings)
    async with opened(settings.store) as store:
        await store.catalogue.schema.hold("items", {"year": "number"})
        for item in (*known.values(), CatalogueItem("gone"), CatalogueItem("later", "before")):
            await store.catalogue.change({item.item_id.encode(): _becomes(item)})
        await store.catalogue.change({b"gone": _becomes(None)})
        for user in (b"u1", b"u2"):
            await store.attributes.change(user, lambda _: {"age": 30.0})
        await store.attributes.change(b"u1", lambda _: {"age": 31.0})
        await store.catalogue.schema.hold("users", {"age": "number"})
        for scenario in (b"home", b"other"):
            await store.scenarios.put(scenario, b'{"per_category":2}')
    async with running_trainer(settings):
        await backed_up(settings, target)
        manifest = read_manifest(target / "epoch-000001")
        assert manifest is not None
        assert manifest.catalogue_file is not None
        assert (await verified(settings)).count == 0
    wipe(own_server, settings)
    async with opened(settings.store) as store:
        await store.catalogue.change({b"later": _becomes(CatalogueItem("later", "since"))})
        await store.scenarios.put(b"other", b"{}")
        at_ms = (await store.ratings.forget(b"u2")).at_ms
        await store.commands.ask("erase", epoch=1, user=b"u2", at_ms=at_ms)
    async with running_trainer(settings):
        _, lines = await restored(settings, target)
        assert any("of the catalogue" in line for line in lines)
        async with opened(settings.store) as store:
            for name, item in known.items():
                assert await store.catalogue.get(name.encode()) == item
            assert await store.catalogue.get(b"later") == CatalogueItem("later", "since")
            (gone,) = await store.catalogue.states([b"gone"])
            assert (gone.data, gone.deleted) == (None, True)
            assert await store.catalogue.schema.types("items") == {"year": "number"}
            assert await store.scenarios.texts() == {"home": '{"per_category":2}', "other": "{}"}
            assert await store.attributes.get(b"u1") == {"age": 31.0}
            assert await store.attributes.get(b"u2") is None
            await store.redis.hset(store.keys.catalogue_items, "a", b"{")
        found = await verified(settings)
        assert "catalogue}:items" in found.differences[0]


async def test_a_bar_shows_how_far_a_comparison_is(
    settings: TrainerSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As on a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    await archive_ratings(settings)
    store = settings.store
    inherited = {
        "FOLDIN_REDIS_URL": store.url,
        "FOLDIN_NAMESPACE": store.namespace,
        "FOLDIN_PARTITIONS": str(store.partitions),
        "FOLDIN_ARCHIVE_DIR": str(settings.archive_folder.parent),
    }
    front_door = FrontDoorSettings(store.url, tmp_path / "state", False, inherited)
    steps: list[tuple[int, int | None]] = []
    done = Shown.done

    def noted(self: Shown, so_far: int, total: int | None) -> None:
        steps.append((so_far, total))
        done(self, so_far, total)

    monkeypatch.setattr(Shown, "done", noted)
    async with running_trainer(settings):
        assert await asyncio.to_thread(run_verify, VerifyOptions(), front_door) == 0
    partitions = [(k, store.partitions) for k in range(1, store.partitions + 1)]
    files = len(steps) - len(partitions)
    assert files > 0
    assert steps == [*partitions, *((k, files) for k in range(1, files + 1))]
    assert f"{files}/{files}" in capsys.readouterr().err


async def test_any_byte_of_a_history_that_was_changed_is_found(settings: TrainerSettings) -> None:
    """Where it makes another number that a rating can have, no reader of the history notices."""
    await archive_ratings(settings)
    async with running_trainer(settings), opened(settings.store) as store:
        await until_drained(store)
        key = store.keys.history(1, GIVEN[0].user_id)
        good = await store.redis.get(key)
        assert isinstance(good, bytes)
        for place in range(ENTRY_BYTES):
            await store.redis.set(key, good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            found = await verify(store, settings, lambda _line: None)
            assert found.count > 0, place
            assert GIVEN[0].user_id.decode() in found.differences[0]
        await store.redis.set(key, good)
        assert (await verify(store, settings, lambda _line: None)).count == 0


def _becomes(item: CatalogueItem | None) -> Change:
    return lambda _: item


@pytest.mark.slow
async def test_all_that_was_acknowledged_comes_back_from_the_backup_alone(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    """The store, the archive and every merge go on while it is made."""
    target = tmp_path / "backup"
    acknowledged: Held = {}
    stop = asyncio.Event()

    async def load() -> None:
        number = 0
        async with opened(settings.store) as store:
            while not stop.is_set():
                given = [
                    rating(f"w{number % 7}", f"i{k}", 1.0 + number % 5, float(number)) for k in range(12)
                ]
                await store.ratings.append(given)
                acknowledged.update(
                    {(g.user_id.decode(), g.item_id.decode()): (g.rating, g.time) for g in given}
                )
                number += 1

    async with running_trainer(settings), opened(settings.store) as store:
        await store.items(1).register([b"unrated"])
        await store.ratings.append(GIVEN)
        await store.ratings.append([NewRating(b"u1", GIVEN[9].item_id, math.nan, 3e9)])
        await fitted(store)
        loading = asyncio.create_task(load())
        for _ in range(3):
            await asyncio.sleep(0.3)
            before = dict(acknowledged)
            manifest = await backed_up(settings, target)
        stop.set()
        await loading
        await store.items(1).refresh()
        items = list(store.items(1).ids)
    assert (manifest.epoch, manifest.namespace, manifest.partitions) == (1, "t", 4)
    wipe(own_server, settings)
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
    assert ("u1", GIVEN[9].item_id.decode()) not in now
    assert found.count == found.moved == 0, found
    assert found.ratings == len(now)


async def test_again_only_what_is_new_is_copied(settings: TrainerSettings, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        assert await store.telemetry.last_backup() is None
        await backed_up(settings, target)
        noted, first = await store.telemetry.last_backup(), files(target)
        assert noted is not None
        assert (noted.events, noted.at > time.time() - 60) == (len(GIVEN), True)
        await store.ratings.append(LATER)
        await backed_up(settings, target)
    second = files(target)
    kept = [name for name in first if name.endswith(".parquet") and second.get(name) == first[name]]
    assert kept
    assert len(second) > len(first)


async def test_forgotten_users_leave_the_backup_with_the_next_one(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        await backed_up(settings, target)
        await store.ratings.forget(b"u3")
        await backed_up(settings, target)
    assert not any(b"u3" in path.read_bytes() for path in target.rglob("*.parquet"))


async def test_where_the_store_or_the_archive_is_no_backup_goes(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    settings = replace(settings, store_dir=own_server.folder / "appendonlydir")
    inside = settings.store_dir and settings.store_dir / "backup"
    for target, what in (
        (settings.archive_folder, "archive"),
        (inside, "store"),
        (own_server.folder, "archive"),
        (settings.store_dir, "store"),
    ):
        assert target is not None
        with pytest.raises(RecoveryRefusedError, match=f"is where the {what} is"):
            await backed_up(settings, target)


async def test_after_a_flush_it_is_said_what_to_do(settings: TrainerSettings, tmp_path: Path) -> None:
    await archive_ratings(settings)
    async with opened(settings.store) as store:
        await store.redis.flushall()
    for work in (verified(settings), backed_up(settings, tmp_path / "backup")):
        with pytest.raises(RecoveryRefusedError, match=r"made for another store.*`foldin restore`"):
            await work


async def test_a_backup_without_a_trainer_ends(
    settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foldin.recovery.reaching._PATIENCE_S", 0.5)
    async with opened(settings.store) as store:
        await store.ratings.append(GIVEN)
    with pytest.raises(RecoveryStoppedError, match="no trainer leads"):
        await backed_up(settings, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


async def test_what_is_missing_damaged_or_newer_is_refused(settings: TrainerSettings, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        await backed_up(settings, target)
    (folder,) = target.iterdir()
    (segment,) = folder.glob("*.parquet")
    manifest = folder / "manifest.json"
    (items,) = folder.glob("items-*.list")
    for path in (segment, items):
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(RecoveryRefusedError, match=path.name):
            await restored(settings, target)
        path.unlink()
        with pytest.raises(RecoveryRefusedError, match=path.name):
            await restored(settings, target)
        path.write_bytes(sound)
    said = manifest.read_text()
    for text in (said[:20], "{}", said.replace('"files"', '"other"')):
        manifest.write_text(text)
        with pytest.raises(RecoveryRefusedError, match=r"manifest\.json"):
            await restored(settings, target)
    newer = said.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}')
    manifest.write_text(newer)
    for refused in (restored(settings, target), backed_up(settings, target)):
        with pytest.raises(RecoveryRefusedError, match="use the version that wrote it"):
            await refused
    assert manifest.read_text() == newer
    manifest.write_text(said)
    assert read_manifest(folder) is not None
    async with opened(settings.store) as store:
        assert (await store.generations.live()).last_epoch == 1


async def test_the_folder_of_another_store_or_of_the_archive_is_refused(
    settings: TrainerSettings, own_server: StoreServer, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        await backed_up(settings, target)
        for folder in (settings.archive_folder.parent, settings.archive_folder / "backup", tmp_path):
            with pytest.raises(RecoveryRefusedError, match="where the archive is"):
                await backed_up(settings, folder)
    before = files(target)
    wipe(own_server, settings)
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(LATER)
        with pytest.raises(RecoveryRefusedError, match="another store"):
            await backed_up(settings, target)
    assert files(target) == before


async def test_killed_backups_leave_the_one_before(settings: TrainerSettings, tmp_path: Path) -> None:
    class Killed(BaseException):
        """As by a signal: nothing after it is done."""

    target = tmp_path / "backup"
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        await backed_up(settings, target)
        first = await held(store)
        await store.ratings.append([*LATER, rating("u1", "an item of its own")])
        for victim in ("reached", "copied", "listed", "manifest"):

            def step(name: str, victim: str = victim) -> None:
                if name == victim:
                    raise Killed

            with pytest.raises(Killed):
                await back_up(store, settings, target, lambda _line: None, step=step)
            _, lines = await restored(settings, target)
            assert any("nothing to do" in line for line in lines), victim
            assert any(f"{len(first):,} ratings" in line or "on top" in line for line in lines)
        await backed_up(settings, target)


async def test_two_backups_into_a_folder_take_turns(settings: TrainerSettings, tmp_path: Path) -> None:
    """Of two that overlap, the one that ends last would take away what the manifest of the other names."""
    target, refusals = tmp_path / "backup", list[BaseException | None]()
    loop = asyncio.get_running_loop()
    async with running_trainer(settings), opened(settings.store) as store:

        async def another() -> None:
            await store.ratings.append(LATER)
            await backed_up(settings, target)

        def step(name: str) -> None:
            # In its thread, before it tidies up.
            if name == "manifest":
                refusals.append(asyncio.run_coroutine_threadsafe(another(), loop).exception(30.0))

        await store.ratings.append(GIVEN)
        await back_up(store, settings, target, lambda _line: None, step=step)
        (folder,) = target.iterdir()
        manifest = read_manifest(folder)
        assert manifest is not None
        assert {path.name for path in folder.iterdir()} >= manifest.files.keys()
        assert "another backup" in str(refusals)
        # It is over.
        await backed_up(settings, target)


async def test_verify_names_what_differs(settings: TrainerSettings) -> None:
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append([*GIVEN, *LATER])
        await until_drained(store)
        same = await verified(settings)
        assert (same.users, same.ratings, same.moved, same.count) == (20, 180, 0, 0)
        keys = store.keys
        # Other bytes in a history, a rating that the store has lost, one that only it has.
        changed, lost = (min(g.item_id for g in GIVEN if g.user_id == user) for user in (b"u1", b"u2"))
        ids = store.items(1).ids
        more = next(
            k
            for k, item_id in enumerate(ids)
            if not any((g.user_id, g.item_id) == (b"u3", item_id) for g in GIVEN)
        )
        await store.redis.append(keys.history(1, b"u1"), pack_entry(ids.index(changed), 1.25, 7.0))
        await store.redis.append(keys.history(1, b"u2"), pack_entry(ids.index(lost), math.nan, 7.0))
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


async def test_verify_counts_those_who_rate_meanwhile(settings: TrainerSettings) -> None:
    stop = asyncio.Event()

    async def load() -> None:
        async with opened(settings.store) as store:
            number = 0
            while not stop.is_set():
                number += 1
                await store.ratings.append([rating(f"u{number % 5}", f"i{number % 12}", 1.0 + number % 5)])
                if number % 20 == 0:
                    await store.ratings.forget(b"u4")

    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        loading = asyncio.create_task(load())
        for _ in range(5):
            found = await verified(settings)
            assert found.count == 0, found.differences
            # u5 to u9 stand still.
            assert found.users >= 5
        stop.set()
        await loading


async def test_what_can_be_no_folder_of_a_backup_is_refused(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    async with running_trainer(settings), opened(settings.store) as store:
        await store.ratings.append(GIVEN)
        await until_drained(store, 1)
        (tmp_path / "file").touch()
        for name, why in (("file", "is not a folder"), ("x" * 300, "cannot be read: File name too long")):
            with pytest.raises(RecoveryRefusedError, match=why):
                await backed_up(settings, tmp_path / name)
