"""Opening a store: what is checked, what is fixed at creation, what a person is told."""

from dataclasses import replace

import pytest
from redis._parsers.helpers import parse_info

from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.namespace import check_server
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.probes import unused_port
from tests.support.factories import rating
from tests.support.servers import StoreServer


async def test_a_new_namespace_is_found_again_and_others_do_not_see_it(store: Store) -> None:
    await store.ratings.append([rating("u", "i")])
    again = await Store.open(store.settings)
    pointer = await again.generations.live()
    assert (pointer.epoch, pointer.generation, pointer.pending) == (1, 0, 0)
    assert (await again.users.history(1, b"u"))[0] == 1
    await again.close()
    other = await Store.open(replace(store.settings, namespace=f"{store.settings.namespace}-b"))
    assert (await other.users.history(1, b"u"))[0] == 0
    await other.close()


async def test_what_is_fixed_at_creation_is_refused_when_it_differs(store: Store) -> None:
    for other in (replace(store.settings, partitions=8), replace(store.settings, scale="1:10")):
        with pytest.raises(StoreRefused, match=r"has FOLDIN_\w+ [^ ]+, not"):
            await Store.open(other)


async def test_no_store_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await Store.open(StoreSettings(url=f"redis://127.0.0.1:{unused_port()}", timeout_s=0.5))


async def test_a_server_that_cannot_keep_the_promises_is_refused(own_server: StoreServer) -> None:
    at = StoreSettings(url=own_server.url)
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
    opened = await Store.open(replace(at, url=own_server.url.replace("//", "//:secret@")))
    await opened.close()


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ("redis_version:7.0.15", "too old"),
        ("redis_version:7.2.4\nserver_name:valkey\nvalkey_version:7.2.8", "too old"),
        ("redis_version:8.0.0\ncluster_enabled:1", "cluster"),
        ("redis_version:8.0.0\nmaxmemory:5\nmaxmemory_policy:allkeys-lfu", "noeviction"),
    ],
)
def test_servers_that_will_not_do_are_refused(info: str, why: str) -> None:
    with pytest.raises(StoreRefused, match=why):
        check_server(parse_info(info))  # type: ignore[no-untyped-call]  # redis-py
