"""A trainer whose archive is on an object store: what it promises of a folder holds there."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from foldin.recovery.errors import RecoveryRefusedError
from tests.support.object_store import CREDENTIALS, Between, ObjectServer, everything
from tests.support.recovering import GIVEN, LATER, backed_up, empty, held, opened, restored, verified
from tests.support.servers import StoreServer
from tests.support.trainers import archived, erased, fitted, refuses, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer import upkeep
from trainer.archive.kept import read_kept
from trainer.archive.storage.address import ObjectAddress
from trainer.archive.storage.client import ObjectClient
from trainer.archive.storage.files import located
from trainer.settings import TrainerSettings

FORGOTTEN = b"someone-who-is-forgotten"
pytestmark = pytest.mark.usefixtures("quick_rounds")


@pytest.fixture
def on_objects(settings: TrainerSettings, address: ObjectAddress, tmp_path: Path) -> TrainerSettings:
    return replace(settings, archive_dir=address, fits_dir=tmp_path / "fits", credentials=CREDENTIALS)


async def same(settings: TrainerSettings) -> int:
    found = await verified(settings)
    assert found.count == 0, found.differences
    return found.ratings


def has_user(address: ObjectAddress) -> bool:
    return any(FORGOTTEN in content for content in everything(address).values())


async def test_archive_fit_backup_restore_and_erasure(
    own_server: StoreServer, on_objects: TrainerSettings, objects: ObjectServer, tmp_path: Path
) -> None:
    settings, address = on_objects, on_objects.archive_dir
    assert isinstance(address, ObjectAddress)
    backup, again = objects.address(), objects.address()
    mine = [replace(each, user_id=FORGOTTEN) for each in GIVEN[:5]]
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append(GIVEN + mine)
        await store.scenarios.put(b"home", b"{}")
        # The second one goes on from the files of the first.
        assert await fitted(store) < await fitted(store)
        await until_drained(store)
        was = await held(store)
        await wait_until_async(
            lambda: (kept := read_kept(settings.archive_folder)) and kept.scenarios, "scenarios archived"
        )
        assert await same(settings) == len(was)
        for target in (located(backup, CREDENTIALS), located(again, CREDENTIALS), tmp_path / "backup"):
            await backed_up(settings, target)
        with pytest.raises(RecoveryRefusedError, match="is where the archive is"):
            await backed_up(settings, located(address / "inside", CREDENTIALS))
        await erased(store, FORGOTTEN)
        assert not has_user(address)
        assert has_user(backup)
        await backed_up(settings, located(again, CREDENTIALS))
        assert not has_user(again)
    names = {path.name for path in (tmp_path / "backup" / "epoch-000001").iterdir()}
    there = located(backup, CREDENTIALS) / "epoch-000001"
    assert {path.name for path in there.iterdir()} == names
    empty(own_server)
    assert "made for another store" in await refuses(settings)
    fresh = replace(settings, archive_dir=objects.address())
    async with opened(fresh.store) as store, running_trainer(fresh):
        await restored(fresh, located(backup, CREDENTIALS))
        assert await held(store) == was
        await store.ratings.append(LATER)
        await until_drained(store, (await store.generations.live()).epoch)
        assert await same(fresh) == len(await held(store))


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
