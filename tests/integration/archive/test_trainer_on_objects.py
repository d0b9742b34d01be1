"""A trainer whose archive is on an object store: what it promises of a folder holds there."""

import asyncio
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.store import Store
from foldin.recovering import find_source_at
from foldin.recovery.backing_up import _taken, back_up
from foldin.recovery.errors import RecoveryRefusedError
from foldin.recovery.verifying import verify
from tests.fault.test_trainer_fences import STILL_CLOCK, until_frozen
from tests.support.event_tables import free
from tests.support.factories import low_rank_ratings
from tests.support.object_store import CREDENTIALS, Between, ObjectServer, everything
from tests.support.recovering import LATER, empty, held, opened, restored
from tests.support.servers import StoreServer
from tests.support.trainers import ChildTrainer, archived, fitted, refused, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer import upkeep
from trainer.app import Trainer
from trainer.archive.root import ArchiveRoot
from trainer.archive.storage import client, fences, files, ranges
from trainer.archive.storage.address import ObjectAddress
from trainer.archive.storage.client import ObjectClient
from trainer.archive.storage.files import Location, located
from trainer.archive.trash import Trash
from trainer.errors import ArchiveRefusedError
from trainer.item_updates import updater
from trainer.item_updates.messages import LiveFit
from trainer.settings import TrainerSettings

GIVEN = low_rank_ratings(users=10, items=12)
FORGOTTEN = b"someone-who-is-forgotten"


@pytest.fixture
def on_objects(settings: TrainerSettings, address: ObjectAddress, tmp_path: Path) -> TrainerSettings:
    return replace(settings, archive_dir=address, fits_dir=tmp_path / "fits", credentials=CREDENTIALS)


async def backed_up(settings: TrainerSettings, target: Location) -> None:
    async with opened(settings.store) as store:
        await back_up(store, settings, target, lambda _line: None)


async def same(settings: TrainerSettings) -> int:
    """How many ratings archive and store have, which are the same ones."""
    async with opened(settings.store) as store:
        found = await verify(store, settings, lambda _line: None)
    assert found.count == 0, found.differences
    return found.ratings


async def forgotten(store: Store, address: ObjectAddress) -> None:
    """Forget a user, and wait until no object has the id."""
    given = await store.ratings.forget(FORGOTTEN)
    await store.commands.ask("erase", epoch=1, user=FORGOTTEN, at_ms=given.at_ms)

    async def gone() -> bool:
        objects = await asyncio.to_thread(everything, address)
        return not any(FORGOTTEN in content for content in objects.values())

    await wait_until_async(gone, "no object with the user's id")


# Two restores wait for a trainer and its fits: a minute of a machine that is busy.
@pytest.mark.timeout(240)
async def test_archive_fit_backup_restore_and_erasure(
    own_server: StoreServer, on_objects: TrainerSettings, objects: ObjectServer, tmp_path: Path
) -> None:
    settings, address = on_objects, on_objects.archive_dir
    assert isinstance(address, ObjectAddress)
    backup = objects.address()
    mine = [replace(each, user_id=FORGOTTEN) for each in GIVEN[:5]]
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN + mine)
        # The second one goes on from the files of the first.
        assert await fitted(store) < await fitted(store)
        await until_drained(store)
        was = await held(store)
        assert await same(settings) == len(was)
        await backed_up(settings, located(backup, CREDENTIALS))
        again = objects.address()
        await backed_up(settings, located(again, CREDENTIALS))
        await backed_up(settings, tmp_path / "backup")
        with pytest.raises(RecoveryRefusedError, match="is where the archive is"):
            await backed_up(settings, located(address / "inside", CREDENTIALS))
        await forgotten(store, address)
        for place in (backup, again):
            assert any(FORGOTTEN in content for content in everything(place).values())
        await backed_up(settings, located(again, CREDENTIALS))
        assert not any(FORGOTTEN in content for content in everything(again).values())
        now = await held(store)
    names = {path.name for path in (tmp_path / "backup" / "epoch-000001").iterdir()}
    there = located(backup, CREDENTIALS) / "epoch-000001"
    assert {path.name for path in there.iterdir()} == names
    empty(own_server)
    # The archive itself, by the address of what it is in.
    source = await asyncio.to_thread(find_source_at, address, settings)
    restoring = asyncio.create_task(restored(settings, source))

    def adopted() -> int:
        return len(Trash(settings.archive_folder / "trash", guard=free).entries())

    await wait_until_async(lambda: asyncio.to_thread(adopted), "the archive is adopted")
    async with running_trainer(settings), opened(settings.store) as store:
        await asyncio.wait_for(restoring, 60)
        assert await held(store) == now
    empty(own_server)
    fresh = replace(settings, archive_dir=objects.address())
    async with opened(fresh.store) as store, running_trainer(fresh):
        await restored(fresh, located(backup, CREDENTIALS))
        assert await held(store) == was
        await store.ratings.append(LATER)
        await until_drained(store, (await store.generations.live()).epoch)
        assert await same(fresh) == len(await held(store))


