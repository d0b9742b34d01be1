"""A file of archive or trash that cannot be read stops what needs it, and nothing else: other ratings are
archived, other epochs tidied up; an erasure is open until the file was searched.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from featurestore.ratings.log import NewRating
from featurestore.store import Store
from foldin.recovery.adoption import must_adopt
from foldin.recovery.backing_up import back_up
from foldin.recovery.errors import RecoveryStoppedError
from processes.probes import unused_port
from tests.support.factories import rating
from tests.support.failing_reads import FAILURES, failing
from tests.support.recovering import GIVEN, LATER, opened
from tests.support.servers import StoreServer
from tests.support.trainers import archived, fitted, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer import commands
from trainer.app import Trainer
from trainer.archive import epoch_archive, unread
from trainer.archive.root import ArchiveRoot
from trainer.health.listener import serving_health
from trainer.settings import Address, TrainerSettings

SECRET = b"secret-one"


async def forget(store: Store) -> str:
    """Do what a service does; return the receipt."""
    forgotten = await store.ratings.forget(SECRET)
    epoch = (await store.generations.live()).epoch
    return await store.commands.ask("erase", epoch=epoch, user=SECRET, at_ms=forgotten.at_ms)


async def until_logged(caplog: pytest.LogCaptureFixture, event: str) -> None:
    async def logged() -> bool:
        return event in caplog.text

    await wait_until_async(logged, f"{event} in the log")


async def until_erased(store: Store, receipt: str) -> None:
    outcome = await store.commands.wait(receipt, 30)
    assert outcome is not None
    assert outcome.state == "done"


def with_secret(settings: TrainerSettings) -> list[Path]:
    files = [path for path in settings.archive_folder.rglob("*") if path.is_file()]
    return [path for path in files if SECRET in path.read_bytes()]


async def new_history(store: Store, given: list[NewRating]) -> int:
    epoch = await store.epochs.begin()
    await store.ratings.append(given, epoch=epoch)
    await fitted(store, "epoch", epoch)
    return epoch


@pytest.mark.parametrize("where", ["archive", "trash"])
async def test_ratings_are_archived_beside_an_erasure_that_waits(
    own_server: StoreServer,
    settings: TrainerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    monkeypatch.setattr(commands, "_MENDED_S", 0.2)
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append([*GIVEN, rating("secret-one", "i1")])
        await fitted(store)
        epoch = 1
        if where == "trash":
            epoch = await new_history(store, [*LATER, rating("secret-one", "i1")])

            async def moved() -> bool:
                return not (settings.archive_folder / "epoch-000001").exists()

            await wait_until_async(moved, "the old history in the trash")
        else:
            await until_drained(store)
        found = [path for path in with_secret(settings) if path.suffix == ".parquet"]
        victims = {path.stat().st_ino for path in found if ("trash" in path.parts) == (where == "trash")}
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.stat().st_ino in victims)
            receipt = await forget(store)
            await until_logged(caplog, "erasure_waits")
            # The user is back, and others rate.
            await store.ratings.append([rating("secret-one", "i2"), rating("another", "i3")])
            await until_drained(store, epoch)
            if where == "trash":
                await fitted(store, epoch=epoch)
            assert await store.commands.stage(receipt) is not None
            assert {path.stat().st_ino for path in with_secret(settings)} >= victims
        await until_erased(store, receipt)
        await until_drained(store, epoch)
    assert [(user, item) for user, _, item, _ in archived(settings, epoch) if user == "secret-one"] == [
        ("secret-one", "i2")
    ]
    assert not [path for path in with_secret(settings) if "trash" in str(path)]


async def test_a_replaced_history_goes_to_the_trash_unread(
    own_server: StoreServer,
    settings: TrainerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(settings.store) as store, running_trainer(settings) as trainer:
        await store.ratings.append([*GIVEN, rating("secret-one", "i1")])
        await fitted(store)
        await until_drained(store)
        victims = {path.stat().st_ino for path in with_secret(settings)}
        epoch = await store.epochs.begin()
        await store.ratings.append(LATER, epoch=epoch)
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.stat().st_ino in victims)
            await fitted(store, "epoch", epoch)
            receipt = await forget(store)

            async def moved() -> bool:
                return not (settings.archive_folder / "epoch-000001").exists()

            await wait_until_async(moved, "the old history in the trash")
            await until_logged(caplog, "erasure_waits")
            assert trainer.term is not None
            # Upkeep comes to its end.
            trainer.term.upkeep._emptied_at = -1e9
            before = trainer.term.upkeep.trash_bytes

            async def looked() -> bool:
                assert trainer.term is not None
                return trainer.term.upkeep.trash_bytes > before

            await wait_until_async(looked, "the trash looked at")
        await until_erased(store, receipt)
    assert not with_secret(settings)
    assert [entry.why for entry in ArchiveRoot(settings.archive_folder, guard=lambda: None).trash.entries()]


async def test_a_rebuild_that_cannot_count_what_it_keeps_is_done_once(
    own_server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN[:40])
            await until_drained(store)
            await store.ratings.append(GIVEN[40:])
            await until_drained(store)
        folder = settings.archive_folder / "epoch-000001"
        victim, *others = sorted(folder.glob("*.parquet"))
        assert others
        others[-1].write_bytes(others[-1].read_bytes()[:-40])
        # Its footer can be read, its rows cannot.
        failing(monkeypatch, FAILURES["EIO"], lambda path: path.name == victim.name, rows_alone=True)
        async with running_trainer(settings):
            await fitted(store)
        assert len(archived(settings)) == len(GIVEN)
    root = ArchiveRoot(settings.archive_folder, guard=lambda: None)
    assert [entry.why for entry in root.trash.entries()] == ["rebuilt"]


async def test_an_old_history_that_cannot_be_read_keeps_nothing_from_beginning(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.archive_folder / "epoch-000001"

    async def moved() -> bool:
        return not folder.exists()

    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            await new_history(store, LATER)
            await wait_until_async(moved, "the old history in the trash")
        folder.mkdir()
        # As a kill leaves it just before the move.
        (entry,) = ArchiveRoot(settings.archive_folder, guard=lambda: None).trash.entries()
        for path in entry.path.glob("*.parquet"):
            path.rename(folder / path.name)
        old, live = folder.name, "epoch-000002"
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.parent.name == old)
            await back_up(store, settings, tmp_path / "backup", lambda _line: None)
            async with running_trainer(settings):
                await fitted(store, epoch=2)
                await wait_until_async(moved, "the old history in the trash")
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.parent.name == live)
            with pytest.raises(RecoveryStoppedError, match="Input/output error"):
                await must_adopt(store, settings)


async def test_files_are_waited_for_beside_a_removal_that_takes_long(
    own_server: StoreServer,
    settings: TrainerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A file is looked at every tenth of a second; after three without a look its wait begins anew.
    monkeypatch.setattr(epoch_archive, "_AGAIN_S", 0.1)
    monkeypatch.setattr(unread, "_GAP_S", 3.0)
    monkeypatch.setattr(unread, "UNREAD_S", 6.0)
    removing, goes_on = asyncio.Event(), asyncio.Event()
    async with opened(settings.store) as store, running_trainer(settings) as trainer:
        await store.ratings.append(GIVEN)
        await fitted(store)
        await until_drained(store)
        assert trainer.term is not None
        catalog = trainer.term.epochs.store.generations
        remove_epoch = catalog.remove_epoch

        async def slowly(*args: Any, **kwargs: Any) -> None:
            removing.set()
            await goes_on.wait()
            await remove_epoch(*args, **kwargs)

        monkeypatch.setattr(catalog, "remove_epoch", slowly)
        await new_history(store, LATER)
        await asyncio.wait_for(removing.wait(), 30)
        await until_drained(store, 2)
        live = settings.archive_folder / "epoch-000002"
        victim = min(live.glob("*.parquet"))
        number = victim.stat().st_ino
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.stat().st_ino == number)
            # As the process of a fit says it: from here on only upkeep looks at it.
            trainer.term.epochs.root.epoch(2).note_unread(victim)
            await until_logged(caplog, "segment_damaged")
        assert victim.with_name(victim.name + ".damaged").exists()
        # The store still has the history that is being removed.
        assert await store.generations.epochs() == {1, 2}
        goes_on.set()

        async def moved() -> bool:
            return not (settings.archive_folder / "epoch-000001").exists()

        await wait_until_async(moved, "the old history in the trash")
        assert await store.generations.epochs() == {2}


async def scraped(session: ClientSession, address: Address) -> str:
    async with session.get(f"http://{address}/metrics") as answer:
        return await answer.text()


@pytest.mark.parametrize("mended", [True, False])
async def test_a_trainer_that_starts_over_an_unreadable_footer_says_so_and_leads_in_the_end(
    own_server: StoreServer,
    settings: TrainerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mended: bool,
) -> None:
    address = Address("127.0.0.1", unused_port())
    async with opened(settings.store) as store, ClientSession() as session:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            published = await fitted(store)
            await until_drained(store)
        victim = min((settings.archive_folder / "epoch-000001").glob("*.parquet"))
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.name == victim.name)
            trainer = Trainer(settings)
            stop = asyncio.Event()
            async with serving_health(trainer, address):
                running = asyncio.create_task(trainer.run(stop))
                await until_logged(caplog, "archive_waits")
                line = next(
                    each.getMessage() for each in caplog.records if "archive_waits" in each.getMessage()
                )
                assert victim.name in line
                assert "Input/output error" in line
                assert "mend or mount its disk" in line
                assert f'foldin_trainer_unread_seconds{{file="epoch-000001/{victim.name}"}}' in await scraped(
                    session, address
                )
                # The lease runs out meanwhile; ratings are taken, and what was published stays.
                await store.ratings.append(LATER)
                assert (await store.generations.live()).generation == published
                assert trainer.term is None
                assert victim.exists()
                if mended:
                    patched.undo()
                else:
                    patched.setattr(unread, "UNREAD_S", 0.5)
                await until_drained(store)
                await fitted(store)
                assert "foldin_trainer_unread_seconds{" not in await scraped(session, address)
                stop.set()
                await asyncio.wait_for(running, 30)
    assert ("archive_rebuild" in caplog.text) is not mended
    assert victim.with_name(victim.name + ".damaged").exists() is not mended
    assert {(user, item) for user, _, item, _ in archived(settings)} == {
        (each.user_id.decode(), each.item_id.decode()) for each in [*GIVEN, *LATER]
    }
