"""Quotas against a running service: what is refused and how, that refused calls change nothing, and that
workers share.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from featurestore.access import ApiKey, digest_of_secret, new_secret
from featurestore.errors import StoreUnavailable
from featurestore.quotas.limits import parse_quotas
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.points import Point
from service.context import CONTEXT
from service.http.access import Access
from service.http.audit import Audit
from service.http.quotas import Quotas
from service.metrics import Counts, error_bounds
from tests.support.factories import Written, publish_for_ann, rating
from tests.support.serving import BOTH_WAYS, Reply, Service, client_of, is_problem, serves, serving
from tests.support.waiting import wait_until_async

ONE = "/predict?user_id=ann&item_id=item-1"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def told(reply: Reply, quota: str, caller: str, limit: str) -> bool:
    """Whether a refusal says which quota, whose, and when."""
    assert is_problem(reply, 429, "quota_exceeded")
    assert (reply.json["quota"], reply.json["caller"], reply.json["limit"]) == (quota, caller, limit)
    assert f"ask again in {reply.headers['Retry-After']} s" in reply.json["detail"]
    return True


def rows(n: int, item: str = "item-{}", user: str = "ann") -> list[dict[str, Any]]:
    return [{"user_id": user, "item_id": item.format(row % 8), "rating": 3} for row in range(n)]


async def stored(store: Store) -> tuple[int, object]:
    return await store.redis.llen(store.keys.order(1)), await store.stream.lag(1)


@pytest.mark.slow
@BOTH_WAYS
async def test_an_address_has_so_many_requests_and_probes_are_always_answered(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings, quotas=parse_quotas("off,requests=20/m")) as (client, app):
        await serves(client, published.writer.number)
        replies = [await client.get(ONE) for _ in range(21)]
        assert [reply.status for reply in replies] == [200] * 20 + [429]
        assert told(replies[20], "requests", "address 127.0.0.1", "20/m")
        assert 1 <= int(replies[20].headers["Retry-After"]) <= 3
        # An address that does not exist costs as much; probes and scrapes cost nothing.
        assert (await client.get("/nothing")).status == 429
        text = (await client.get("/metrics")).text
        assert 'foldin_quota_refusals_total{quota="requests"} 2.0' in text
        assert 'foldin_quota_refusals_total{quota="items"} 0.0' in text
        assert (await client.get("/livez")).status == 200
        assert app[CONTEXT].counts.requests["/predict"] == {"200": 20, "429": 1}


async def test_probes_have_a_quota_of_their_own_and_readyz_asks_no_store(
    store_settings: StoreSettings, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(store_settings, quotas=parse_quotas("off,requests=5/h,probes=30/h")) as (client, app):
        generations = app[CONTEXT].store.generations

        async def asked() -> None:
            raise AssertionError("a call that anyone may make asks the store")

        await serves(client, published.writer.number)
        monkeypatch.setattr(generations, "live", asked)
        replies = [await client.get("/readyz") for _ in range(40)]
        assert [reply.status for reply in replies[:20]] == [200] * 20
        assert told(replies[-1], "probes", "address 127.0.0.1", "30/h")
        assert told(await client.get("/metrics"), "probes", "address 127.0.0.1", "30/h")
        # A worker that is refused there is killed, and others may have the address of its probe.
        assert {(await client.get("/livez")).status for _ in range(40)} == {200}
        # Of other calls as many as before.
        assert [(await client.get(ONE)).status for _ in range(6)] == [200] * 5 + [429]


async def test_what_a_large_call_takes_is_missing_at_other_workers_at_once(
    store_settings: StoreSettings, published: Written
) -> None:
    limits = parse_quotas("off,requests=100/m")
    async with (
        serving(store_settings, quotas=limits) as (one, _),
        serving(store_settings, quotas=limits) as (
            other,
            _,
        ),
    ):
        await serves(one, published.writer.number)
        await serves(other, published.writer.number)
        assert (await one.post("/predict", {"pairs": [["ann", "item-1"]] * 2_000})).status == 200
        statuses = []
        for _ in range(20):
            statuses.append((await other.get(ONE)).status)
            await asyncio.sleep(0.1)
        assert statuses[-1] == 429


async def test_on_loopback_there_are_no_quotas_unless_told_so(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings) as (client, _):
        await serves(client, published.writer.number)
        for _ in range(3):
            replies = await asyncio.gather(*(client.get(ONE) for _ in range(500)))
            assert {reply.status for reply in replies} == {200}


async def test_a_large_call_counts_as_many(store_settings: StoreSettings, published: Written) -> None:
    async with serving(store_settings, quotas=parse_quotas("off,requests=100/m")) as (client, _):
        await serves(client, published.writer.number)
        pairs = {"pairs": [["ann", "item-1"]] * 2_000}
        assert (await client.post("/predict", pairs)).status == 200
        # It was let in by a token, and took two hundred.
        reply = await client.get(ONE)
        assert told(reply, "requests", "address 127.0.0.1", "100/m")
        assert 50 <= int(reply.headers["Retry-After"]) <= 62


async def test_reading_much_counts_as_many(
    store: Store, store_settings: StoreSettings, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.context.ANSWER_ENTRIES", 1)
    monkeypatch.setattr("service.routes.exporting._LINES_A_REQUEST", 1)
    monkeypatch.setattr("featurestore.users.search._AT_ONCE", 10)
    await store.items(1).register([b"other-%d" % n for n in range(100)])
    await store.ratings.append([rating("eve", f"other-{n}") for n in range(100)])
    await asyncio.gather(*(store.telemetry.add(Point("w", "a", n, 10.0)) for n in range(60)))
    monkeypatch.setattr("service.routes.operations.status.POINTS_A_REQUEST", 1)
    keys = {name: new_secret() for name in ("histories", "export", "search", "points")}
    for name, secret in keys.items():
        await store.access.add(secret, name, "operate", "requests=1000/h")
    async with serving(store_settings) as (client, app):
        await serves(client, published.writer.number)

        def left(name: str) -> float:
            caller = app[CONTEXT].quotas.caller({}, None, app[CONTEXT].access.key_of(bearer(keys[name])))
            assert caller is not None
            return caller.buckets["requests"].level

        async def cost(method: str, path: str, name: str) -> float:
            await client.ask("GET", "/nothing", headers=bearer(keys[name]))
            before = left(name)
            assert (await client.ask(method, path, headers=bearer(keys[name]))).status in {200, 404}
            return round(before - left(name))

        for method, path in (
            ("GET", "/users/eve/ratings"),
            ("GET", "/users/eve/events"),
            ("DELETE", "/ratings/eve/item-1"),
            ("DELETE", "/events/eve/item-1/view"),
        ):
            assert await cost(method, path, "histories") == 101
        assert await cost("GET", "/export/ratings", "export") == 1 + 101
        assert await cost("GET", "/history?seconds=60", "points") == 1 + 60
        # All keys of the store are looked through, ten a step, ten steps a call.
        assert await cost("GET", "/users?prefix=zz", "search") >= 2
        assert await cost("GET", "/users/eve", "search") < 102


def test_two_keys_of_one_name_share_its_quota(store_server: object) -> None:
    quotas = small("requests=5/h")
    keys = [ApiKey("shop", "rate", created) for created in (1.0, 2.0)]
    callers = [quotas.caller({}, None, keys[n % 2]) for n in range(20)]
    assert sum(quotas.taken(caller, "requests") is None for caller in callers) == 5
    # Each of the two may have its own.
    other = ApiKey("shop", "rate", 1.0, "requests=7/h")
    passed = 0
    for n in range(40):
        caller = quotas.caller({}, None, (keys[0], other)[n % 2])
        passed += quotas.taken(caller, "requests") is None
    assert passed <= 1


@pytest.mark.slow
async def test_ratings_items_and_history_are_bounded_and_a_refused_call_changes_nothing(
    store: Store, store_settings: StoreSettings, published: Written
) -> None:
    quotas = parse_quotas("off,ratings=100/h,items=10/h,history=90")
    async with serving(store_settings, quotas=quotas) as (client, app):
        await serves(client, published.writer.number)
        assert (await client.post("/ratings", rows(40))).status == 200
        before = await stored(store)
        reply = await client.post("/ratings", rows(61))
        assert told(reply, "ratings", "address 127.0.0.1", "100/h")
        assert await stored(store) == before
        reply = await client.post(
            "/ratings", [dict(row, item_id=f"n{at}") for at, row in enumerate(rows(11))]
        )
        assert reply.status == 200, "more than a bucket holds takes a full one"
        reply = await client.post("/ratings", rows(1, "another"))
        assert told(reply, "items", "address 127.0.0.1", "10/h")
        before = await stored(store)
        # 1 + 40 + 11 entries are there.
        many = [*rows(1, user="bob"), *rows(39)]
        reply = await client.post("/ratings", many)
        assert is_problem(reply, 422, "too_many_ratings")
        assert (reply.json["field"], reply.json["row"]) == ("user_id", 1)
        assert await stored(store) == before
        # Of one who has too many, a rating can still be taken back.
        assert (await client.ask("DELETE", "/ratings/ann/item-1")).status == 200
        refusals = app[CONTEXT].counts.quota_refusals
        assert refusals == {"ratings": 1, "items": 1, "history": 1}


@pytest.mark.slow
async def test_a_key_has_quotas_of_its_own_which_are_changed_while_it_is_used(
    store: Store, store_settings: StoreSettings, published: Written
) -> None:
    slow, fast, boss = new_secret(), new_secret(), new_secret()
    await store.access.add(slow, "slow", "rate", "requests=5/m,newer=7/s")
    await store.access.add(fast, "fast", "rate")
    await store.access.add(boss, "boss", "operate")
    async with serving(store_settings, quotas=parse_quotas("off,requests=30/m")) as (client, _):
        await serves(client, published.writer.number)

        async def taken(n: int, headers: Mapping[str, str]) -> int:
            replies = await asyncio.gather(*(client.get(ONE, headers=headers) for _ in range(n)))
            return sum(reply.status == 200 for reply in replies)

        assert await taken(8, bearer(slow)) == 5
        assert await taken(40, bearer(fast)) == 30
        assert await taken(100, bearer(boss)) == 100
        # What brings no key that is known is its address.
        reply = [await client.get(ONE, headers=bearer(new_secret())) for _ in range(31)][-1]
        assert told(reply, "requests", "address 127.0.0.1", "30/m")
        assert told(await client.get(ONE, headers=bearer(slow)), "requests", "key slow", "5/m")
        assert await store.access.change("slow", "requests=off") == 1

        async def free() -> bool:
            return (await client.get(ONE, headers=bearer(slow))).status == 200

        await wait_until_async(free, "the key has its new quotas")
        assert await taken(50, bearer(slow)) == 50


@pytest.mark.slow
async def test_two_workers_share_a_bucket(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    await publish_for_ann(store, {"item-0": 5.0})
    service = Service(
        store_settings, tmp_path, workers=2, environment={"FOLDIN_QUOTAS": "off,requests=200/h"}
    )
    try:
        service.wait_for()
        taken, began = 0, time.monotonic()
        # Connections of their own, and so to either worker; slower than the workers tell each other.
        while time.monotonic() - began < 5.0:
            async with client_of(service.url) as client:
                replies = await asyncio.gather(*(client.get(ONE) for _ in range(20)))
                taken += sum(reply.status == 200 for reply in replies)
            await asyncio.sleep(0.15)
        # Each on its own would have given 200.
        assert 190 <= taken <= 290
    finally:
        service.end()


@pytest.mark.slow
async def test_a_connection_that_was_refused_is_read_on_after_a_while(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings, quotas=parse_quotas("off,requests=1/h")) as (client, _):
        await serves(client, published.writer.number)
        port = int(client.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)
        began, refusals = time.monotonic(), 0
        while time.monotonic() - began < 2.5:
            with_answer = asyncio.wait_for(reader.readuntil(b"}"), 2.5)
            try:
                refusals += b" 429 " in await with_answer
            except TimeoutError:
                break
        # The first is answered; the others half a second to a second apart, and not forty at once.
        assert 2 <= refusals <= 6
        writer.close()


async def test_a_real_worker_tells_a_connection_too_many(
    store: Store, store_settings: StoreSettings, tmp_path: Path
) -> None:
    service = Service(store_settings, tmp_path, environment={"FOLDIN_QUOTAS": "off,connections=5"})
    try:
        service.wait_for("/livez")
        held = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(20)]
        texts = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in held[10:])), 10.0)
        assert all(text.startswith(b"HTTP/1.1 429") and b"quota_exceeded" in text for text in texts)
        for _, writer in held:
            writer.close()
    finally:
        service.end()


@BOTH_WAYS
async def test_an_address_has_so_many_connections(store_settings: StoreSettings, published: Written) -> None:
    async with serving(store_settings, quotas=parse_quotas("off,connections=20")) as (client, app):
        await serves(client, published.writer.number)
        port = int(client.url.rpartition(":")[2])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        await wait_until_async(lambda: app[CONTEXT].traffic.connections == 20, "twenty are let in")
        told_so = [reader for reader, _ in held[20:]]
        texts = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader in told_so)), 5.0)
        assert all(text.startswith(b"HTTP/1.1 429") for text in texts)
        assert all(b'"quota":"connections","caller":"address 127.0.0.1"' in text for text in texts)
        # From elsewhere it is still open, and to these when they let go.
        elsewhere = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        elsewhere[1].write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await elsewhere[0].readline()
        for _, writer in (*held, elsewhere):
            writer.close()
        await wait_until_async(lambda: app[CONTEXT].traffic.connections <= 1, "they are gone")
        assert (await client.get(ONE)).status == 200


def small(limits: str, proxies: tuple[Any, ...] = ()) -> Quotas:
    from featurestore.quotas.limits import Limits

    counts = Counts(0, 0.0, error_bounds(1, 5))
    return Quotas(Audit((), proxies), counts, Limits().but(parse_quotas(limits)))


def test_addresses_of_one_network_share_and_proxies_are_not_their_clients(store_server: object) -> None:
    import ipaddress

    from multidict import CIMultiDict

    quotas = small("requests=5/s", (ipaddress.ip_network("10.0.0.0/8"),))

    def name(peer: str, *forwarded: str) -> str:
        headers = CIMultiDict[str]([("X-Forwarded-For", line) for line in forwarded])
        caller = quotas.caller(headers, peer, None)
        assert caller is not None
        return caller.name

    assert name("2001:db8::1") == name("2001:db8::ffff:2") == "address 2001:db8::/64"
    assert name("2001:db8:0:1::1") != name("2001:db8::1")
    assert name("::ffff:192.0.2.7") == name("192.0.2.7") == "address 192.0.2.7"
    assert name("10.0.0.9", "198.51.100.1, 192.0.2.8") == "address 192.0.2.8"
    assert name("192.0.2.9", "192.0.2.8") == "address 192.0.2.9", "who is no proxy is not believed"


async def test_a_bucket_is_right_again_when_the_store_was_away(store: Store) -> None:
    quotas = small("requests=1000/h")
    caller = quotas.caller({}, "192.0.2.1", None)
    for _ in range(100):
        quotas.taken(caller, "requests")

    class Away:
        async def spend(self, spendings: object) -> list[float]:
            raise StoreUnavailable("away")

    away = asyncio.create_task(quotas.share(Away()))  # type: ignore[arg-type]
    await asyncio.sleep(0.3)
    assert not away.done(), "it goes on while the store is away"
    away.cancel()
    for _ in range(100):
        quotas.taken(caller, "requests")
    sharing = asyncio.create_task(quotas.share(store.quotas))
    assert caller is not None
    bucket = caller.buckets["requests"]
    try:
        # The store heard of the last hundred alone: the worker goes by what the store says.
        await wait_until_async(lambda: 899 < bucket.level < 901, "the level is that of the store")
    finally:
        sharing.cancel()


def test_a_record_of_a_key_of_an_earlier_version_is_read(store_server: object) -> None:
    import msgspec

    found = msgspec.json.decode(b'{"name":"old","role":"rate","created":1.0}', type=ApiKey)
    access = Access(loopback=False)
    secret = new_secret()
    access.update({digest_of_secret(secret): found})
    assert found.quotas == ""
    assert access.key_of(bearer(secret)) == found