@pytest.mark.parametrize(
    ("step", "how"),
    [
        ("segment:synced", signal.SIGKILL),
        ("segment:renamed", signal.SIGKILL),
        ("segment:synced", signal.SIGSTOP),
    ],
)
async def test_leader_that_ends_or_freezes_amid_a_commit(
    on_objects: TrainerSettings, step: str, how: signal.Signals
) -> None:
    async with opened(on_objects.store) as store:
        given = list(GIVEN)
        await store.ratings.append(given)
        child = ChildTrainer(on_objects, step, 1, how, STILL_CLOCK)
        try:
            if how == signal.SIGSTOP:
                await until_frozen(store, child, given)
            else:
                await store.ratings.append(LATER)
                given += LATER
                await wait_until_async(lambda: child.ended, "the trainer killed itself")
            async with running_trainer(on_objects):
                await until_drained(store)
                if how == signal.SIGSTOP:
                    child.process.send_signal(signal.SIGCONT)
                    await wait_until_async(
                        lambda: b"lease_lost" in child.log.read_bytes(), "the frozen trainer knows"
                    )
                    assert b"Traceback" not in child.log.read_bytes()
                await store.ratings.append(LATER)
                given += LATER
                await until_drained(store)
                assert len(archived(on_objects)) == len(given)
                assert await same(on_objects) == len(await held(store))
        finally:
            if not child.ended:
                child.end()


