"""A migration that is killed at any step: the source takes ratings once it is given up, or the target has all
when the command is run again; and nothing of both.
"""

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.access import new_secret
from featurestore.catalogue.item import CatalogueItem
from featurestore.errors import StoreMigrating
from featurestore.keys import digest_of
from featurestore.migration import target as targets
from featurestore.migration.errors import MigrationRefused, MigrationStopped
from featurestore.migration.migration import Migration, Telling, give_up
from featurestore.settings import StoreSettings
from tests.support.factories import rating
from tests.support.migrating import archive, go_on, migrated, standing_still
from tests.support.recovering import Held, held, opened
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.slow


# Before all is decided.
BEFORE = ("begin", "copying", "users", "closed", "moved", "decide")
HOW = ("again", "given-up")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    with running_server(KIND, tmp_path_factory.mktemp("store")) as running:
        yield running


def settings_of(server: StoreServer, name: str) -> tuple[StoreSettings, StoreSettings]:
    at = StoreSettings(url=server.url, namespace=name, partitions=2, timeout_s=5.0)
    return at, replace(at, url=f"{server.url}/1", partitions=3)


async def filled(*stores: StoreSettings) -> Held:
    """Stores whose ratings are archived, as far as these know; what each holds."""
    found: Held = {}
    for at in stores:
        async with opened(at) as store:
            await store.ratings.append([rating(f"u{k}", f"i{k % 3}") for k in range(20)])
            await archive(store)
            found = await held(store)
    return found


async def forgotten_lock(at: StoreSettings) -> None:
    """As if the command had ended some seconds ago."""
    async with opened(at) as store:
        await store.redis.delete(store.keys.migrator)


async def takes(at: StoreSettings, user: str) -> bool:
    """Whether a store that is opened now takes a rating."""
    try:
        async with opened(at) as store:
            await store.ratings.append([rating(user, "i1")])
            return True
    except StoreMigrating:
        return False


async def test_killed_before_it_is_decided(server: StoreServer, tmp_path: Path) -> None:
    """Each step in a namespace of its own, and in another one that is given up."""
    moves = [(*settings_of(server, f"{step}-{how}"), step) for step in BEFORE for how in HOW]
    before = await filled(*[at for at, _, _ in moves])
    with standing_still(moves, tmp_path) as child:
        child.end(signal.SIGKILL)

    async def mended(at: StoreSettings, to: StoreSettings, step: str) -> None:
        # What was begun there is opened by no process.
        assert step in {"begin", "copying"} or not await takes(to, "other"), step
        await forgotten_lock(at)
        if at.namespace.endswith("again"):
            made = await migrated(at, to)
            assert made is not None, step
            assert made.users == 20
            async with opened(to) as store:
                assert await held(store) == before, step
        else:
            async with opened(at) as store:
                late = step in {"moved", "decide"}
                if late:
                    with pytest.raises(MigrationRefused, match=f"give --to {to.url} as well"):
                        await give_up(store)
                    with pytest.raises(MigrationRefused, match="give that address"):
                        await give_up(store, replace(to, url=f"{server.url}/2"))
                assert await give_up(store, to if late else None) is (step != "begin")
                assert not await store.redis.keys(f"*{at.namespace}*:migration"), step
                assert await held(store) == before, step
                assert await give_up(store) is False
                # What was copied is removed where that is named, at any time.
                begun = step in {"users", "closed"}
                assert await give_up(store, to) is begun, step
                assert not await give_up(store, to), step
        again = at.namespace.endswith("again")
        assert await takes(at, "other") is not again, step
        # One that has nothing is an empty store, as any other.
        assert await takes(to, "other"), step

    await asyncio.gather(*[mended(*move) for move in moves])


