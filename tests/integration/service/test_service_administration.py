"""What operators see and change: keys, settings, what the caller may do; users found and ratings exported."""

import asyncio
import json

import pytest

from featurestore.access import StoredKeys, is_secret, new_secret
from featurestore.errors import LastOperateKey
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.points import Point
from service.context import CONTEXT
from service.routes.operations.administration import in_force
from service.settings import ServiceSettings
from service.telemetry.reporter import Reporter
from tests.support.factories import Written
from tests.support.serving import LINES, Client, is_problem, serving
from tests.support.waiting import wait_until_async


async def test_a_key_is_made_listed_shown_once_and_removed(
    store_settings: StoreSettings, store: Store
) -> None:
    owner = new_secret()
    await store.access.add(owner, "owner", "operate")
    async with serving(store_settings) as (client, _):
        keyed = {"headers": {"Authorization": f"Bearer {owner}"}}
        assert (await client.get("/access")).json == {"role": "none", "keys": True}
        assert (await client.get("/access", **keyed)).json == {"role": "operate", "keys": True}
        reply = await client.post("/keys", {"name": "shop", "role": "rate"}, **keyed)
        secret = reply.json["key"]
        assert is_secret(secret)
        is_problem(await client.post("/keys", {"name": "shop", "role": "read"}, **keyed), 409, "key_exists")
        is_problem(await client.post("/keys", {"name": "a b", "role": "read"}, **keyed), 422, "invalid_body")
        is_problem(await client.post("/keys", {"name": "x", "role": "root"}, **keyed), 422, "invalid_body")
        listed = await client.get("/keys", **keyed)
        assert [(each["name"], each["role"]) for each in listed.json["keys"]] == [
            ("owner", "operate"),
            ("shop", "rate"),
        ]
        assert secret not in listed.text

        async def may(role: str) -> bool:
            return bool((await client.get("/access", headers={"X-API-Key": secret})).json["role"] == role)

        await wait_until_async(lambda: may("rate"), "the key let in")
        assert (await client.ask("DELETE", "/keys/shop", **keyed)).json == {"removed": 1}
        await wait_until_async(lambda: may("none"), "the key let in no longer")
        is_problem(await client.ask("DELETE", "/keys/shop", **keyed), 404, "unknown_key")


async def test_there_is_a_key_that_operates_while_there_are_keys(store_settings: StoreSettings) -> None:
    async with serving(store_settings) as (client, _):
        for role in ("read", "rate"):
            refused = await client.post("/keys", {"name": "first", "role": role})
            assert is_problem(refused, 409, "last_operate_key")
            assert refused.json["field"] == "role"
        # Nothing was made: no key is asked for.
        assert (await client.get("/keys")).json == {"keys": [], "unreadable": 0}
        secret = (await client.post("/keys", {"name": "boss", "role": "operate"})).json["key"]
        keyed = {"headers": {"X-API-Key": secret}}

        async def asks() -> bool:
            return (await client.get("/keys")).status == 401

        await wait_until_async(asks, "the key asked for")
        assert (await client.post("/keys", {"name": "shop", "role": "rate"}, **keyed)).status == 200
        refused = await client.ask("DELETE", "/keys/boss", **keyed)
        assert is_problem(refused, 409, "last_operate_key")
        assert "make another key" in refused.json["detail"]
        assert is_problem(await client.ask("DELETE", "/keys/unknown", **keyed), 404, "unknown_key")
        # With another one it may go.
        assert (await client.post("/keys", {"name": "next", "role": "operate"}, **keyed)).status == 200
        assert (await client.ask("DELETE", "/keys/next", **keyed)).json == {"removed": 1}
        assert (await client.ask("DELETE", "/keys/shop", **keyed)).json == {"removed": 1}
        # And so may the very last, which closes the door.
        assert (await client.ask("DELETE", "/keys/boss", **keyed)).json == {"removed": 1}

        async def closed() -> bool:
            return (await client.get("/keys", **keyed)).status == 401

        await wait_until_async(closed, "no key let in")


