"""Keys and roles against a running service, and the record of who operated."""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from featurestore.access import ROLES, StoredKeys, is_secret, new_secret
from featurestore.errors import StoreUnavailable
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from service.http.access import LEVELS
from service.openapi import Route
from service.routes import ROUTES
from tests.support.serving import BOTH_WAYS, Client, Service, client_of, is_problem, serving
from tests.support.small_trainer import RATINGS, Trainer, training
from tests.support.waiting import wait_until_async

PAIR = "/predict?user_id=ann&item_id=dune"
NAMES = {"type": "view", "user_id": "ann", "item_id": "dune", "receipt": "none", "name": "style.css"}
NAMES["generation"] = "1"


@pytest.fixture
async def keys(store: Store) -> dict[str, str]:
    made: dict[str, str] = {role: new_secret() for role in ROLES}
    for role in ROLES:
        await store.access.add(made[role], f"the-{role}", role)
    return made


@pytest.fixture
async def trainer(store: Store) -> AsyncIterator[Trainer]:
    async with training(store, [b"dune", b"emma"], RATINGS[:1]) as trainer:
        yield trainer


@pytest.fixture
async def client(
    store_settings: StoreSettings, keys: dict[str, str], trainer: Trainer
) -> AsyncIterator[Client]:
    async with serving(store_settings, live=1) as (client, _):
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def until_status(client: Client, wanted: int, secret: str | None = None) -> None:
    asked = partial(client.get, "/generations", headers={} if secret is None else bearer(secret))
    await wait_until_async(asked, f"the service answers {wanted}", lambda reply: reply.status == wanted)


async def ask(client: Client, route: Route, headers: dict[str, str]) -> int:
    path = route.path
    for name, value in NAMES.items():
        path = path.replace(f"{{{name}}}", value)
    more: dict[str, Any] = {}
    if route.path == "/predict" and route.method == "GET":
        path = PAIR
    if route.body is not None:
        more["json"] = route.body["content"]["application/json"]["example"]
    return (await client.ask(route.method, path, headers=headers, **more)).status


@BOTH_WAYS
async def test_routes_by_role(client: Client, keys: dict[str, str], store: Store, trainer: Trainer) -> None:
    before = await store.stream.lag(1), await store.generations.live()
    for sent in ("none", "unknown", *sorted(ROLES, key=lambda role: LEVELS[role])):
        secret = {**keys, "unknown": new_secret()}.get(sent)
        level = LEVELS[sent] if sent in ROLES else 0
        for number, route in enumerate(ROUTES):
            headers = [bearer(secret), {"X-API-Key": secret}][number % 2] if secret else {}
            status = await ask(client, route, headers)
            wanted = None if level >= route.level else (401 if level == 0 else 403)
            named = f"{route.method} {route.path} as {sent}: {status}"
            assert status == wanted if wanted else status in {200, 404, 409}, named
        # Who may only read changes nothing; who may operate changes all of that with the same calls.
        if level <= LEVELS["read"]:
            assert (await store.stream.lag(1), await store.generations.live()) == before
            assert trainer.taken == []
    assert (await store.stream.lag(1), await store.generations.live()) != before
    assert {command.kind for command in trainer.taken} >= {"erase"}


