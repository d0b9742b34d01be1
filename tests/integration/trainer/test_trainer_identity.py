"""Ordinary accidents with a store or an archive: the trainer stops and says what to do, the service goes on,
and no rating is lost. Case by case: tests/unit/trainer/test_archive_identity.py.
"""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.errors import StoreChanged
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.following import following
from tests.support.recovering import GIVEN, LATER, archive_ratings, empty, opened
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.trainers import (
    archived,
    erased,
    fitted,
    outcome_of,
    refused,
    refuses,
    running_trainer,
    until_drained,
)
from tests.support.waiting import wait_until_async
from trainer.app import Trainer
from trainer.archive.root import ArchiveRoot
from trainer.archive.trash import TrashEntry
from trainer.errors import CannotStartError
from trainer.settings import TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")


def files(settings: TrainerSettings) -> dict[str, bytes]:
    """All that the archive holds."""
    root = settings.archive_folder
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def pairs(of: list[NewRating]) -> set[tuple[str, str, float]]:
    return {(r.user_id.decode(), r.item_id.decode(), r.rating) for r in of}


def found(settings: TrainerSettings, epoch: int = 1, path: Path | None = None) -> set[tuple[str, str, float]]:
    return {(user, item, value) for user, _, item, value in archived(settings, epoch, path=path)}


def in_trash(settings: TrainerSettings) -> list[TrashEntry]:
    return ArchiveRoot(settings.archive_folder, guard=lambda: None).trash.entries()


def moved(settings: TrainerSettings) -> bool:
    return any((settings.archive_folder / "trash").glob("epoch-*/trash.json"))


def what_to_do(line: str) -> bool:
    return "`foldin restore`" in line and "--adopt" in line and "the archive is left as it is" in line


def appendonly(server: StoreServer) -> Path:
    return server.folder / "appendonlydir"


def log_of(server: StoreServer) -> Path:
    (file,) = appendonly(server).glob("*.incr.aof")
    return file


def lose_tail(server: StoreServer, mark: int) -> None:
    """As a power cut does with `appendfsync everysec`: the end of the file was never written."""
    server.kill()
    with log_of(server).open("rb+") as log:
        log.truncate(mark)
    server.start()


async def test_emptied_store(learned: Learned) -> None:
    """As a process says it, whatever comes in meanwhile."""
    before = files(learned.settings)
    empty(learned.server)
    line = await refused(learned.settings)
    assert "another store" in line
    async with opened(learned.settings.store) as store:
        await store.ratings.append([rating("meanwhile", "i1")])
        assert (await store.users.history(1, b"meanwhile"))[0] == 1
    assert await refuses(learned.settings) in line
    assert what_to_do(line)
    assert files(learned.settings) == before


@pytest.mark.parametrize("accident", ["emptied", "another store", "epoch never begun", "newer format"])
async def test_an_archive_that_is_not_the_stores_is_refused_and_left_as_it_is(
    learned: Learned, tmp_path: Path, accident: str
) -> None:
    settings, server = learned.settings, learned.server
    identity, why = settings.archive_folder / "identity.json", "another store"
    (settings.archive_folder / "epoch-000009").mkdir()
    if accident == "emptied":
        empty(server)
    elif accident == "epoch never begun":
        why = "epoch 9, and the store has begun no more than 1"
        (settings.archive_folder / "epoch-000009").rmdir()
        (settings.archive_folder / "epoch-000001").rename(settings.archive_folder / "epoch-000009")
    elif accident == "newer format":
        identity.write_text('{"format": 2}')
        why = "has format 2, this version reads 1"
    before = files(settings)
    if accident == "another store":
        (tmp_path / "other").mkdir()
        with running_server(KIND, tmp_path / "other") as other:
            elsewhere = replace(settings, store=replace(settings.store, url=other.url))
            # It has a life of its own, with more ratings than the archive.
            await archive_ratings(replace(elsewhere, archive_dir=tmp_path / "its own"), [*GIVEN, *LATER])
            line = await refuses(elsewhere)
    else:
        line = await refuses(settings)
    assert why in line
    assert files(settings) == before
    if accident == "newer format":
        assert await refuses(replace(settings, adopt=True)) == line
        assert files(settings) == before
    else:
        assert what_to_do(line)


@pytest.mark.parametrize("how", ["put back", "lost tail"])
async def test_older_store_put_back(learned: Learned, tmp_path: Path, how: str) -> None:
    settings, server = learned.settings, learned.server
    server.stop()
    shutil.copytree(appendonly(server), tmp_path / "backup")
    server.start()
    mark = log_of(server).stat().st_size
    await archive_ratings(settings, LATER)
    before = files(settings)
    if how == "lost tail":
        lose_tail(server, mark)
    else:
        server.stop()
        shutil.rmtree(appendonly(server))
        shutil.copytree(tmp_path / "backup", appendonly(server))
        server.start()
    line = await refuses(settings)
    assert "the archive goes on to event" in line
    assert what_to_do(line)
    # Ratings that came since take the numbers of those that were lost: that is seen, too.
    async with opened(settings.store) as store:
        for k in range(40):
            await store.ratings.append([rating(f"new{k}", f"fresh{k % 20}", 1.0) for _ in range(3)])
    line = await refuses(settings)
    assert "is another one in the store" in line or "goes on to event" in line
    assert files(settings) == before