async def test_two_removals_at_a_time_leave_a_key_that_operates(
    store_settings: StoreSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {name: new_secret() for name in ("one", "two", "reader")}
    async with serving(store_settings) as (client, app):
        access = app[CONTEXT].store.access
        load = access.load
        for _ in range(5):
            for name, secret in secrets.items():
                await store.access.add(secret, name, "read" if name == "reader" else "operate")
            both, looked = asyncio.Event(), list[int]()

            async def load_at_once(both: asyncio.Event = both, looked: list[int] = looked) -> StoredKeys:
                found = await load()
                looked.append(1)
                if len(looked) == 2:
                    both.set()
                # Neither goes on before the other has looked, too.
                await both.wait()
                return found

            monkeypatch.setattr(access, "load", load_at_once)
            removals = (access.remove(name, operable=True) for name in ("one", "two"))
            done = await asyncio.gather(*removals, return_exceptions=True)
            monkeypatch.setattr(access, "load", load)
            assert sorted(map(repr, done), key=len)[0] == "1"
            assert sum(isinstance(each, LastOperateKey) for each in done) == 1
            left = {key.name: key.role for key in (await store.access.load()).values() if key is not None}
            assert sorted(left.values()) == ["operate", "read"]
        # By a call, too.
        (last,) = left.keys() - {"reader"}
        keyed = {"headers": {"X-API-Key": secrets[last]}}

        async def known() -> bool:
            return (await client.get("/keys", **keyed)).status == 200

        await wait_until_async(known, "the key let in")
        is_problem(await client.ask("DELETE", f"/keys/{last}", **keyed), 409, "last_operate_key")


async def test_settings_are_told_without_secrets(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, app):
        found = {each["name"]: each["value"] for each in (await client.get("/settings")).json["settings"]}
        assert found["FOLDIN_NAMESPACE"] == store_settings.namespace
        assert found["FOLDIN_PORT"] == str(app[CONTEXT].settings.port)
    hidden = in_force(ServiceSettings(store=StoreSettings(url="redis://me:hush@store:6379")))
    assert "hush" not in str(hidden)
    assert {each.name: each.value for each in hidden}["FOLDIN_REDIS_URL"] == "redis://me:***@store:6379"


async def test_users_are_found_by_how_ids_begin(store_settings: StoreSettings, published: Written) -> None:
    async with serving(store_settings) as (client, _):
        ids = [*(f"u*{n}" for n in range(30)), "ann", "anna", "an\0na", "änn"]
        rows = [{"user_id": user_id, "item_id": "item-1", "rating": 3} for user_id in ids]
        assert (await client.post("/ratings", rows)).status == 200
        assert await all_users(client, "prefix=an") == {"an\0na", "ann", "anna"}
        # The very id comes first; what would be a pattern is a text.
        assert (await client.get("/users?prefix=ann")).json["users"][0] == "ann"
        assert await all_users(client, "prefix=u*&n=1000") == {f"u*{n}" for n in range(30)}
        assert await all_users(client, "prefix=%3F") == set()
        assert await all_users(client, "prefix=%C3%A4") == {"änn"}
        is_problem(await client.get("/users?cursor=x"), 400, "invalid_parameter")
        assert set(ids) <= await all_users(client, "n=1")


async def all_users(client: Client, query: str) -> set[str]:
    """Go from page to page: a store with the users of others, too, has some on each."""
    seen: set[str] = set()
    path = f"/users?{query}"
    while path:
        page = (await client.get(path)).json
        seen.update(page["users"])
        path = f"/users?{query}&cursor={page['next']}" if page["next"] else ""
    return seen


async def test_what_is_exported_can_be_stored_again(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings) as (client, _):
        rows = [
            {"user_id": f"u{n % 50}", "item_id": f"item-{n % 7}", "rating": 1 + n % 5, "timestamp": 1e9 + n}
            for n in range(300)
        ]
        assert (await client.post("/ratings", rows)).status == 200
        reply = await client.get("/export/ratings")
        # Those of `published` have other users.
        lines = [line for line in map(json.loads, reply.text.splitlines()) if line["user_id"][0] == "u"]
        kept = {(row["user_id"], row["item_id"]): row for row in rows}
        assert len(lines) == len(kept)
        assert all(kept[line["user_id"], line["item_id"]] == line for line in lines)
        assert (await client.ask("POST", "/ratings", data=reply.text.encode(), headers=LINES)).status == 200
        again = await client.get("/export/ratings")
        assert sorted(again.text.splitlines()) == sorted(reply.text.splitlines())


async def test_an_export_of_nothing_is_empty(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, _):
        reply = await client.get("/export/ratings")
        assert (reply.status, reply.text) == (200, "")


async def test_a_worker_tells_what_it_did_since_it_told_before(
    store_settings: StoreSettings, store: Store, published: Written
) -> None:
    async with serving(store_settings) as (client, app):
        reporter = Reporter(app[CONTEXT], "here")
        for n in range(5):
            await client.post("/ratings", {"user_id": "ann", "item_id": f"item-{n}", "rating": 1 + n})
        await reporter.tell()
        await client.get("/predict?user_id=ann&item_id=item-1")
        await reporter.tell()
        first, second = await store.telemetry.read(60)
        assert (first.requests, first.ratings, first.errors, second.requests) == (5, 5, 5, 1)
        assert first.squared_error > 0
        # The first rating finds ann unknown: both are told the same.
        assert first.baseline > 0
        assert sum(first.latency) == 5
        assert first.lag >= 0
        assert first.store_bytes > 0
        history = (await client.get("/history?seconds=60")).json
        assert history["requests_per_s"][-1] == 6 / history["step_s"]
        assert [each["host"] for each in history["replicas"]] == ["here"]
        is_problem(await client.get("/history?seconds=1"), 400, "invalid_parameter")


async def test_points_are_bounded_and_what_cannot_be_read_is_a_gap(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.telemetry.points.MOST_POINTS", 100)
    monkeypatch.setattr("featurestore.telemetry.points.READ_AT_ONCE", 7)
    await asyncio.gather(*(store.telemetry.add(Point("worker 0", "a", n, 10.0)) for n in range(400)))
    await store.redis.xadd(store.keys.telemetry, {"p": b"\xc1"})
    await store.redis.xadd(store.keys.telemetry, {"other": b""})
    found = await store.telemetry.read(60)
    # The store trims by whole nodes.
    assert 90 <= len(found) < 300