async def test_killed_when_it_is_decided(server: StoreServer, tmp_path: Path) -> None:
    at, to = settings_of(server, "decided")
    before = await filled(at)
    with standing_still([(at, to, "decided")], tmp_path) as child:
        child.end(signal.SIGKILL)
    assert not await takes(at, "other")
    assert not await takes(to, "other")
    await forgotten_lock(at)
    async with opened(at) as store:
        for target in (None, to):
            with pytest.raises(MigrationRefused, match="has moved to redis://127"):
                await give_up(store, target)
    with pytest.raises(MigrationRefused, match="has moved to redis://127"):
        await migrated(at, replace(to, url=f"{server.url}/2"))
    # Of how many partitions it is to be was said before.
    assert await migrated(at, replace(to, partitions=16)) is None
    async with opened(to) as store:
        assert await held(store) == before
        assert not await store.redis.keys("decided:*:migration")
    assert await takes(to, "other")
    # A source that has lost its last step does not take ratings beside it.
    async with opened(at) as store:
        pointer = (await store.generations.live()).migration.replace("gone", "moved")
        await store.redis.set(store.keys.migration(store.keys.live), pointer)
        await store.redis.hset(store.keys.live, "migration", pointer)
        with pytest.raises(MigrationRefused, match="has the namespace, and takes ratings"):
            await give_up(store, to)
    # Once more, when the target has gone on.
    assert await migrated(at, to) is None
    async with opened(at) as store:
        assert (await store.generations.live()).migration == pointer.replace("moved", "gone")
    assert await takes(to, "another")
    assert not await takes(at, "other")


async def test_what_changes_while_it_copies_goes_along(server: StoreServer, tmp_path: Path) -> None:
    moves = [(*settings_of(server, f"changes-{step}"), step) for step in ("users", "closing")]
    await filled(*[at for at, _, _ in moves])
    expected = dict[str, Held]()
    with standing_still(moves, tmp_path) as child:
        for at, _, step in moves:
            async with opened(at) as store:
                await store.ratings.append([rating("u1", "i1", 2.0), rating("came", "new", 5.0)])
                await store.ratings.forget(b"u3")
                await store.ratings.append([rating("left", "i1")])
                await store.ratings.forget(b"left")
                await store.attributes.change(b"u4", lambda _: {"age": 30.0})
                await store.attributes.change(b"told", lambda _: {"age": 31.0})
                item = CatalogueItem("i1", "One")
                await store.catalogue.change({b"i1": lambda _, item=item: item})  # type: ignore[misc]
                await store.scenarios.put(b"home", b"{}")
                await store.access.add(new_secret(), "late", "read")
                # As a backup says it.
                await store.redis.hset(store.keys.config, "backed_up", "late")
                await archive(store)
                expected[step] = await held(store)
        go_on(tmp_path)
        assert await asyncio.to_thread(child.wait, PATIENCE_S) == 0
        assert "ended:" not in child.text, child.text
    for _, to, step in moves:
        async with opened(to) as store:
            assert await held(store) == expected[step]
            assert ("came", "new") in expected[step]
            assert set(await store.ratings.forgotten(1)) == {digest_of(b"u3"), digest_of(b"left")}
            assert [await store.attributes.get(user) for user in (b"u4", b"told")] == [
                {"age": 30.0},
                {"age": 31.0},
            ]
            assert await store.scenarios.get(b"home") == b"{}"
            assert await store.redis.hget(store.keys.config, "backed_up") == b"late"
            assert {key.name for key in (await store.access.load()).values() if key} == {"late"}
            assert await store.redis.hkeys(store.keys.catalogue_items) == [b"i1"]
        assert await takes(to, "other")


async def test_what_cannot_be_done_is_refused_before_anything_is_changed(server: StoreServer) -> None:
    at, to = settings_of(server, "refused")
    await filled(at)
    async with opened(to) as store:
        await store.ratings.append([rating("u1", "i1")])
    with pytest.raises(MigrationRefused, match="has keys of a namespace 'refused' already"):
        await migrated(at, to)
    # By a process that came between the look and the first step.
    with pytest.raises(MigrationRefused, match="has begun a namespace in the target just now"):
        await targets.begin(to, {b"identity": b"0" * 32}, 1, "token")
    with pytest.raises(MigrationRefused, match="this very store"):
        await migrated(at, at)
    elsewhere = replace(to, url=f"{server.url}/2")
    async with opened(at) as store:
        await store.ratings.append([rating("u1", "waits")])
        with pytest.raises(MigrationRefused, match="no trainer leads: start it first"):
            await migrated(at, elsewhere)
        await archive(store)
        epoch = await store.epochs.begin()
        with pytest.raises(MigrationRefused, match="run this again when it is live"):
            await migrated(at, elsewhere)
        await store.epochs.abandon(epoch)
        # One that leads, and archives nothing: ratings are taken again.
        assert await store.leases.acquire("leads", 60_000) is not None
        await store.ratings.append([rating("u1", "waits")])
        telling = Telling(lambda _line: None, lambda _done, _total: None)
        with pytest.raises(MigrationStopped, match="1 events wait in the streams"):
            await Migration(store, elsewhere, telling, archived_s=0.1).run()
        await store.ratings.append([rating("u1", "goes on")])
