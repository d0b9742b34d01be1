"""A migration that is killed at any step is given up or run again: one of the two stores has all."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from featurestore.errors import StoreMigrating
from featurestore.migration.errors import MigrationRefused
from featurestore.migration.migration import Migration, give_up
from featurestore.settings import StoreSettings
from tests.support.factories import lead, rating
from tests.support.migrating import migrated
from tests.support.recovering import Held, held, opened
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.trainers import Crash, crash_at, cut_off

BEFORE = ("begin", "copying", "users", "closed", "moved", "decide")


@pytest.fixture(autouse=True)
def _waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.migration.migration.FOLLOWED_S", 0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    with running_server(KIND, tmp_path_factory.mktemp("store")) as running:
        yield running


def settings_of(server: StoreServer, name: str) -> tuple[StoreSettings, StoreSettings]:
    at = StoreSettings(url=server.url, namespace=name, partitions=2, timeout_s=30.0)
    return at, replace(at, url=f"{server.url}/1", partitions=3)


async def filled(*stores: StoreSettings) -> Held:
    """Stores whose ratings are archived, as far as these know; what each holds."""
    found: Held = {}
    for at in stores:
        async with opened(at) as store:
            await store.ratings.append([rating(f"u{k}", f"i{k % 3}") for k in range(20)])
            lease = await lead(store)
            await store.stream.done(1, lease, (await store.stream.read(1, lease, 100, 0)).last)
            await lease.release()
            found = await held(store)
    return found


async def killed(at: StoreSettings, to: StoreSettings, step: str) -> None:
    """Begin a migration that comes to a step and no further, and tidies nothing up."""
    with cut_off(Migration, "_release"), pytest.raises(Crash):
        await migrated(at, to, step=crash_at(step))


async def takes(at: StoreSettings, user: str) -> bool:
    try:
        async with opened(at) as store:
            await store.ratings.append([rating(user, "i1")])
            return True
    except StoreMigrating:
        return False


@pytest.mark.parametrize("step", BEFORE)
async def test_killed_before_it_is_decided(server: StoreServer, step: str) -> None:
    moves = (at, to), (kept, left) = settings_of(server, f"{step}-again"), settings_of(server, f"{step}-kept")
    before = await filled(at, kept)
    for source, target in moves:
        await killed(source, target, step)
        # What was begun there is opened by no process.
        assert step in {"begin", "copying"} or not await takes(target, "other")
    made = await migrated(at, to)
    assert made is not None
    assert made.users == 20
    async with opened(to) as store:
        assert await held(store) == before
    async with opened(kept) as store:
        late = step in {"moved", "decide"}
        if late:
            with pytest.raises(MigrationRefused, match=f"give --to {left.url} as well"):
                await give_up(store)
            with pytest.raises(MigrationRefused, match="give that address"):
                await give_up(store, replace(left, url=f"{server.url}/2"))
        assert await give_up(store, left if late else None) is (step != "begin")
        assert not await store.redis.keys(f"*{kept.namespace}*:migration")
        assert await held(store) == before
        assert await give_up(store) is False
        # What was copied is removed where that is named, at any time.
        assert await give_up(store, left) is (step in {"users", "closed"})
        assert not await give_up(store, left)
    assert not await takes(at, "other")
    for taking in (to, kept, left):
        assert await takes(taking, "other")


async def test_killed_when_it_is_decided(server: StoreServer) -> None:
    at, to = settings_of(server, "decided")
    before = await filled(at)
    await killed(at, to, "decided")
    assert not await takes(at, "other")
    assert not await takes(to, "other")
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