@pytest.mark.parametrize("lost", ["tail", "all"])
async def test_tail_lost_under_a_trainer_that_runs(learned: Learned, lost: str) -> None:
    settings, server = learned.settings, learned.server
    trainer = Trainer(settings)
    running = asyncio.create_task(trainer.run(asyncio.Event()))
    async with opened(settings.store) as store:
        await wait_until_async(lambda: trainer.term, "it leads")
        mark = log_of(server).stat().st_size
        await store.ratings.append(LATER)
        await until_drained(store)
        if lost == "tail":
            lose_tail(server, mark)
        else:
            await store.redis.flushall()
            # The service finds the store as new, and goes on.
            await store.ratings.append([rating("meanwhile", "i1")])
        with pytest.raises(CannotStartError) as caught:
            await running
    assert ("the archive goes on to event" if lost == "tail" else "another store") in str(caught.value)
    assert found(settings) == pairs([*GIVEN, *LATER])
    assert not moved(settings)


async def test_adopt_goes_on_and_keeps_the_archive_in_the_trash(learned: Learned) -> None:
    settings, identity = learned.settings, learned.settings.archive_folder / "identity.json"
    was = json.loads(identity.read_text())["identity"]
    empty(learned.server)
    async with opened(settings.store) as store:
        await store.ratings.append(LATER)
        async with running_trainer(replace(settings, adopt=True)):
            await fitted(store)
            await until_drained(store)
        assert json.loads(identity.read_text())["identity"] == store.identity
        (entry,) = in_trash(settings)
        assert (entry.why, entry.epoch, entry.identity, entry.ratings) == ("adopted", 1, was, len(GIVEN))
        assert found(settings, path=entry.path) == pairs(GIVEN)
        assert found(settings) == pairs(LATER)
        # The next one leads without being told.
        async with running_trainer(settings):
            await fitted(store)


async def test_forgotten_users_are_in_no_entry_of_the_trash_and_keep_what_came_after(
    learned: Learned,
) -> None:
    """`on-its-way` while the old history goes to the trash; the others when it is there, before a trainer
    leads. The live history never knew them, so that only the command tells of them.
    """
    settings, users = learned.settings, ("secret-one", "secret-two", "on-its-way")
    async with opened(settings.store) as store:
        async with running_trainer(settings) as trainer:
            await store.ratings.append([rating(user, "i1") for user in users])
            await until_drained(store)
            assert trainer.term is not None
            finish, commands = trainer.term.epochs.finish, []

            async def ask(user: str) -> None:
                at_ms = (await store.ratings.forget(user.encode())).at_ms
                commands.append(
                    await store.commands.ask("erase", epoch=epoch, user=user.encode(), at_ms=at_ms)
                )

            async def finish_then_forget(number: int) -> None:
                await finish(number)
                await ask("on-its-way")

            trainer.term.epochs.finish = finish_then_forget  # type: ignore[method-assign]  # and more
            epoch = await store.epochs.begin()
            await store.ratings.append(LATER, epoch=epoch)
            await fitted(store, "epoch", epoch)
            await wait_until_async(lambda: moved(settings), "the first epoch in the trash")
        await ask("secret-one")
        await ask("secret-two")
        await store.ratings.append([rating("secret-two", "i3", 2.0)])
        async with running_trainer(settings):
            for command in commands:
                assert (await outcome_of(store, command)).state == "done"
            assert (await store.users.history(epoch, b"secret-two"))[0] == 1
            await until_drained(store, epoch)
            # Once more, though it was searched for a moment ago.
            await store.ratings.append([rating("secret-one", "i3", 2.0)])
            await erased(store, b"secret-one", epoch)
    (entry,) = in_trash(settings)
    assert found(settings, path=entry.path) == pairs(GIVEN)
    held = [name for name, data in files(settings).items() if b"secret-one" in data or b"on-its" in data]
    assert held == []
    assert ("secret-two", 1, "i3", 2.0) in archived(settings, epoch)


async def test_worker_drops_what_it_holds_of_a_store_that_was_emptied(
    learned: Learned, tmp_path: Path
) -> None:
    async with opened(learned.settings.store) as store, following(store, tmp_path / "cache") as follower:
        was = store.identity
        await wait_until_async(lambda: follower.live is not None, "a generation is served")
        assert store.items(1).row(b"i3") is not None
        other = await Store.open(learned.settings.store)
        await other.redis.flushall()
        await wait_until_async(lambda: follower.live is None, "the old generation dropped")
        assert store.identity != was
        assert store.items(1).row(b"i3") is None
        with pytest.raises(StoreChanged):
            await other.require_same()
        # The rows are given anew, to other items.
        await other.look_again()
        await other.ratings.append([rating("u", "first")])
        await store.ratings.append([rating("u", "second")])
        assert await store.items(1).rows([b"first", b"second"]) == [0, 1]
        assert store.identity == other.identity
        await other.close()
