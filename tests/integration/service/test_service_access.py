"""Keys and roles against a running service: every route with every role, rotation, starts, the record of who
operated, and that no key is ever in a log.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore.access import ROLES, StoredKeys, digest_of_secret, new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from service.http.access import LEVELS
from service.openapi import Route
from service.routes import ROUTES
from tests.support.factories import lead, publish, rating
from tests.support.servers import StoreServer
from tests.support.serving import BOTH_WAYS, JSON, Client, Service, client_of, is_problem, serves, serving
from tests.support.small_trainer import Trainer, running
from tests.support.waiting import wait_until, wait_until_async

# What is promised: a key that was removed lets no request in for longer.
ROTATED_WITHIN_S = 2.0
NAMES = {
    "type": "view",
    "user_id": "ann",
    "item_id": "dune",
    "receipt": "none",
    "generation": "1",
    "name": "style.css",
}


@pytest.fixture
async def keys(store: Store) -> dict[str, str]:
    """A key of each role; the store knows them."""
    made: dict[str, str] = {role: new_secret() for role in ROLES}
    for role in ROLES:
        await store.access.add(made[role], f"the-{role}", role)
    return made


@pytest.fixture
async def trainer(store: Store) -> AsyncIterator[Trainer]:
    lease = await lead(store, ttl_ms=600_000)
    await store.items(1).register([b"dune", b"emma"])
    await store.ratings.append([rating("ann", "dune", 5.0)])
    await publish(store, lease, n_items=2, users=[b"ann"])
    async with running(Trainer(store, lease)) as trainer:
        yield trainer


@pytest.fixture
async def client(
    store_settings: StoreSettings, keys: dict[str, str], trainer: Trainer
) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        await serves(client, 1)
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def ask(client: Client, route: Route, headers: dict[str, str]) -> int:
    """Ask `route` as its description says; the status."""
    path = route.path
    for name, value in NAMES.items():
        path = path.replace(f"{{{name}}}", value)
    more: dict[str, Any] = {}
    if route.path == "/predict" and route.method == "GET":
        path += "?user_id=ann&item_id=dune"
    if route.body is not None:
        more["json"] = route.body["content"]["application/json"]["example"]
    return (await client.ask(route.method, path, headers=headers, **more)).status


@BOTH_WAYS
@pytest.mark.parametrize("sent", [None, "unknown", *ROLES])
async def test_every_route_by_every_role(client: Client, keys: dict[str, str], sent: str | None) -> None:
    secret = {**keys, "unknown": new_secret()}.get(sent or "")
    for headers in ({},) if secret is None else (bearer(secret), {"X-API-Key": secret}):
        level = LEVELS[sent] if sent in ROLES else 0
        for route in ROUTES:
            status = await ask(client, route, headers)
            wanted = None if level >= route.level else (401 if level == 0 else 403)
            named = f"{route.method} {route.path} as {sent}: {status}"
            assert status == wanted if wanted else status not in {401, 403}, named
            assert wanted or status in {200, 404, 409}, named


async def test_who_may_only_read_changes_nothing(
    client: Client, keys: dict[str, str], store: Store, trainer: Trainer
) -> None:
    before = await store.stream.lag(1), await store.generations.live()
    for route in ROUTES:
        await ask(client, route, bearer(keys["read"]))
    assert (await store.stream.lag(1), await store.generations.live()) == before
    assert trainer.taken == []
    # The control: who may operate changes all of that with the same calls.
    for route in ROUTES:
        await ask(client, route, bearer(keys["operate"]))
    assert (await store.stream.lag(1), await store.generations.live()) != before
    assert {command.kind for command in trainer.taken} >= {"erase"}


async def test_a_list_that_is_recorded_as_shown_is_a_write(
    client: Client, keys: dict[str, str], store: Store
) -> None:
    """Behind a route of `read`: who may only read gets no list then, and nothing is stored."""
    before = await store.stream.lag(1)
    path, body = "/recommend/ann?n=1", {"n": 1, "impressions": True}
    for role in ("metrics", "read"):
        headers = bearer(keys[role])
        assert is_problem(await client.get(f"{path}&impressions=true", headers=headers), 403, "forbidden")
        assert is_problem(await client.post("/recommend/ann", body, headers=headers), 403, "forbidden")
    for more in ("", "&impressions=false"):
        assert (await client.get(path + more, headers=bearer(keys["read"]))).status == 200
    assert (await client.get(f"{path}&impressions=true", headers=bearer(keys["rate"]))).status == 200

    async def stored() -> bool:
        return await store.stream.lag(1) != before

    await wait_until_async(stored, "the list of the key that may rate is recorded")
    (entry,) = (await client.get("/users/ann/events", headers=bearer(keys["read"]))).json["events"]
    assert entry["type"] == "impression"


@BOTH_WAYS
async def test_refusals_say_what_is_needed(client: Client, keys: dict[str, str]) -> None:
    reply = await client.get("/predict?user_id=ann&item_id=dune")
    assert is_problem(reply, 401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert (await client.get("/livez")).status == 200
    reply = await client.ask("POST", "/train", headers=bearer(keys["rate"]))
    assert is_problem(reply, 403, "forbidden")
    assert "operate" in reply.json["detail"]
    foreign = {**bearer(keys["operate"]), "Origin": "http://evil.example"}
    for method, path in (("GET", "/predict?user_id=ann&item_id=dune"), ("POST", "/train"), ("GET", "/")):
        is_problem(await client.ask(method, path, headers=foreign), 403, "cross_site")
    assert (await client.get("/predict?user_id=ann&item_id=dune", headers=bearer(keys["read"]))).status == 200


@pytest.mark.slow
async def test_a_body_is_not_read_before_the_key(client: Client, keys: dict[str, str]) -> None:
    host, port = client.url.removeprefix("http://").split(":")
    head = f"POST /ratings HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    for more, answer in (("", b"401"), (f"X-API-Key: {keys['rate']}\r\n", b"100")):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}{more}Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n".encode())
        line = await asyncio.wait_for(reader.readline(), 10.0)
        assert line.split()[1] == answer
        if answer == b"401":
            # Neither this body nor a request can follow.
            assert b"Connection: close" in await asyncio.wait_for(reader.read(), 5.0)
        writer.close()


async def test_the_description_tells_of_keys_where_they_are_asked_for(
    client: Client, store_settings: StoreSettings
) -> None:
    described = (await client.get("/openapi.json")).json
    assert set(described["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    assert described["paths"]["/train"]["post"]["security"] == [{"bearer": []}, {"apiKey": []}]
    assert described["paths"]["/livez"]["get"]["security"] == []
    async with serving(store_settings, access="open") as (other, _):
        assert "securitySchemes" not in (await other.get("/openapi.json")).json["components"]


async def test_the_description_in_yaml_is_the_same_and_names_this_version(client: Client) -> None:
    described, asked = (await client.get("/openapi.json")).json, await client.get("/openapi.yaml")
    assert asked.headers["Content-Type"] == "application/yaml; charset=utf-8"
    assert yaml.safe_load(asked.text) == described
    assert described["info"]["version"] == version("foldin")


async def test_a_body_needs_its_content_type(
    store_settings: StoreSettings, trainer: Trainer, store: Store
) -> None:
    rows = b'{"user_id": "u", "item_id": "i", "rating": 3}'
    history = (
        b'{"nb_users": 1, "nb_items": 1, "user_history": [0], "item_history": [0], "rating_history": [3]}'
    )
    async with serving(store_settings) as (client, _):
        port = int(client.url.rpartition(":")[2])
        for path, body in (
            ("/ratings", rows),
            ("/train", history),
            ("/predict", rows),
            ("/recommend", b"{}"),
        ):
            for kind in ("text/plain", "application/octet-stream", "multipart/form-data; boundary=x", None):
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                head += "" if kind is None else f"Content-Type: {kind}\r\n"
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head.encode() + b"\r\n" + body)
                assert (await asyncio.wait_for(reader.readline(), 10.0)).split()[1] == b"415", (path, kind)
                writer.close()
        assert trainer.taken == []
        assert (await store.generations.live()).pending == 0
        # A call without a body needs none.
        assert (await client.ask("POST", "/train")).status == 200


@pytest.mark.slow
async def test_keys_are_rotated_while_workers_run(
    store_settings: StoreSettings, store: Store, keys: dict[str, str], trainer: Trainer, tmp_path: Path
) -> None:
    service = Service(store_settings, tmp_path, workers=3)
    try:
        service.wait_for()
        wait_until(lambda: len(service.worker_pids()) == 3, "three workers run")

        async def statuses(secret: str) -> set[int]:
            """What workers answer to connections of their own; 24 miss one of three once in 17,000."""

            async def one() -> int:
                async with client_of(service.url) as client:
                    path = "/predict?user_id=ann&item_id=dune"
                    return (await client.get(path, headers=bearer(secret))).status

            return set(await asyncio.gather(*(one() for _ in range(24))))

        async def only(secret: str, status: int) -> float:
            began = time.monotonic()

            async def does() -> bool:
                return await statuses(secret) == {status}

            await wait_until_async(does, f"every worker answers {status}")
            return time.monotonic() - began

        await only(keys["read"], 200)
        new = new_secret()
        await store.access.add(new, "new", "read")
        assert await only(new, 200) < ROTATED_WITHIN_S + 1.0
        assert await statuses(keys["read"]) == {200}
        assert await store.access.remove("the-read") == 1
        # The asking itself takes a part of the time that is measured.
        assert await only(keys["read"], 401) < ROTATED_WITHIN_S + 1.0
        assert await statuses(new) == {200}
        for name in ("new", "the-rate", "the-operate"):
            await store.access.remove(name)
        await only(new, 401)
        async with client_of(service.url) as client:
            is_problem(await client.get("/generations"), 401, "unauthorized")
    finally:
        service.end()


async def test_the_last_copy_holds_while_the_store_is_away(own_server: StoreServer, tmp_path: Path) -> None:
    settings = StoreSettings(url=own_server.url, partitions=2)
    store = await Store.open(settings)
    secret = new_secret()
    await store.access.add(secret, "reader", "read")
    await store.close()
    async with serving(settings) as (client, _):
        own_server.kill()
        await asyncio.sleep(1.5)  # three polls that fail
        is_problem(await client.get("/predict?user_id=u&item_id=i"), 401, "unauthorized")
        reply = await client.get("/metrics", headers=bearer(secret))
        assert reply.status == 200
        own_server.start()


STARTS = [
    ("127.0.0.1", {}, False, True),
    ("localhost", {}, False, True),
    ("0.0.0.0", {}, False, False),
    ("0.0.0.0", {"FOLDIN_ACCESS": "open"}, False, True),
    ("0.0.0.0", {}, True, True),
    ("::", {}, False, False),
]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", STARTS, ids=lambda start: "-".join(map(str, start)))
async def test_beyond_loopback_nothing_starts_without_keys_unless_told_so(
    store_settings: StoreSettings, store: Store, tmp_path: Path, start: Any, workers: int
) -> None:
    host, said, key, starts = start
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    if key:
        await store.access.add(new_secret(), "first", "operate")
    service = Service(store_settings, tmp_path, host=host, environment=said, workers=workers)
    try:
        if starts:
            service.wait_for("/livez")
            async with client_of(service.url) as client:
                assert (await client.get("/generations")).status == (401 if key else 200)
            assert ("FOLDIN_ACCESS=open" in service.process.text) == bool(said)
        else:
            assert service.process.wait(60.0) == 2
            last = service.process.text.strip().splitlines()[-1]
            assert "foldin keys add" in last
            assert "FOLDIN_ACCESS=open" in last
    finally:
        service.end()


async def test_open_on_loopback_only_its_own_names_are_answered(
    store_settings: StoreSettings, trainer: Trainer
) -> None:
    async with serving(store_settings) as (client, _):
        await serves(client, 1)
        for path in ("/predict?user_id=ann&item_id=dune", "/generations", "/"):
            assert (await client.get(path)).status == 200
            is_problem(await client.get(path, headers={"Host": "evil.example"}), 403, "cross_site")
    async with serving(store_settings, hosts=("evil.example",)) as (client, _):
        assert (await client.get("/generations", headers={"Host": "evil.example"})).status == 200


async def test_a_first_key_closes_what_was_open(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, _):
        assert (await client.get("/generations")).status == 200
        secret = new_secret()
        await store.access.add(secret, "first", "read")

        async def closed() -> bool:
            return (await client.get("/generations")).status == 401

        await wait_until_async(closed, "keys are asked for")
        assert (await client.get("/generations", headers=bearer(secret))).status == 200


async def test_what_starts_when_all_keys_were_removed_is_closed_too(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    """A worker that crashed and is started again must not open what its siblings keep closed."""
    await store.access.add(new_secret(), "first", "operate")
    assert await store.access.remove("first") == 1
    async with serving(store_settings) as (client, _):
        is_problem(await client.get("/generations"), 401, "unauthorized")
    async with serving(store_settings, access="open") as (client, _):
        assert (await client.get("/generations")).status == 200
    service = Service(store_settings, tmp_path, host="0.0.0.0")
    try:
        service.wait_for("/livez")
        assert "all were removed" in service.process.text
        async with client_of(service.url) as client:
            is_problem(await client.get("/generations"), 401, "unauthorized")
    finally:
        service.end()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_worker_that_starts_on_an_emptied_store_is_as_closed_as_its_siblings(
    own_server: StoreServer, tmp_path: Path, host: str
) -> None:
    settings = StoreSettings(url=own_server.url)
    store = await Store.open(settings, hot=False)
    await store.access.add(new_secret(), "first", "operate")
    service = Service(settings, tmp_path, workers=2, host=host)
    try:
        service.wait_for("/livez")
        await store.redis.execute_command("FLUSHALL")
        before = service.worker_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
            await wait_until_async(lambda: len(service.worker_pids()) == 2, "a worker in its place")
        await wait_until_async(lambda: service.answers("/livez"), "they answer")
        for _ in range(20):
            # Each on a connection of its own, and so to either worker.
            async with client_of(service.url) as client:
                is_problem(await client.get("/generations"), 401, "unauthorized")
        assert not set(before) & set(service.worker_pids())
        secret = new_secret()
        await store.access.add(secret, "second", "read")
        async with client_of(service.url) as client:

            async def let_in() -> bool:
                return (await client.get("/generations", headers=bearer(secret))).status == 200

            await wait_until_async(let_in, "a new key lets in")
    finally:
        service.end()
        await store.close()


async def test_what_operates_is_recorded_and_nothing_else(
    client: Client, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "foldin.audit")
    history = {
        "nb_users": 1,
        "nb_items": 1,
        "user_history": [0],
        "item_history": [0],
        "rating_history": [3],
        "replace": True,
    }
    operator = bearer(keys["operate"])
    trained = await client.post("/train", history, headers=operator)
    refused = await client.post("/train", history)
    forbidden = await client.ask("DELETE", "/users/ann", headers=bearer(keys["rate"]))
    foreign = await client.ask("POST", "/train", headers={**operator, "Origin": "http://evil.example"})
    erased = await client.ask("DELETE", "/users/ann", headers={**operator, "X-Request-ID": "my-own"})
    missing = await client.ask("POST", "/generations/999/activate", headers=operator)
    await client.get("/predict?user_id=ann&item_id=dune", headers=operator)
    await client.post("/ratings", {"user_id": "ann", "item_id": "dune", "rating": 3}, headers=operator)
    body_asked_for = {**bearer(keys["rate"]), "Expect": "100-continue"}
    asked = await client.ask("POST", "/train", data=b"{}", headers=body_asked_for)
    reported = await client.ask("PUT", "/reports/mine", json={"rows": []}, headers=operator)
    dropped = await client.ask("DELETE", "/reports/mine", headers=operator)
    lines = [record.getMessage() for record in caplog.records if record.name == "foldin.audit"]
    lines = [each for each in lines if not each.startswith("keys ")]

    def line(reply: Any, name: str, call: str, what: str) -> str:
        request_id = reply.headers["X-Request-ID"]
        outcome = f"status={reply.status} request_id={request_id} what={what}"
        return f"key={name} call={call} client=127.0.0.1 {outcome}"

    receipt = erased.json["receipt"].partition("-")[0]
    assert lines == [
        line(trained, "the-operate", "POST /train", "replace=true ratings=1"),
        line(refused, "-", "POST /train", "-"),
        line(forbidden, "the-rate", "DELETE /users/{user_id}", "-"),
        line(foreign, "the-operate", "POST /train", "-"),
        line(erased, "the-operate", "DELETE /users/{user_id}", f"receipt={receipt}"),
        line(missing, "the-operate", "POST /generations/{generation}/activate", "generation=999"),
        line(asked, "the-rate", "POST /train", "-"),
        line(reported, "the-operate", "PUT /reports/{name}", "mine"),
        line(dropped, "the-operate", "DELETE /reports/{name}", "mine"),
    ]
    assert [trained.status, refused.status, forbidden.status, foreign.status] == [200, 401, 403, 403]
    assert erased.headers["X-Request-ID"] == "my-own"


async def test_which_keys_changed_is_recorded_by_whatever_they_were_changed(
    store_settings: StoreSettings, store: Store, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "foldin.audit")

    async def recorded(line: str) -> None:
        def told() -> bool:
            return line in [each.getMessage() for each in caplog.records if each.name == "foldin.audit"]

        await wait_until_async(told, line)

    async with serving(store_settings):
        (line,) = [each.getMessage() for each in caplog.records if each.name == "foldin.audit"]
        there = line.removeprefix("keys at the start ").split(",")
        assert sorted(there) == sorted(f"the-{role}:{role}" for role in keys)
        secret = new_secret()
        await store.access.add(secret, "shop", "rate")
        await recorded("keys changed added=shop:rate removed=-")
        await store.access.remove("shop")
        await recorded("keys changed added=- removed=shop:rate")
    assert secret not in caplog.text


@pytest.mark.slow
async def test_what_is_cut_short_is_recorded_too(
    store_settings: StoreSettings, trainer: Trainer, tmp_path: Path
) -> None:
    trainer.hold.clear()
    service = Service(store_settings, tmp_path)
    try:
        service.wait_for()
        async with client_of(service.url) as client:
            asking = asyncio.create_task(client.ask("POST", "/train"))
            await wait_until_async(lambda: trainer.taken, "the trainer is asked")
            # It ends when its grace period does, and with it the call.
            assert await asyncio.to_thread(service.end, signal.SIGTERM) == 0
            await asyncio.gather(asking, return_exceptions=True)
    finally:
        service.end()
    lines = [line for line in service.process.text.splitlines() if "foldin.audit" in line]
    assert [line.partition(" call=")[2] for line in lines] == [
        "POST /train client=127.0.0.1 status=cancelled request_id=- what=refit"
    ]


async def test_the_keys_are_followed_whatever_a_poll_ends_with(
    store_settings: StoreSettings, store: Store, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    polled: list[Exception] = []

    async with serving(store_settings) as (client, app):
        access = app[CONTEXT].store.access
        load = access.load

        async def failing() -> StoredKeys:
            polled.append(RuntimeError("a mistake of this program"))
            raise polled[-1]

        monkeypatch.setattr(access, "load", failing)
        await wait_until_async(lambda: len(polled) >= 2, "a poll after one that failed")
        assert (await client.get("/generations", headers=bearer(keys["read"]))).status == 200
        monkeypatch.setattr(access, "load", load)
        await store.access.remove("the-read")

        async def refused() -> bool:
            return (await client.get("/generations", headers=bearer(keys["read"]))).status == 401

        await wait_until_async(refused, "it follows again")


async def test_no_key_is_ever_in_a_log(
    store_settings: StoreSettings, store: Store, keys: dict[str, str], trainer: Trainer, tmp_path: Path
) -> None:
    unknown = new_secret()
    said = {"FOLDIN_LOG_LEVEL": "DEBUG"}
    service = Service(store_settings, tmp_path, workers=2, environment=said)
    try:
        service.wait_for()
        async with client_of(service.url) as client:
            for secret in (*keys.values(), unknown):
                for headers in (bearer(secret), {"X-API-Key": secret}, {"Authorization": f"Basic {secret}"}):
                    await client.ask("POST", "/train", headers=headers)
                    await client.post("/ratings", b"{", headers={**JSON, **headers})
                    await client.ask("DELETE", "/users/ann", headers=headers)
                await client.get(f"/predict?user_id=ann&item_id=dune&key={secret}")
                await client.get("/livez", headers={"X-Request-ID": "fine", **bearer(f"{secret}\t")})
        service.end(signal.SIGTERM)
        text = service.log.read_text("utf-8")
        assert "foldin.audit" in text
        assert "the-operate" in text
        for secret in (*keys.values(), unknown):
            assert secret not in text
            assert secret[3:] not in text
            assert digest_of_secret(secret) not in text
        assert "fk_" not in text
    finally:
        service.end()
