"""A migration that is killed at any step: the source takes ratings once it is given up, or the target has all
when the command is run again; and nothing of both.
"""

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.errors import StoreMigrating
from featurestore.migration.errors import MigrationRefused
from featurestore.migration.migration import give_up
from featurestore.settings import StoreSettings
from tests.support.factories import rating
from tests.support.migrating import archive, migrated, standing_still
from tests.support.recovering import Held, held, opened
from tests.support.servers import KIND, StoreServer, running_server

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
