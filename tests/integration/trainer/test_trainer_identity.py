"""Ordinary accidents with a store or an archive: the trainer stops and says what to do, the service goes on,
and no rating is lost.
"""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import StoreChanged
from featurestore.generations.follower import Follower
from featurestore.ratings.log import NewRating
from featurestore.ratings.stream import Events, RatingsStream
from featurestore.store import Store
from tests.support.factories import rating
from tests.support.recovering import GIVEN, LATER, archive_ratings, empty, opened
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.trainers import (
    ChildTrainer,
    archived,
    fitted,
    refused,
    running_trainer,
    until_drained,
    until_live,
)
from tests.support.waiting import wait_until_async
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import read_segment
from trainer.archive.trash import TrashEntry
from trainer.retry import with_retries
from trainer.settings import TrainerSettings


def files(settings: TrainerSettings) -> dict[str, bytes]:
    """All that the archive holds."""
    root = settings.archive_folder
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def pairs(of: list[NewRating]) -> set[tuple[str, str, float]]:
    return {(r.user_id.decode(), r.item_id.decode(), r.rating) for r in of}


def in_trash(settings: TrainerSettings) -> list[TrashEntry]:
    return ArchiveRoot(settings.archive_folder, guard=lambda: None).trash.entries()


def ratings_of(folder: Path) -> set[tuple[str, str, float]]:
    found = set()
    for path in folder.glob("*.parquet"):
        table, _ = read_segment(path)
        columns = [table[name].to_pylist() for name in ("user_id", "item_id", "rating")]
        found |= set(zip(*columns, strict=True))
    return found


async def takes_ratings(settings: TrainerSettings) -> None:
    async with opened(settings.store) as store:
        await store.ratings.append([rating("meanwhile", "i1")])
        assert (await store.users.history(1, b"meanwhile"))[0] >= 1


def what_to_do(line: str) -> bool:
    return "`foldin restore`" in line and "--adopt" in line and "the archive is left as it is" in line


@pytest.mark.slow
async def test_emptied_store(own_server: StoreServer, settings: TrainerSettings) -> None:
    await archive_ratings(settings)
    before = files(settings)
    empty(own_server)
    await takes_ratings(settings)
    line = await refused(settings)
    assert "another store" in line
    assert what_to_do(line)
    assert files(settings) == before
    await takes_ratings(settings)
    assert await refused(settings) == line, "it does not change its mind"
    assert files(settings) == before