async def test_ratings_wait_while_the_object_store_is_away(
    on_objects: TrainerSettings,
    objects: ObjectServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(on_objects.archive_dir, ObjectAddress)
    caplog.set_level("INFO")
    with Between(objects) as between:
        between.refuse = "InternalError"
        settings = replace(on_objects, archive_dir=between.before(on_objects.archive_dir))
        async with opened(settings.store) as store, running_trainer(settings):
            await store.ratings.append(GIVEN)
            await wait_until_async(lambda: "reason=archive" in caplog.text, "a line that says so")
            between.refuse = None
            await until_drained(store)
            between.refuse = "AccessDenied"
            await store.ratings.append(LATER)
            await wait_until_async(lambda: "it refuses this key" in caplog.text, "another one")
            assert sum((await store.stream.lag(1)).values())
            between.refuse = None
            await until_drained(store)
            assert len(archived(settings)) == len(GIVEN) + len(LATER)
            # As a leader that woke up late and was killed at once has left it.
            client = ObjectClient(on_objects.archive_dir / settings.store.namespace, CREDENTIALS)
            left = "objects/000000000000.0.late/left"
            assert client.create(left, b"left")

            def gone() -> bool:
                return all(each.name != left for each in client.listed("objects"))

            monkeypatch.setattr(upkeep, "_LEFT_S", 0.0)
            await wait_until_async(lambda: asyncio.to_thread(gone), "it is gone")


async def test_object_that_is_gone_is_replaced_or_made_anew(
    on_objects: TrainerSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of large segments: what is read is not in memory.
    monkeypatch.setattr(ranges, "TAIL_BYTES", 16)
    monkeypatch.setattr(client, "TAIL_BYTES", 16)
    opening, erased, began = updater._open_target, list[int](), list[int]()

    def after_an_erasure(live: LiveFit, *others: Any) -> object:
        """An erasure between the snapshot of the archive and its reading."""
        if live.result is not None and not erased:
            erased.append(live.archive.erase(FORGOTTEN, 10**9))
        target = opening(live, *others)
        began.extend(erased)
        return target

    monkeypatch.setattr(updater, "_open_target", after_an_erasure)
    mine = [replace(each, user_id=FORGOTTEN) for each in GIVEN[:5]]
    async with opened(on_objects.store) as store, running_trainer(on_objects):
        await store.ratings.append(GIVEN + mine)
        await until_drained(store)
        await fitted(store)
        await wait_until_async(lambda: began, "items are folded in")
        assert began == [5]
        place = files.on_objects(next(iter((on_objects.archive_folder / "epoch-000001").glob("*.parquet"))))
        assert place is not None
        entry = place.entry()
        assert entry is not None
        place.archive.client.delete([entry.key])
        await fitted(store)
        assert "segment_damaged" in caplog.text
        assert "term_ended" not in caplog.text
        await until_drained(store)
        assert await same(on_objects) == len(await held(store))


async def test_stop_while_the_store_has_not_answered_does_not_hold_the_loop(
    on_objects: TrainerSettings, objects: ObjectServer
) -> None:
    assert isinstance(on_objects.archive_dir, ObjectAddress)
    asked, answered, in_time = threading.Event(), threading.Event(), list[bool]()

    def kept_waiting(_method: str, _path: str) -> bool:
        if trainer.leadership is not None:
            asked.set()
            in_time.append(answered.wait(20))
        return False

    with Between(objects) as between:
        trainer = Trainer(replace(on_objects, archive_dir=between.before(on_objects.archive_dir)))
        between.mute, stop = kept_waiting, asyncio.Event()
        running = asyncio.create_task(trainer.run(stop), name="trainer under test")
        assert await asyncio.to_thread(asked.wait, 40)
        leadership = trainer.leadership
        assert leadership is not None
        stop.set()
        await wait_until_async(lambda: leadership.left_s < 0, "it leads no more")
        assert not running.done()
        answered.set()
        await asyncio.wait_for(running, 60)
    assert all(in_time)


async def test_store_whose_lists_are_late_is_refused(
    on_objects: TrainerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = ArchiveRoot(on_objects.archive_folder, guard=free)
    assert root.take(root.claim("1.before"))
    listed, takes = client.ObjectClient.listed, list[str]()

    def late(self: client.ObjectClient, prefix: str, after: str | None = None) -> list[client.Listed]:
        takes.append(prefix)
        return [] if prefix == "commits" else listed(self, prefix, after)

    monkeypatch.setattr(client.ObjectClient, "listed", late)
    monkeypatch.setattr(fences, "MOST_TAKES", 4)
    with pytest.raises(ArchiveRefusedError, match="does not list what was put there"):
        await asyncio.wait_for(Trainer(on_objects).run(asyncio.Event()), 60)
    assert "doing=take" in caplog.text
    with (
        pytest.raises(RecoveryRefusedError, match="does not list what was put there"),
        _taken(on_objects.archive_folder),
    ):
        pass
    assert takes.count("commits") <= 20


async def test_what_keeps_a_trainer_from_starting_is_one_line(
    on_objects: TrainerSettings, objects: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(on_objects.archive_dir, ObjectAddress)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-tests")
    wrong = replace(on_objects, archive_dir=replace(on_objects.archive_dir, bucket="another"))
    assert "there is no such bucket: make it, or name another in FOLDIN_ARCHIVE_DIR" in await refused(wrong)
    # Before it leads: no other trainer is kept from it, and none of its tries lasts longer than the lease.
    file = tmp_path / "file"
    file.touch()
    told = await refused(replace(on_objects, fits_dir=file))
    assert re.search(r"cannot write .*/file/.*; name another folder in FOLDIN_FITS_DIR", told)
    with Between(objects) as between:
        between.lies = True
        lied = await refused(replace(on_objects, archive_dir=between.before(on_objects.archive_dir)))
    assert "does not honour create-only writes" in lied
    assert "secret-of-tests" not in lied
