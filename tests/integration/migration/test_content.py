"""What a migration takes along: everything, under another number of partitions; and what it refuses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from featurestore.access import new_secret
from featurestore.catalogue.item import CatalogueItem
from featurestore.errors import StoreMigrating
from featurestore.experiments.definition import Arm, Definition
from featurestore.experiments.showings import Showings
from featurestore.keys import digest_of, partition_of
from featurestore.migration.shared import LEFT_BEHIND
from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.ratings.event_types import NewType, with_new
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.points import Point
from tests.support.factories import low_rank_ratings, rating
from tests.support.migrating import migrated
from tests.support.recovering import held, opened, verified
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.trainers import fitted, running_trainer, trainer_settings, until_drained, until_live

SECRET = new_secret()
# By partition; the test of each is its own.
OF_PARTITIONS = {b"epochs", b"counts", b"forgotten", b"active", b"attributes", b"ratings"}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[StoreServer]:
    (tmp_path / "other").mkdir()
    with running_server(KIND, tmp_path / "other") as running:
        yield running


async def fill(store: Store) -> None:
    await store.access.add(SECRET, "operator", "operate")
    await store.contexts.change(
        lambda before: before.merged(ContextSchema((ContextField("hour", "number"),)))
    )
    await store.ratings.append(low_rank_ratings(users=30, items=12))
    await store.ratings.append([rating("gone", "i1")])
    await store.ratings.append([NewRating(b"u1", b"i1", 4.0, 1e9, np.array([14], dtype=np.float32))])
    await until_live(store)
    await fitted(store)
    await store.ratings.forget(b"gone")
    number = await fitted(store)
    await store.ratings.append([rating("new", "late", 2.0), rating("u2", "i3", 1.0)])
    await store.event_types.change(lambda before: with_new(before, [NewType("watch", "positive")]))
    await store.telemetry.add(Point("worker-1", "a", 1.0, 10.0))
    await store.reports.put(b"a report", b"{}")
    await store.scenarios.put(b"home", b'{"per_category":2}')
    await store.catalogue.schema.hold("items", {"year": "number"})
    for k in range(3):
        item = CatalogueItem(f"i{k}", f"Item {k}", attributes={"year": 1990.0 + k})
        await store.catalogue.change({b"i%d" % k: lambda _, item=item: item})  # type: ignore[misc]
    await store.catalogue.change({b"i9": lambda _: None})
    await store.attributes.change(b"u1", lambda _: {"age": 30.0})
    await store.attributes.change(b"told", lambda _: {"age": 31.0})
    await store.experiments.begin("which", Definition((Arm("a", 0.5, "home"), Arm("b", 0.5, "home")), 1.0))
    await store.showings.add(number, Showings(1, 2, 0), [1, 2])
    await store.commands.ask("refit", epoch=1)


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
    own_server: StoreServer, other: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long it waits for processes that have not heard of it: here are none.
    monkeypatch.setattr("featurestore.migration.migration.FOLLOWED_S", 0.0)
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