async def test_refusals_say_what_is_needed(client: Client, keys: dict[str, str]) -> None:
    reply = await client.get(PAIR)
    assert is_problem(reply, 401, "unauthorized")
    assert reply.headers["WWW-Authenticate"] == "Bearer"
    reply = await client.ask("POST", "/train", headers=bearer(keys["rate"]))
    assert is_problem(reply, 403, "forbidden", says="operate")
    foreign = {**bearer(keys["operate"]), "Origin": "http://evil.example"}
    for method, path in (("GET", PAIR), ("POST", "/train"), ("GET", "/")):
        is_problem(await client.ask(method, path, headers=foreign), 403, "cross_site")
    # A list that is recorded as shown is a write, behind a route of `read`.
    path, body = "/recommend/ann?n=1&impressions=true", {"n": 1, "impressions": True}
    for role in ("metrics", "read"):
        headers = bearer(keys[role])
        assert is_problem(await client.get(path, headers=headers), 403, "forbidden")
        assert is_problem(await client.post("/recommend/ann", body, headers=headers), 403, "forbidden")
    assert (await client.get(path, headers=bearer(keys["rate"]))).status == 200
    # The description tells of keys where they are asked for.
    described = (await client.get("/openapi.json")).json
    assert set(described["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    assert described["paths"]["/train"]["post"]["security"] == [{"bearer": []}, {"apiKey": []}]
    assert described["paths"]["/livez"]["get"]["security"] == []
    assert described["info"]["version"] == version("foldin")


async def test_a_body_is_not_read_before_the_key(client: Client, keys: dict[str, str]) -> None:
    head = "POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for more, answer in (("", b"401"), (f"X-API-Key: {keys['rate']}\r\n", b"100")):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(f"{head}{more}Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == answer
        if answer == b"401":
            # Neither this body nor a request can follow.
            assert b"Connection: close" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_keys_are_made_listed_shown_once_and_removed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "foldin.audit")
    async with serving(store.settings) as (client, _), serving(store.settings) as (other, _):
        assert "securitySchemes" not in (await client.get("/openapi.json")).json["components"]
        is_problem(await client.get("/keys", headers={"Host": "evil.example"}), 403, "cross_site")
        for role in ("read", "rate"):
            refused = await client.post("/keys", {"name": "first", "role": role})
            assert is_problem(refused, 409, "last_operate_key", field="role")
        # Nothing was made: no key is asked for. The first one closes what was open.
        assert (await client.get("/keys")).json == {"keys": [], "unreadable": 0}
        owner = (await client.post("/keys", {"name": "owner", "role": "operate"})).json["key"]
        await until_status(other, 401)
        await until_status(client, 401)
        keyed = {"headers": bearer(owner)}
        assert (await client.get("/access")).json == {"role": "none", "keys": True}
        assert (await client.get("/access", **keyed)).json == {"role": "operate", "keys": True}
        secret = (await client.post("/keys", {"name": "shop", "role": "rate"}, **keyed)).json["key"]
        assert is_secret(secret)
        is_problem(await client.post("/keys", {"name": "shop", "role": "read"}, **keyed), 409, "key_exists")
        for wrong in ({"name": "a b", "role": "read"}, {"name": "x", "role": "root"}):
            is_problem(await client.post("/keys", wrong, **keyed), 422, "invalid_body")
        listed = await client.get("/keys", **keyed)
        found = [(each["name"], each["role"]) for each in listed.json["keys"]]
        assert found == [("owner", "operate"), ("shop", "rate")]
        assert secret not in listed.text
        # Each worker lets it in, and no longer when it was removed by one of them.
        for worker in (client, other):
            await until_status(worker, 200, secret)
        assert (await client.ask("DELETE", "/keys/shop", **keyed)).json == {"removed": 1}
        for worker in (client, other):
            await until_status(worker, 401, secret)
        is_problem(await client.ask("DELETE", "/keys/shop", **keyed), 404, "unknown_key")
        # There is a key that operates while there are keys.
        assert (await client.post("/keys", {"name": "shop", "role": "rate"}, **keyed)).status == 200
        refused = await client.ask("DELETE", "/keys/owner", **keyed)
        assert is_problem(refused, 409, "last_operate_key", says="make another key")
        for name in ("shop", "owner"):
            assert (await client.ask("DELETE", f"/keys/{name}", **keyed)).json == {"removed": 1}
        await until_status(client, 401, owner)
    # What starts when all were removed is as closed as what goes on, unless it is told to be open.
    async with serving(store.settings) as (client, _):
        is_problem(await client.get("/generations"), 401, "unauthorized")
    async with serving(store.settings, access="open") as (client, _):
        assert (await client.get("/generations")).status == 200
    told = [each.getMessage() for each in caplog.records if each.name == "foldin.audit"]
    assert "keys changed added=shop:rate removed=-" in told
    assert secret not in caplog.text


async def test_the_keys_are_followed_whatever_a_poll_ends_with_and_the_last_copy_holds(
    store: Store, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    polled: list[Exception] = []
    async with serving(store.settings) as (client, app):

        async def failing() -> StoredKeys:
            polled.append(StoreUnavailable("away") if len(polled) % 2 else RuntimeError("a mistake"))
            raise polled[-1]

        with monkeypatch.context() as patch:
            patch.setattr(app[CONTEXT].store.access, "load", failing)
            await wait_until_async(lambda: len(polled) >= 4, "polls after ones that failed")
            assert (await client.get("/generations", headers=bearer(keys["read"]))).status == 200
            is_problem(await client.get("/generations"), 401, "unauthorized")
        await store.access.remove("the-read")
        await until_status(client, 401, keys["read"])


@pytest.mark.slow
@pytest.mark.parametrize(("said", "key"), [({}, False), ({"FOLDIN_ACCESS": "open"}, False), ({}, True)])
async def test_beyond_loopback_nothing_starts_without_keys_unless_told_so(
    store: Store, tmp_path: Path, said: dict[str, str], key: bool
) -> None:
    if key:
        await store.access.add(new_secret(), "first", "operate")
    service = Service(store.settings, tmp_path, host="0.0.0.0", environment=said)
    try:
        if key or said:
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


async def test_audited_calls(client: Client, keys: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "foldin.audit")
    history: dict[str, Any] = {"nb_users": 1, "nb_items": 1, "replace": True}
    history |= {"user_history": [0], "item_history": [0], "rating_history": [3]}
    operator = bearer(keys["operate"])
    trained = await client.post("/train", history, headers=operator)
    refused = await client.post("/train", history)
    forbidden = await client.ask("DELETE", "/users/ann", headers=bearer(keys["rate"]))
    foreign = await client.ask("POST", "/train", headers={**operator, "Origin": "http://evil.example"})
    erased = await client.ask("DELETE", "/users/ann", headers={**operator, "X-Request-ID": "my-own"})
    missing = await client.ask("POST", "/generations/999/activate", headers=operator)
    await client.get(PAIR, headers=operator)
    await client.post("/ratings", {"user_id": "ann", "item_id": "dune", "rating": 3}, headers=operator)
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
    ]
    assert [trained.status, refused.status, forbidden.status, foreign.status] == [200, 401, 403, 403]
    assert erased.headers["X-Request-ID"] == "my-own"
