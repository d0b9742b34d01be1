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


async def test_a_new_namespace_is_created_and_found_again(store: Store) -> None:
    again = await Store.open(store.settings)
    pointer = await again.generations.live()
    assert (pointer.epoch, pointer.generation, pointer.pending) == (1, 0, 0)
    await again.close()


async def test_what_is_fixed_at_creation_is_refused_when_it_differs(store: Store) -> None:
    for other in (replace(store.settings, partitions=8), replace(store.settings, scale="1:10")):
        with pytest.raises(StoreRefused, match=r"has FOLDIN_\w+ [^ ]+, not"):
            await Store.open(other)


async def test_namespaces_do_not_see_each_other(store: Store) -> None:
    other = await Store.open(replace(store.settings, namespace=f"{store.settings.namespace}-b"))
    await store.ratings.append([rating("u", "i")])
    assert (await other.users.history(1, b"u"))[0] == 0
    await other.close()


async def test_a_store_without_its_hot_connection_works(store_settings: StoreSettings) -> None:
    store = await Store.open(store_settings, hot=False)
    assert store.hot is None
    await store.ratings.append([rating("u", "i")])
    assert (await store.users.history(1, b"u"))[0] == 1
    assert await store.redis.ping()
    await store.close()


async def test_no_store_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await Store.open(StoreSettings(url=f"redis://127.0.0.1:{unused_port()}", timeout_s=0.5))


async def test_a_password_is_asked_for(own_server: StoreServer) -> None:
    store = await Store.open(StoreSettings(url=own_server.url))
    await store.redis.config_set("requirepass", "secret")
    await store.close()
    with pytest.raises(StoreRefused, match="NOAUTH"):
        await Store.open(StoreSettings(url=own_server.url))
    with pytest.raises(StoreRefused, match="WRONGPASS"):
        await Store.open(StoreSettings(url=own_server.url.replace("//", "//:wrong@")))
    opened = await Store.open(StoreSettings(url=own_server.url.replace("//", "//:secret@")))
    await opened.close()


async def test_a_user_who_may_not_write_is_refused(own_server: StoreServer) -> None:
    store = await Store.open(StoreSettings(url=own_server.url))
    rules = ["on", ">pw", "~*", "+@read", "+info", "+ping"]
    await store.redis.execute_command("ACL", "SETUSER", "looker", *rules)
    await store.close()
    with pytest.raises(StoreRefused, match="NOPERM"):
        await Store.open(StoreSettings(url=own_server.url.replace("//", "//looker:pw@")))


async def test_a_store_that_evicts_is_refused(own_server: StoreServer) -> None:
    store = await Store.open(StoreSettings(url=own_server.url))
    await store.redis.config_set("maxmemory-policy", "allkeys-lru")
    await store.redis.config_set("maxmemory", "1gb")
    await store.close()
    with pytest.raises(StoreRefused, match="noeviction"):
        await Store.open(StoreSettings(url=own_server.url))


async def test_fsync_without_an_append_only_file_is_refused(own_server: StoreServer) -> None:
    store = await Store.open(StoreSettings(url=own_server.url))
    await store.redis.config_set("appendonly", "no")
    await store.close()
    with pytest.raises(StoreRefused, match="appendonly"):
        await Store.open(StoreSettings(url=own_server.url, durability="fsync"))


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
