"""Opening a store: what is checked, fixed at creation and told to a person; TLS; what its user may do."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from factors import Scale
from featurestore.access import count_of, new_secret
from featurestore.catalogue.item import CatalogueItem
from featurestore.commands import Outcome
from featurestore.errors import StoreError, StoreRefused, StoreUnavailable
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.errors import ChildEndedError
from processes.probes import unused_port
from tests.support.certificates import certificate
from tests.support.factories import as_live, lead, opened, publish, publish_for_ann, put_items, rating
from tests.support.secrets import make_secrets
from tests.support.servers import ServerKind, StoreServer, missing, own_namespace, running_server
from tests.support.waiting import wait_until


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
    won = await asyncio.gather(*(one.scale.decide(scale) for one, scale in zip(stores, scales, strict=True)))
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


@pytest.fixture
def over_tls(tmp_path: Path) -> Iterator[StoreSettings]:
    """A store that speaks TLS, on a port beside the plain one by which tests see that it runs."""
    known, port = certificate(tmp_path, "server"), unused_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(known)]
    options += ["--tls-cert-file", str(known), "--tls-key-file", str(known.with_suffix(".key"))]
    try:
        with running_server("redis", tmp_path, *options):
            url = f"rediss://localhost:{port}?ssl_ca_certs={known}"
            yield StoreSettings(url=url, partitions=2, timeout_s=30.0)
    except ChildEndedError:
        missing("a redis-server with TLS")


# The Valkey of the lock was built without TLS.
@pytest.mark.slow
async def test_only_a_store_with_a_known_certificate_is_used(over_tls: StoreSettings, tmp_path: Path) -> None:
    async with opened(over_tls) as store:
        await store.ratings.append([rating("ann", "dune", 5.0)])
        assert (await store.users.history(1, b"ann"))[0] == 1
        await store.access.add(new_secret(), "one", "read")
        assert count_of(await store.access.load()) == 1
    other, address = certificate(tmp_path, "other"), over_tls.url.partition("?")[0]
    for url in (
        address,
        f"{address}?ssl_ca_certs={other}",
        over_tls.url.replace("rediss://localhost", "rediss://127.0.0.2"),
        # Plain speech to a port of TLS.
        address.replace("rediss", "redis"),
    ):
        with pytest.raises(StoreUnavailable):
            await Store.open(replace(over_tls, url=url, timeout_s=1.0))


# A refusal is no failure of the connection, and is not tried again.
AT_ONCE = Retry(NoBackoff(), 0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return make_secrets(tmp_path, "acl-test")


@pytest.fixture
def server(store_kind: ServerKind, tmp_path: Path, folders: tuple[Path, Path]) -> Iterator[StoreServer]:
    with running_server(store_kind, tmp_path, "--aclfile", str(folders[0] / "users.acl")) as server:
        yield server


@pytest.fixture
def settings(server: StoreServer, folders: tuple[Path, Path]) -> StoreSettings:
    common = own_namespace(server.url.replace("//", "//foldin@"))
    return replace(common, password_file=folders[1] / "redis", namespace="acl-test", scale="1:5:1")


def logged_in(server: StoreServer, user: str, file: Path) -> Any:
    password = file.read_text()
    return Redis("127.0.0.1", server.port, username=user, password=password, protocol=2, retry=AT_ONCE)


async def test_the_user_may_not_do_anything_else_and_what_it_wrote_outlasts_a_restart(
    server: StoreServer, settings: StoreSettings, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(StoreError) as refused:
        await Store.open(replace(settings, url=settings.url.replace("foldin@", "")))
    assert not isinstance(refused.value, StoreUnavailable)
    with pytest.raises(StoreRefused, match="cannot be read"):
        await Store.open(replace(settings, password_file=tmp_path / "none"))
    async with opened(settings) as store:
        await every_call(store)
    admin = logged_in(server, "admin", folders[0] / "admin")
    assert admin.acl_log() == []
    assert all(key.startswith((b"acl-test", b"{acl-test")) for key in admin.scan_iter())
    password = (folders[1] / "redis").read_text()
    assert password not in repr(settings) + (folders[0] / "users.acl").read_text()
    with pytest.raises(AuthenticationError):
        Redis(host="127.0.0.1", port=server.port, retry=AT_ONCE).ping()
    ours = logged_in(server, "foldin", folders[1] / "redis")
    assert ours.set("acl-test:x", 1)
    assert ours.get("acl-test:x") == b"1"
    for command in FORBIDDEN:
        with pytest.raises(NoPermissionError):
            ours.execute_command(*command.split())
    health = logged_in(server, "health", folders[1] / "redis")
    assert health.ping()
    with pytest.raises(NoPermissionError):
        health.get("acl-test:x")
    # A server reads its own file as its user `default`, who is off: what that one may not do would be left
    # out, without an error. It happened: every call of a function is a transaction there.
    before = digest(admin)
    assert len(before) > 20
    for how in (server.stop, server.kill):
        how()
        server.start()
        wait_until(admin.ping, "the server has loaded its file", unless=(RedisConnectionError,))
        assert digest(admin) == before


async def every_call(store: Store) -> None:
    """What services and trainers ask of the store, each in its own way."""
    await publish_for_ann(store, {"item-0": 5.0, "item-1": 2.0})
    await store.ratings.append([rating(f"user-{n}", "dune") for n in range(20)])
    lease = await lead(store)
    live = as_live(await publish(store, lease, users=[b"ann"]))
    assert (await store.users.current(live, [b"ann", b"user-1"])).n.tolist() == [2, 1]
    await store.ratings.forget(b"user-1")
    command = await store.commands.ask("erase", epoch=1, user=b"user-1")
    (taken,) = await store.commands.take("0", 1)
    await store.commands.report(lease, command, Outcome("done"))
    assert await store.commands.outcome(command) == Outcome("done")
    await store.commands.drop(taken.stream_id)
    events = await store.stream.read(1, lease, 100, 1)
    await store.stream.done(1, lease, events.last)
    assert await store.files.renew_streams([1])
    epoch = await store.epochs.begin()
    await store.ratings.append([rating("ann", "late")])
    await store.epochs.abandon(epoch)
    await store.generations.prune(lease)
    await lease.renew()
    await put_items(store, CatalogueItem("dune", "Dune"))
    await store.attributes.change(b"ann", lambda _: {"age": 30.0})
    await store.scenarios.put(b"home", b"{}")
    await store.access.add(new_secret(), "one", "read")
    await store.access.add(new_secret(), "two", "read")
    assert await store.access.remove("two") == 1
    assert [user async for some in store.user_search.all(1) for user in some]
    # By itself it goes in a minute, which is a change.
    await lease.release()


def digest(admin: Any) -> dict[bytes, Any]:
    """Every key with its value, as the server would dump it; of a stream not when readers were seen last."""
    # Neither does the order of a hash or a set outlast a restart.
    read = {b"stream": admin.xrange, b"hash": admin.hgetall, b"set": admin.smembers}
    return {key: read.get(admin.type(key), admin.dump)(key) for key in admin.scan_iter()}


FORBIDDEN = [
    *("FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "KEYS *", "ACL LIST", "ACL WHOAMI"),
    *("SHUTDOWN NOSAVE", "REPLICAOF NO ONE", "SAVE", "BGSAVE", "MONITOR"),
    *("FUNCTION FLUSH", "FUNCTION DELETE foldin", "MODULE LIST", "CLIENT LIST", "CLIENT KILL ID 1"),
    *("GET other", "SET other 1", "HGETALL other:config", "DEL acl-tests:live", "SCRIPT FLUSH"),
]