@pytest.mark.slow
async def test_emptied_store_whose_epochs_began_anew(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    await archive_ratings(settings)
    async with opened(settings.store) as store, running_trainer(settings):
        epoch = await store.epochs.begin()
        await store.ratings.append(LATER, epoch=epoch)
        await fitted(store, "epoch", epoch)
        await wait_until_async(lambda: in_trash_now(settings), "the first epoch in the trash")
    before = files(settings)
    empty(own_server)
    assert what_to_do(await refused(settings))
    assert files(settings) == before
    assert pairs(LATER) <= {(u, i, r) for u, _, i, r in archived(settings, epoch)}


def in_trash_now(settings: TrainerSettings) -> bool:
    return any((settings.archive_folder / "trash").glob("epoch-*/trash.json"))


@pytest.mark.slow
async def test_another_redis_in_the_address(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    await archive_ratings(settings)
    before = files(settings)
    folder = tmp_path / "other"
    folder.mkdir()
    with running_server(KIND, folder) as other:
        elsewhere = replace(settings, store=replace(settings.store, url=other.url))
        # It has a life of its own, with more ratings than the archive.
        await archive_ratings(replace(elsewhere, archive_dir=tmp_path / "its own"), [*GIVEN, *LATER])
        line = await refused(elsewhere)
        assert "another store" in line
        assert what_to_do(line)
        assert files(settings) == before
    await archive_ratings(settings, LATER)
    assert pairs([*GIVEN, *LATER]) == {(u, i, r) for u, _, i, r in archived(settings)}


@pytest.mark.slow
async def test_older_store_put_back(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    await archive_ratings(settings)
    own_server.stop()
    data, backup = own_server.folder / "appendonlydir", tmp_path / "backup"
    shutil.copytree(data, backup)
    own_server.start()
    await archive_ratings(settings, LATER)
    before = files(settings)
    own_server.stop()
    shutil.rmtree(data)
    shutil.copytree(backup, data)
    own_server.start()
    line = await refused(settings)
    assert "the archive goes on to event" in line
    assert what_to_do(line)
    assert files(settings) == before
    # Ratings that came since take the numbers of those that were lost: that is seen, too.
    async with opened(settings.store) as store:
        for k in range(40):
            await store.ratings.append([rating(f"new{k}", f"fresh{k % 20}", 1.0) for _ in range(3)])
    line = await refused(settings)
    assert "is another one in the store" in line or "goes on to event" in line
    assert files(settings) == before


def lose_tail(server: StoreServer, mark: int) -> None:
    """As a power cut does with `appendfsync everysec`: the end of the file was never written."""
    server.kill()
    (file,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    with file.open("rb+") as log:
        log.truncate(mark)
    server.start()


def logged_bytes(server: StoreServer) -> int:
    (file,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    return file.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [False, True], ids=["at rest", "and goes on"])
async def test_tail_lost_with_everysec(
    own_server: StoreServer, settings: TrainerSettings, goes_on: bool
) -> None:
    await archive_ratings(settings)
    mark = logged_bytes(own_server)
    await archive_ratings(settings, LATER)
    before = files(settings)
    lose_tail(own_server, mark)
    if goes_on:
        async with opened(settings.store) as store:
            # More than was lost: items get the rows of items that the archive knows by other names.
            for k in range(30):
                await store.ratings.append([rating(f"v{k}", f"other{k}", 2.0), rating(f"w{k}", "i1", 2.0)])
                await store.ratings.append([rating(f"x{k}", f"i{k % 12}", 3.0)] * 3)
    line = await refused(settings)
    assert ("is another one in the store" in line) if goes_on else ("the archive goes on to event" in line)
    assert what_to_do(line)
    assert files(settings) == before


async def test_tail_lost_under_a_trainer_that_runs(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    await archive_ratings(settings)
    child = ChildTrainer(settings)
    try:
        async with opened(settings.store) as store:
            mark = logged_bytes(own_server)
            await store.ratings.append(LATER)
            await until_drained(store)
            lose_tail(own_server, mark)
            await wait_until_async(lambda: child.ended, "the trainer ended")
    finally:
        child.end()
    log = (tmp_path / "trainer.log").read_text()
    # The tail had this leader's marks, too: which of its stages finds that first is a matter of chance.
    assert "store_changed" in log or "lease_lost" in log
    assert "the archive goes on to event" in log
    assert pairs([*GIVEN, *LATER]) == {(u, i, r) for u, _, i, r in archived(settings)}


async def test_store_emptied_under_a_trainer_that_runs(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    child = ChildTrainer(settings)
    try:
        async with opened(settings.store) as store:
            await store.ratings.append(GIVEN)
            await fitted(store)
            await until_drained(store)
            await store.redis.flushall()
            # The service finds the store as new, and goes on.
            await store.ratings.append(LATER)
            await wait_until_async(lambda: child.ended, "the trainer ended")
    finally:
        child.end()
    assert "another store" in (tmp_path / "trainer.log").read_text().splitlines()[-1]
    assert pairs(GIVEN) == {(u, i, r) for u, _, i, r in archived(settings)}
    assert not in_trash_now(settings)


async def test_fit_waits_for_nothing_that_the_store_has_lost(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store told of its streams' ends, before it lost its tail, would never be reached."""
    await archive_ratings(settings)
    may_read, read = asyncio.Event(), RatingsStream.read

    async def held(*args: Any) -> Events:
        await may_read.wait()
        return await read(*args)

    monkeypatch.setattr(RatingsStream, "read", held)
    data, backup = own_server.folder / "appendonlydir", tmp_path / "backup"
    patient = replace(settings, lease_ttl_s=30.0)
    async with opened(settings.store) as store, running_trainer(patient) as trainer:
        term = await wait_until_async(lambda: trainer.term, "it leads")
        await term.epochs.open(1)
        shutil.copytree(data, backup)
        was = (await store.generations.live()).generation
        await store.ratings.append(LATER)
        await store.commands.ask("refit", epoch=1)
        await wait_until_async(lambda: term.refitter.fitting_since, "a fit has begun")
        # It asks where the streams end, in one round trip.
        await asyncio.sleep(0.5)
        own_server.stop()
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        own_server.start()
        may_read.set()
        # Its connections have broken.
        await with_retries(store.generations.live)
        await until_live(store, was + 1)
        assert trainer.term is term
    assert pairs(GIVEN) == {(u, i, r) for u, _, i, r in archived(settings)}


@pytest.mark.slow
async def test_adopt_goes_on_and_keeps_the_archive_in_the_trash(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    await archive_ratings(settings)
    was = json.loads((settings.archive_folder / "identity.json").read_text())["identity"]
    empty(own_server)
    async with opened(settings.store) as store:
        await store.ratings.append(LATER)
    async with opened(settings.store) as store, running_trainer(replace(settings, adopt=True)):
        await fitted(store)
        await until_drained(store)
        assert json.loads((settings.archive_folder / "identity.json").read_text())["identity"] == (
            store.identity
        )
    (entry,) = in_trash(settings)
    assert (entry.why, entry.epoch, entry.identity, entry.ratings) == ("adopted", 1, was, len(GIVEN))
    assert entry.path.name.startswith(f"epoch-000001.{was[:8]}.")
    assert ratings_of(entry.path) == pairs(GIVEN)
    assert pairs(LATER) == {(u, i, r) for u, _, i, r in archived(settings)}
    # What was said once does not hold for what happens later.
    await archive_ratings(settings)


@pytest.mark.slow
async def test_archive_from_before_there_were_identities(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    await archive_ratings(settings)
    (settings.archive_folder / "identity.json").unlink()
    await archive_ratings(settings, LATER)
    assert (settings.archive_folder / "identity.json").exists()
    assert in_trash(settings) == []
    (settings.archive_folder / "identity.json").unlink()
    before = files(settings)
    empty(own_server)
    assert "the archive goes on to event" in await refused(settings)
    assert files(settings) == before


@pytest.mark.slow
async def test_newer_archive_is_refused_untouched(own_server: StoreServer, settings: TrainerSettings) -> None:
    await archive_ratings(settings)
    file = settings.archive_folder / "identity.json"
    file.write_text('{"format": 2}')
    before = files(settings)
    for flags in ([], ["--adopt"]):
        line = await refused(settings, *flags)
        assert "has format 2, this version reads 1" in line
        assert files(settings) == before


@pytest.mark.slow
async def test_replaced_history_is_whole_in_the_trash(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    """Ratings that were acknowledged right before the flip, and a trainer that reads seldom."""
    slow = replace(settings, linger_s=3.0)
    acknowledged: list[NewRating] = []
    async with opened(settings.store) as store, running_trainer(slow):
        await store.ratings.append(GIVEN)
        await store.items(1).register([b"never rated"])
        await fitted(store)
        epoch = await store.epochs.begin()
        await store.ratings.append(LATER, epoch=epoch)
        replacing = asyncio.create_task(fitted(store, "epoch", epoch))
        while not replacing.done():
            now = [rating(f"late{len(acknowledged)}", f"i{len(acknowledged) % 12}", 4.0)]
            await store.ratings.append(now)
            acknowledged += now
            await asyncio.sleep(0.01)
        await replacing
        await wait_until_async(lambda: in_trash_now(settings), "the first epoch in the trash")

        async def gone() -> bool:
            return await store.generations.epochs() == {epoch}

        await wait_until_async(gone, "the first epoch gone from the store")
        told = [r for r in acknowledged if (await store.users.history(epoch, r.user_id))[0]]
        assert told == acknowledged, "what came in after the call began is in the new history"
    (entry,) = in_trash(settings)
    assert (entry.why, entry.epoch) == ("replaced", 1)
    missing = pairs([*GIVEN, *acknowledged]) - ratings_of(entry.path)
    # Those of the last moments went to the new history only.
    last = pairs(acknowledged[-5:])
    assert missing <= last, f"{len(missing)} acknowledged ratings are not in the trash"
    assert "never rated" in items_of(entry.path)


def items_of(folder: Path) -> list[str]:
    from trainer.archive.item_list import read_items

    return list(read_items(folder / "items.list").to_pylist())


@pytest.mark.slow
async def test_forgotten_user_is_in_no_entry_of_the_trash(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append([*GIVEN, rating("secret-one", "i1"), rating("secret-two", "i1")])
        await fitted(store)
        epoch = await store.epochs.begin()
        await store.ratings.append([*LATER, rating("secret-one", "i2")], epoch=epoch)
        await fitted(store, "epoch", epoch)
        # Just now the old one may be on its way, or in the trash.
        await store.ratings.forget(b"secret-two")
        await wait_until_async(lambda: in_trash_now(settings), "the first epoch in the trash")
        await store.ratings.forget(b"secret-one")
        for user in (b"secret-one", b"secret-two"):
            command = await store.commands.ask("erase", epoch=epoch, user=user)
            outcome = await store.commands.wait(command, 30)
            assert outcome is not None
            assert outcome.state == "done", outcome
    left = [name for name, data in files(settings).items() if b"secret-" in data]
    assert left == []
    (entry,) = in_trash(settings)
    assert ratings_of(entry.path) == pairs(GIVEN)


@pytest.mark.slow
async def test_user_forgotten_while_an_epoch_is_on_its_way_to_the_trash(
    own_server: StoreServer, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is in the streams of the new epoch only (of a user unknown there in none), and the trash does
    not have the old one yet.
    """
    users = (b"secret-one", b"secret-two")
    async with opened(settings.store) as store, running_trainer(settings) as trainer:
        await store.ratings.append([*GIVEN, rating("secret-one", "i1"), rating("secret-two", "i1")])
        await fitted(store)
        assert trainer.term is not None
        finish, commands = trainer.term.epochs.finish, []

        async def finish_then_forget(number: int) -> None:
            await finish(number)
            assert {"secret-one", "secret-two"} <= {user for user, *_ in archived(settings, number)}
            for user in users:
                await store.ratings.forget(user)
                commands.append(await store.commands.ask("erase", epoch=epoch, user=user))
            # Longer than these take, were they not to wait for the move.
            await asyncio.sleep(1.0)

        monkeypatch.setattr(trainer.term.epochs, "finish", finish_then_forget)
        epoch = await store.epochs.begin()
        await store.ratings.append([*LATER, rating("secret-one", "i2")], epoch=epoch)
        await fitted(store, "epoch", epoch)
        await wait_until_async(lambda: in_trash_now(settings), "the first epoch in the trash")
        assert len(commands) == len(users)
        for command in commands:
            outcome = await store.commands.wait(command, 30)
            assert outcome is not None
            assert outcome.state == "done", outcome
        assert [name for name, data in files(settings).items() if b"secret-" in data] == []
    (entry,) = in_trash(settings)
    assert ratings_of(entry.path) == pairs(GIVEN)


@pytest.mark.slow
async def test_epoch_that_the_store_never_began_is_not_moved_but_told(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    """An empty folder of one is no reason to stop."""
    (settings.archive_folder / "epoch-000009").mkdir(parents=True)
    await archive_ratings(settings)
    async with running_trainer(settings):
        empty = settings.archive_folder / "epoch-000009"
        await wait_until_async(lambda: not empty.exists(), "the empty folder removed")
    (settings.archive_folder / "epoch-000001").rename(settings.archive_folder / "epoch-000009")
    before = files(settings)
    assert "epoch 9, and the store has begun no more than 1" in await refused(settings)
    assert files(settings) == before


async def test_worker_drops_what_it_holds_of_a_store_that_was_emptied(
    own_server: StoreServer, settings: TrainerSettings, tmp_path: Path
) -> None:
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            generation = await fitted(store)
        was = store.identity
        follower, stop = Follower(store, tmp_path / "cache", "w1"), asyncio.Event()
        following = asyncio.create_task(follower.run(stop))
        await wait_until_async(lambda: follower.live is not None, f"generation {generation}")
        assert store.items(1).row(b"i3") is not None
        other = await Store.open(settings.store)
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
        stop.set()
        await following


@pytest.mark.slow
async def test_trash_is_emptied_by_the_clock(own_server: StoreServer, settings: TrainerSettings) -> None:
    short = replace(settings, trash_days=0.0)
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append(GIVEN)
            epoch = await store.epochs.begin()
            await store.ratings.append(LATER, epoch=epoch)
            await fitted(store, "epoch", epoch)
            await wait_until_async(lambda: in_trash_now(settings), "the first epoch in the trash")
        async with running_trainer(short):
            await until_live(store)
            await wait_until_async(lambda: not in_trash_now(settings), "the trash emptied")
    assert in_trash(settings) == []


async def test_a_forgotten_user_who_is_back_before_the_trainer_knows_is_in_no_entry_of_the_trash(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    """Of users whom the live history never knew there is no mark: the command is all that tells of them."""
    users = (b"secret-one", b"secret-two")
    async with opened(settings.store) as store:
        async with running_trainer(settings):
            await store.ratings.append([*GIVEN, *[rating(user.decode(), "i1") for user in users]])
            await fitted(store)
            epoch = await store.epochs.begin()
            await store.ratings.append(LATER, epoch=epoch)
            await fitted(store, "epoch", epoch)
            await wait_until_async(lambda: in_trash_now(settings), "the first epoch in the trash")
        commands = []
        for user in users:
            await store.ratings.forget(user)
            commands.append(
                await store.commands.ask("erase", epoch=epoch, user=user, at_ms=await store.time_ms())
            )
        back = rating("secret-two", "i3", 2.0)
        await store.ratings.append([back])
        async with running_trainer(settings):
            for command in commands:
                outcome = await store.commands.wait(command, 30)
                assert outcome is not None
                assert outcome.state == "done", outcome
            (entry,) = in_trash(settings)
            assert ratings_of(entry.path) == pairs(GIVEN)
            assert not any(b"secret-one" in data for data in files(settings).values())
            # What came after stays.
            assert (await store.users.history(epoch, b"secret-two"))[0] == 1
            assert ("secret-two", 1, "i3", 2.0) in archived(settings, epoch)


async def test_a_user_is_searched_for_again_after_each_erasure(
    own_server: StoreServer, settings: TrainerSettings
) -> None:
    """Who is back in a history that was given up, and is erased again, has no mark in the live one."""
    settings = replace(settings, abandon_s=3.0)
    async with opened(settings.store) as store, running_trainer(settings):
        await store.ratings.append([*GIVEN, rating("secret-one", "i1")])
        await fitted(store)

        async def erase(user: bytes) -> None:
            await store.ratings.forget(user)
            at_ms = await store.time_ms()
            command = await store.commands.ask("erase", epoch=1, user=user, at_ms=at_ms)
            outcome = await store.commands.wait(command, 30)
            assert outcome is not None
            assert outcome.state == "done", outcome

        await erase(b"secret-one")
        epoch = await store.epochs.begin()
        await store.ratings.append([*LATER, rating("secret-one", "i2")], epoch=epoch)
        # Which has the trainer archive what waits there.
        await erase(b"someone-else")
        assert ("secret-one", "i2") in {(user, item) for user, _, item, _ in archived(settings, epoch)}
        await wait_until_async(lambda: in_trash_now(settings), "the epoch that was given up in the trash")
        (entry,) = in_trash(settings)
        assert entry.why == "abandoned"
        await erase(b"secret-one")
        assert not any(b"secret-one" in data for data in files(settings).values())
        assert ratings_of(entry.path) == pairs(LATER)
