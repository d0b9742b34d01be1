"""Opening a store: what is checked, what is fixed at creation, what a person is told; its scale and items."""

import asyncio
from dataclasses import replace

import pytest

from factors import Scale
from featurestore.errors import StoreRefused
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import opened
from tests.support.servers import StoreServer


async def test_what_is_fixed_at_creation_is_refused_when_it_differs(store: Store) -> None:
    for other in (replace(store.settings, partitions=8), replace(store.settings, scale="1:10")):
        with pytest.raises(StoreRefused, match=r"has FOLDIN_\w+ [^ ]+, not"):
            await Store.open(other)


async def test_a_server_that_cannot_keep_the_promises_is_refused(own_server: StoreServer) -> None:
    at = StoreSettings(url=own_server.url, timeout_s=30.0)
    store = await Store.open(at)

    async def refused(why: str, settings: StoreSettings) -> None:
        with pytest.raises(StoreRefused, match=why):
            await Store.open(settings)

    await store.redis.config_set("appendonly", "no")
    await refused("appendonly", replace(at, durability="fsync"))
    await store.redis.config_set("maxmemory-policy", "allkeys-lru")
    await store.redis.config_set("maxmemory", "1gb")
    await refused("noeviction", at)
    await store.redis.config_set("maxmemory-policy", "noeviction")
    rules = ["on", ">pw", "~*", "+@read", "+info", "+ping"]
    await store.redis.execute_command("ACL", "SETUSER", "looker", *rules)
    await refused("NOPERM", replace(at, url=own_server.url.replace("//", "//looker:pw@")))
    await store.redis.config_set("requirepass", "secret")
    await store.close()
    await refused("NOAUTH", at)
    await refused("WRONGPASS", replace(at, url=own_server.url.replace("//", "//:wrong@")))
    async with opened(replace(at, url=own_server.url.replace("//", "//:secret@"))):
        pass


async def test_of_several_who_decide_one_wins_and_all_follow(store_settings: StoreSettings) -> None:
    undecided = replace(store_settings, namespace=f"{store_settings.namespace}-scale", scale=None)
    stores = [await Store.open(undecided) for _ in range(4)]
    assert not any(each.scale.decided for each in stores)
    scales = [Scale(0.5, 5.0, 0.5), Scale(0, 100), Scale(-10, 10), Scale(1, 5)]
    won = await asyncio.gather(
        *(each.scale.decide(scale) for each, scale in zip(stores, scales, strict=True))
    )
    assert sum(won) == 1
    assert {each.scale.value for each in stores} == {scales[won.index(True)]}
    late = await Store.open(undecided)
    assert (late.scale.decided, late.scale.value) == (True, stores[0].scale.value)
    # Again with the same one is no other decision.
    assert await late.scale.decide(stores[0].scale.value)
    assert not await late.scale.decide(Scale(0, 3))
    with pytest.raises(StoreRefused, match=r"has FOLDIN_SCALE [^ ]+, not 1:7: use that"):
        await Store.open(replace(undecided, scale="1:7"))
    await asyncio.gather(*(each.close() for each in (late, *stores)))


async def test_two_processes_give_the_same_rows(store: Store) -> None:
    async with opened(store.settings) as other:
        ids = [b"%d" % i for i in range(300)]
        turned = [ids[start:] + ids[:start] for start in (0, 100, 200)]
        many = await asyncio.gather(*[s.items(1).register(each) for s in (store, other) for each in turned])
    by_id = [dict(zip(each, rows, strict=True)) for each, rows in zip(turned * 2, many, strict=True)]
    assert all(rows == by_id[0] for rows in by_id)
    assert sorted(by_id[0].values()) == list(range(300))
