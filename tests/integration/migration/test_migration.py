"""What a migration takes along and refuses; killed at any step it is given up or run again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from featurestore.access import new_secret
from featurestore.catalogue.item import CatalogueItem
from featurestore.errors import StoreMigrating
from featurestore.experiments import Arm, Definition, Showings
from featurestore.keys import digest_of, partition_of
from featurestore.migration.migration import Migrated, Migration, Step, Telling, give_up, no_step
from featurestore.migration.shared import LEFT_BEHIND
from featurestore.migration.stages import MigrationRefused
from featurestore.migration.target import leaving
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import lead, low_rank_ratings, rating
from tests.support.recovering import Held, fill_beside, held, opened, verified
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.trainers import (
    Crash,
    crash_at,
    cut_off,
    fitted,
    running_trainer,
    trainer_settings,
    until_drained,
    until_live,
)

SECRET = new_secret()
# By partition; the test of each is its own.
OF_PARTITIONS = {b"epochs", b"counts", b"forgotten", b"active", b"attributes", b"ratings"}


@pytest.fixture(autouse=True)
def _waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # So long it waits for processes that have not heard of it: here are none.
    monkeypatch.setattr("featurestore.migration.migration.FOLLOWED_S", 0.0)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[StoreServer]:
    (tmp_path / "other").mkdir()
    with running_server(KIND, tmp_path / "other") as running:
        yield running


async def fill(store: Store) -> None:
    await store.access.add(SECRET, "operator", "operate")
    await store.ratings.append(low_rank_ratings(users=30, items=12))
    await store.ratings.append([rating("gone", "i1")])
    await fill_beside(store, b"u1")
    await until_live(store)
    await fitted(store)
    await store.ratings.forget(b"gone")
    number = await fitted(store)
    await store.ratings.append([rating("new", "late", 2.0), rating("u2", "i3", 1.0)])
    for k in range(3):
        item = CatalogueItem(f"i{k}", f"Item {k}", attributes={"year": 1990.0 + k})
        await store.catalogue.change({b"i%d" % k: lambda _, item=item: item})  # type: ignore[misc]
    await store.catalogue.change({b"i9": lambda _: None})
    await store.attributes.change(b"told", lambda _: {"age": 31.0})
    await store.experiments.begin("which", Definition((Arm("a", 0.5, "home"), Arm("b", 0.5, "home")), 1.0))
    await store.showings.add(number, Showings(1, 2, 0), [1, 2])
    await store.commands.ask("refit", epoch=1)


async def migrated(source: StoreSettings, target: StoreSettings, *, step: Step = no_step) -> Migrated | None:
    telling = Telling(lambda _line: None, lambda _done, _total: None)
    async with leaving(source) as store:
        return await Migration(store, target, telling, step=step).run()


async def content(url: str, namespace: str) -> dict[bytes, Any]:
    redis: Any = Redis.from_url(url)
    found: dict[bytes, Any] = {}
    read = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"stream": redis.xrange,
    }
    async for key in redis.scan_iter(f"*{namespace}[.:]*", count=1000):
        found[key] = await read[await redis.type(key)](key)
    await redis.aclose()
    return found


def place_of(key: bytes) -> bytes:
    """The name of a user's key without the partition, which is another one."""
    head, tag, rest = key.partition(b"}:")
    return key if not tag or not head.rpartition(b"{")[2].isdigit() else head.rpartition(b"{")[0] + rest


@pytest.mark.usefixtures("quick_rounds")
async def test_everything_goes_along_under_any_number_of_partitions(
    own_server: StoreServer, other: StoreServer, tmp_path: Path
) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=30.0)
    to = replace(at, url=f"{other.url}/1", partitions=12)
    name, partitions = at.namespace, to.partitions
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=20.0)
    async with opened(at) as store:
        async with running_trainer(settings):
            await fill(store)
            await until_drained(store)
        ratings, ends = await held(store), await store.stream.progress(1)
        before = await content(at.url, name)
        made = await migrated(at, to)
        assert made is not None
        assert made.events == sum(end.last[1] for end in ends.values())
        assert (await content(at.url, name)).keys() >= before.keys(), "nothing leaves the store that was left"
        # No process writes to it any more, whatever it asks for.
        for writing in (
            store.ratings.append([rating("u1", "i1")]),
            store.ratings.append([rating("u1", "unknown")]),
            store.ratings.forget(b"u1"),
            store.attributes.change(b"u1", lambda _: {"age": 1.0}),
            store.access.add(new_secret(), "other", "read"),
            store.access.remove("operator"),
            store.scenarios.put(b"home", b"{}"),
            store.scenarios.delete(b"home"),
            store.reports.put(b"a report", b"[]"),
            store.reports.delete(b"a report"),
            store.catalogue.change({b"i1": lambda _: None}),
            store.commands.ask("refit", epoch=1),
            store.epochs.begin(),
            store.leases.acquire("token", 1000),
        ):
            with pytest.raises(StoreMigrating):
                await writing
    assert await migrated(at, to) is None
    after = await content(to.url, name)
    assert sum(count for count, _ in made.digests) == len([key for key in after if b"}:user:" in key])

    left = {place_of(key): value for key, value in before.items()}
    there = {place_of(key): value for key, value in after.items()}
    for key, value in left.items():
        kind = key.rpartition(b":")[2]
        if kind in OF_PARTITIONS or kind.decode() in LEFT_BEHIND:
            continue
        if kind == b"config":
            assert there[key] == {**value, b"partitions": b"%d" % partitions}
        else:
            assert there[key] == value, key
    assert not [key for key in after if b"}:migration" in key or b"}:changed" in key]
    async with opened(to) as store:
        assert await held(store) == ratings
        assert await store.ratings.forgotten(1) == {digest_of(b"gone"): 1}
        names = {key for key in after if key.endswith(b":active")}
        active = {user for key in names for user in after[key]}
        assert active == {user for key, value in before.items() if key.endswith(b":active") for user in value}
        for key in names:
            tag = int(key.partition(b"{")[2].partition(b"}")[0])
            assert {partition_of(user, partitions) for user in after[key]} <= {tag}

    # The same archive goes on with it.
    moved = replace(settings, store=to)
    async with opened(to) as store, running_trainer(moved):
        # One who comes back goes on above what an older generation knows.
        await store.ratings.append([rating("gone", "i1"), rating("u1", "i2", 2.0)])
        assert (await store.users.history(1, b"gone"))[0] == 2
        await until_drained(store)
        found = await verified(moved)
        assert found.count == 0, found.differences


BEFORE = ("begin", "copying", "users", "closed", "moved", "decide")


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
