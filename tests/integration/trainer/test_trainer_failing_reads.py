"""A file of archive or trash that cannot be read stops what needs it, and nothing else: other ratings are
archived, other epochs tidied up; an erasure is open until the file was searched.
"""

import asyncio
from pathlib import Path

import pytest
from aiohttp import ClientSession

from processes.probes import unused_port
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.failing_reads import FAILURES, failing
from tests.support.recovering import GIVEN, LATER, opened
from tests.support.trainers import archived, fitted, outcome_of, running_trainer, until_drained
from tests.support.waiting import wait_until_async
from trainer.app import Trainer
from trainer.archive import unread
from trainer.health.listener import serving_health
from trainer.settings import Address, TrainerSettings

SECRET = b"secret-one"
pytestmark = pytest.mark.usefixtures("quick_rounds")


async def until_logged(caplog: pytest.LogCaptureFixture, event: str) -> None:
    await wait_until_async(lambda: event in caplog.text, f"{event} in the log")


def with_secret(settings: TrainerSettings) -> list[Path]:
    files = [path for path in settings.archive_folder.rglob("*") if path.is_file()]
    return [path for path in files if SECRET in path.read_bytes()]


@pytest.mark.parametrize("where", ["archive", "trash"])
async def test_ratings_are_archived_beside_an_erasure_that_waits(
    learned: Learned, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    settings, epoch = learned.settings, 1
    old = settings.archive_folder / "epoch-000001"
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append([rating("secret-one", "i1")])
        await until_drained(store)
        if where == "trash":
            epoch = await store.epochs.begin()
            await store.ratings.append([*LATER, rating("secret-one", "i1")], epoch=epoch)
            await fitted(store, "epoch", epoch)
            await wait_until_async(lambda: not old.exists(), "the old history in the trash")
        found = [path for path in with_secret(settings) if path.suffix == ".parquet"]
        victims = {path.stat().st_ino for path in found if ("trash" in path.parts) == (where == "trash")}
        assert victims
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.stat().st_ino in victims)
            at_ms = (await store.ratings.forget(SECRET)).at_ms
            receipt = await store.commands.ask("erase", epoch=epoch, user=SECRET, at_ms=at_ms)
            await until_logged(caplog, "erasure_waits")
            # The user is back, and others rate.
            await store.ratings.append([rating("secret-one", "i2"), rating("another", "i3")])
            await until_drained(store, epoch)
            if where == "trash":
                await fitted(store, epoch=epoch)
            assert await store.commands.stage(receipt) is not None
            assert {path.stat().st_ino for path in with_secret(settings)} >= victims
        assert (await outcome_of(store, receipt)).state == "done"
        await until_drained(store, epoch)
    left = [(user, item) for user, _, item, _ in archived(settings, epoch) if user == "secret-one"]
    assert left == [("secret-one", "i2")]
    assert not [path for path in with_secret(settings) if "trash" in str(path)]


@pytest.mark.parametrize("mended", [True, False])
async def test_a_trainer_that_starts_over_an_unreadable_footer_says_so_and_leads_in_the_end(
    learned: Learned, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, mended: bool
) -> None:
    settings, address = learned.settings, Address("127.0.0.1", unused_port())
    victim = min((settings.archive_folder / "epoch-000001").glob("*.parquet"))
    trainer, stop = Trainer(settings), asyncio.Event()
    async with opened(settings.store) as store, ClientSession() as session:

        async def scraped() -> str:
            async with session.get(f"http://{address}/metrics") as answer:
                return await answer.text()

        published = (await store.generations.live()).generation
        with monkeypatch.context() as patched:
            failing(patched, FAILURES["EIO"], lambda path: path.name == victim.name)
            async with serving_health(trainer, address):
                running = asyncio.create_task(trainer.run(stop))
                await until_logged(caplog, "archive_waits")
                (line, *_) = [each for each in caplog.messages if "archive_waits" in each]
                for told in (victim.name, "Input/output error", "mend or mount its disk"):
                    assert told in line
                waits = f'foldin_trainer_unread_seconds{{file="epoch-000001/{victim.name}"}}'
                assert waits in await scraped()
                # Ratings are taken, and what was published stays.
                await store.ratings.append(LATER)
                assert (await store.generations.live()).generation == published
                assert trainer.term is None
                assert victim.exists()
                if mended:
                    patched.undo()
                else:
                    patched.setattr(unread, "UNREAD_S", 0.0)
                await until_drained(store)
                await fitted(store)
                assert "foldin_trainer_unread_seconds{" not in await scraped()
                stop.set()
                await running
    assert ("archive_rebuild" in caplog.text) is not mended
    assert victim.with_name(victim.name + ".damaged").exists() is not mended
    assert {(user, item) for user, _, item, _ in archived(settings)} == {
        (each.user_id.decode(), each.item_id.decode()) for each in [*GIVEN, *LATER]
    }
