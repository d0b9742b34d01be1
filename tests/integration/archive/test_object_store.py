"""What an archive and a trainer promise of a folder holds on an object store; one that cannot is refused."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.errors import LeaseLost
from processes.errors import CannotStartError
from tests.support.event_tables import free
from tests.support.object_store import CREDENTIALS, ObjectServer, everything, standing_before
from tests.support.recovering import GIVEN, LATER, backed_up, empty, held, opened, restored, verified
from tests.support.servers import StoreServer
from tests.support.trainers import archived, erased, fitted, refuses, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from tests.unit.trainer.test_trainer_archive import contents, events
from trainer import upkeep
from trainer.archive.events import ALWAYS
from trainer.archive.kept import read_kept
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step, no_step
from trainer.archive.storage.address import ObjectAddress
from trainer.archive.storage.client import ObjectClient
from trainer.archive.storage.files import located
from trainer.errors import ArchiveFailedError, ArchiveRefusedError
from trainer.settings import TrainerSettings

# Of all steps, which `tests/unit/trainer/test_trainer_archive.py` has for a folder, those round a commit.
SLOW = pytest.mark.slow
STEPS = (
    "segment:synced",
    *(pytest.param(each, marks=SLOW) for each in ("segment:renamed", "replace:unlink")),
)
TERMS = iter(range(1, 10_000))
KEPT = [ms for ms in range(1, 91) if ms % 3 != 1]


def root_of(address: ObjectAddress) -> ArchiveRoot:
    return ArchiveRoot(located(address, CREDENTIALS), guard=free)


def led(address: ObjectAddress, step: Step = no_step) -> ArchiveRoot:
    root = ArchiveRoot(located(address, CREDENTIALS), guard=free, step=step)
    assert root.take(root.claim(f"{next(TERMS)}.term"))
    return root


def has_bytes(address: ObjectAddress, user_id: bytes) -> bool:
    return any(user_id in content for content in everything(address).values())


@pytest.mark.parametrize("erases", [False, True], ids=["merge", "erasure"])
@pytest.mark.parametrize("step", STEPS)
def test_a_leader_that_stopped_changes_nothing_later(address: ObjectAddress, step: str, erases: bool) -> None:
    filled = led(address).epoch(1)
    # Of nine segments a merge takes eight.
    for k in range(9):
        filled.append(*events(1 + 10 * k, 10))
    frozen, goes_on = threading.Event(), threading.Event()

    def stops(name: str) -> None:
        if name == step and not frozen.is_set():
            frozen.set()
            goes_on.wait()

    old, failed = led(address, stops), list[Exception]()

    def work() -> None:
        try:
            if erases:
                old.epoch(1).erase({b"user-1": ALWAYS})
            else:
                old.epoch(1).merge()
            old.epoch(1).append(*events(91, 10))
        except (ArchiveFailedError, LeaseLost) as exc:
            failed.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    frozen.wait()
    new = led(address)
    archive = new.epoch(1)
    # As after a kill: each event is there once, but for those that are to go.
    began = contents(archive)
    assert began == (sorted({*KEPT, *began}) if erases else list(range(1, 91)))
    archive.erase({b"user-1": ALWAYS})
    archive.append(*events(91, 5, users=2))
    there = contents(archive)
    goes_on.set()
    thread.join()
    assert failed
    assert (old.taken_away, new.taken_away) == (True, False)
    assert contents(archive) == there
    archive.merge()
    # What the old one has left of its work goes with the next erasure.
    archive.erase({b"user-1": ALWAYS})
    assert contents(led(address).epoch(1)) == [ms for ms in there if ms < 91 or ms % 2 == 0]
    assert not has_bytes(address, b"user-1")
    assert has_bytes(address, b"user-2")


def test_store_that_overwrites_is_refused(objects: ObjectServer, address: ObjectAddress) -> None:
    with standing_before(objects) as between:
        between.lies = True
        with pytest.raises(
            ArchiveRefusedError, match=r"does not honour create-only writes .*: use a version"
        ):
            root_of(between.before(address))
        between.lies = False
        root_of(between.before(address))
    assert everything(address) == {}


FORGOTTEN = b"someone-who-is-forgotten"
pytestmark = pytest.mark.usefixtures("quick_rounds")


@pytest.fixture
def on_objects(settings: TrainerSettings, address: ObjectAddress, tmp_path: Path) -> TrainerSettings:
    return replace(settings, archive_dir=address, fits_dir=tmp_path / "fits", credentials=CREDENTIALS)


async def same(settings: TrainerSettings) -> int:
    found = await verified(settings)
    assert found.count == 0, found.differences
    return found.ratings


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
        with pytest.raises(CannotStartError, match="is where the archive is"):
            await backed_up(settings, located(address / "inside", CREDENTIALS))
        await erased(store, FORGOTTEN)
        assert not has_bytes(address, FORGOTTEN)
        assert has_bytes(backup, FORGOTTEN)
        await backed_up(settings, located(again, CREDENTIALS))
        assert not has_bytes(again, FORGOTTEN)
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
    with standing_before(objects) as between:
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
