"""The catalogue over HTTP: what is put, listed, hidden and deleted, by whichever worker."""

import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from factors import Scale
from featurestore.store import Store
from service.catalogue import known_items
from service.routes import attributes as attributes_routes
from service.routes import catalogue as catalogue_routes
from tests.support.factories import lead, make_model, publish
from tests.support.serving import LINES, Client, is_problem, serves, serving

DUNE = {
    "title": "Dune",
    "categories": ["sf"],
    "attributes": {"year": 1965, "out": "1965-08-01", "tags": ["a"]},
}


async def put(client: Client, item: str, **fields: object) -> None:
    assert (await client.ask("PUT", f"/items/{item}", json=fields)).ok.json


LISTS = (
    *("/recommend/ann?n=100", "/recommend/new?n=100", "/recommend/ann?n=100&order=rating", "/popular?n=100"),
    *("/similar/item-0?n=100", "/similar/item-0?n=100&by=content", "/similar/item-0?n=100&by=both"),
    "/latest?n=100",
)


async def listed(client: Client) -> dict[str, set[str]]:
    found = {}
    for path in LISTS:
        found[path] = {item["item_id"] for item in (await client.get(path)).ok.json["items"]}
    anonymous = await client.post("/recommend", {"ratings": [], "n": 100})
    return {**found, "POST": {item["item_id"] for item in anonymous.json["items"]}}


async def pages_of(client: Client, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(f"{path}{cursor}")).ok.json
        found += page.get("items", page.get("users"))
        cursor = page["next"] and f"&cursor={page['next']}"
        # Else a cursor that leads nowhere would do so for ever.
        assert len(found) < 100
    return found


def ids_of(items: list[dict[str, Any]]) -> list[str]:
    return [each["item_id"] for each in items]


async def test_an_item_is_put_patched_and_deleted(client: Client) -> None:
    reply = await client.ask("PUT", "/items/item-0", json=DUNE)
    shown = {"item_id": "item-0", **DUNE}
    shown["attributes"] = {"year": 1965, "out": "1965-08-01T00:00:00Z", "tags": ["a"]}
    assert (reply.status, reply.json) == (200, shown)
    found = (await client.get("/items/item-0")).json
    assert {name: found[name] for name in shown} == shown
    assert found["ratings"] >= 0
    assert {"mean", "expected", "generation"} <= set(found)
    patch = {"title": "Dune!", "attributes": {"year": None, "seen": True}, "available_until": 4e9}
    reply = await client.ask("PATCH", "/items/item-0", json=patch)
    assert reply.json["attributes"] == {"out": "1965-08-01T00:00:00Z", "tags": ["a"], "seen": True}
    assert (reply.json["title"], reply.json["categories"]) == ("Dune!", ["sf"])
    assert reply.json["available_until"] == "2096-10-02T07:06:40Z"
    assert (await client.ask("DELETE", "/items/item-0")).json == {"deleted": 1}
    for call in (("GET", {}), ("DELETE", {}), ("PATCH", {"json": {"hidden": True}})):
        assert is_problem(await client.ask(call[0], "/items/item-0", **call[1]), 404, "unknown_item")
    for method in ("PATCH", "DELETE"):
        reply = await client.ask(method, "/items/never", **({"json": {}} if method == "PATCH" else {}))
        assert is_problem(reply, 404, "unknown_item")


async def test_what_is_hidden_by_one_worker_is_in_no_list_of_another(client: Client, other: Client) -> None:
    """No wait in between: the version is read with each question."""
    shown = sorted((await listed(other))["/popular?n=100"] - {"item-0"})
    assert len(shown) > 3
    for item in ("item-0", *shown):
        await put(client, item, categories=["alike"])
    before = await listed(other)
    assert set(shown) <= before["/similar/item-0?n=100&by=content"]
    for item in shown[:3]:
        await put(client, item, hidden=True, categories=["alike"])
        for items in (await listed(other)).values():
            assert item not in items
    await client.ask("DELETE", f"/items/{shown[3]}")
    for items in (await listed(other)).values():
        assert not items & set(shown[:4])
    for item in shown[:4]:
        await put(other, item, categories=["alike"])
    assert await listed(client) == before


async def test_an_item_is_shown_in_its_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    then = time.time() + 3600.0
    await put(client, "item-1", available_from=then)
    await put(client, "item-2", available_until=then)
    found = (await listed(client))["/recommend/new?n=100"]
    assert ("item-1" in found, "item-2" in found) == (False, True)
    monkeypatch.setattr("service.call_rules.time", SimpleNamespace(time=lambda: then + 1.0))
    found = (await listed(client))["/recommend/new?n=100"]
    assert ("item-1" in found, "item-2" in found) == (True, False)


async def test_many_items_are_all_valid_or_none_is_stored(client: Client, store: Store) -> None:
    rows = [{"item_id": n, "title": f"T{n}", "attributes": {"year": 1900 + n}} for n in range(30)]
    assert (await client.post("/items", rows)).json == {"accepted": 30}
    lines = b"\n".join(json.dumps({**row, "hidden": True}).encode() for row in rows)
    assert (await client.post("/items", lines, headers=LINES)).json == {"accepted": 30}
    page = (await client.get("/items?n=100")).json
    assert (page["total"], len(page["items"]), page["next"]) == (30, 30, None)
    assert all(item["hidden"] for item in page["items"])
    version = await store.catalogue.version()
    for row, field in (
        ({"item_id": "x", "attributes": {"year": "long ago"}}, "attributes.year"),
        ({"item_id": "x", "hiden": True}, "hiden"),
        ({"item_id": ""}, "item_id"),
        ({"item_id": "x", "available_from": "soon"}, "available_from"),
        ({"item_id": "x", "available_from": 5, "available_until": 4}, "available_until"),
        ({"item_id": "x", "categories": [""]}, "categories"),
        ({"item_id": "x", "title": "x" * 1025}, "title"),
        ({"item_id": "x", "attributes": {"first": {"a": 1}}}, "attributes.first"),
        ({"item_id": "x", "attributes": {f"a{n}": n for n in range(65)}}, "attributes"),
        ({"item_id": "x", "attributes": {"text": "x" * 20_000}}, None),
    ):
        reply = await client.post("/items", [{"item_id": "fine", "attributes": {"fresh": 1}}, row])
        assert is_problem(reply, 422, "invalid_body", row=1, field=field)
    assert is_problem(await client.post("/items", [{"item_id": "a"}] * 10_001), 422, "too_many_rows")
    assert await store.catalogue.version() == version
    assert await store.catalogue.schema.types("items") == {"year": "number"}
    assert (await store.items(1).rows([b"fine", b"x"])) == [None, None]


async def test_a_type_is_held_and_told(client: Client) -> None:
    told = {"items": {"released": "time"}, "users": {"age": "number"}}
    assert (await client.ask("PUT", "/schema", json=told)).json == told | {"context": {}}
    await put(client, "item-0", attributes={"released": 0, "year": 1965})
    assert (await client.get("/items/item-0")).json["attributes"]["released"] == "1970-01-01T00:00:00Z"
    assert (await client.get("/schema")).json["items"] == {"released": "time", "year": "number"}
    reply = await client.ask("PUT", "/items/item-0", json={"attributes": {"year": "1965"}})
    said = "attributes.year must be a finite number, not this text: that is its type"
    assert is_problem(reply, 422, "invalid_body", detail=said)
    schema = (await client.get("/schema")).json
    for wrong, field in (
        ({"items": {"year": "text"}}, "items.year"),
        ({"items": {"year": "number", "title": "words"}}, "items.title"),
        # Right for items, wrong for users: nothing of it is held.
        ({"items": {"price": "number"}, "users": {"age": "text"}}, "users.age"),
        ({"users": []}, "users"),
        ({"context": {"day": {"kind": "number"}, "mood": {"kind": "text"}}}, "context.mood.kind"),
        ({"context": {"day": {"kind": "category", "categories": ["a", 1]}}}, "context.day.categories"),
    ):
        assert is_problem(await client.ask("PUT", "/schema", json=wrong), 422, "invalid_body", field=field)
    assert (await client.get("/schema")).json == schema


async def test_a_wrong_type_is_deleted_and_another_told(client: Client, other: Client, store: Store) -> None:
    await put(client, "item-0", attributes={"year": "1965", "tags": ["a"]})
    assert (await client.post("/users", [{"user_id": "ann", "attributes": {"year": "x"}}])).status == 200
    old = {"filter": {"must": [{"key": "year", "match": {"value": "1965"}}]}}
    assert (await other.post("/popular", old)).status == 200
    await client.ask("PUT", "/scenarios/old", json=old)
    assert is_problem(await client.ask("DELETE", "/schema/items/year"), 409, "attribute_in_use")
    await client.ask("DELETE", "/scenarios/old")
    # One that was cut off: no value is written, until it is done again.
    assert await store.catalogue.leave("items", "year")
    assert await store.catalogue.leave("items", "tags")
    assert (await client.ask("PATCH", "/items/item-0", json={"hidden": False})).status == 200
    late = await client.ask("PUT", "/items/item-1", json={"attributes": {"year": 1966}})
    assert is_problem(late, 409, "attribute_in_use", says="DELETE /schema/items/year")
    schema = await client.ask("DELETE", "/schema/items/year")
    assert (schema.json["items"], schema.json["users"]) == ({}, {"year": "text"})
    await client.ask("DELETE", "/schema/items/tags")
    assert "attributes" not in (await client.get("/items/item-0")).json
    await put(client, "item-0", attributes={"year": 1965})
    assert is_problem(await other.post("/popular", old), 422, "invalid_rule")
    later = {"must": [{"key": "year", "range": {"gt": 1900}}]}
    assert (await other.post("/latest", {"filter": later})).json["items"][0]["item_id"] == "item-0"
    assert (await client.ask("DELETE", "/schema/users/year")).json["users"] == {}
    assert is_problem(await client.get("/users/ann/attributes"), 404, "unknown_user")


async def test_items_are_listed_found_and_exported(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_routes, "_EXPORTED_AT_ONCE", 7)
    rows: list[dict[str, object]] = [
        {"item_id": f"i/{n:02}", "title": f"{'Star' if n % 2 else 'Moon'} {n}"} for n in range(20)
    ]
    dated: dict[str, object] = {"item_id": "z", "attributes": {"out": "2001-01-01T00:00:00Z"}}
    await client.post("/items", [*rows, {"item_id": "z", "attributes": {"out": "2001-01-01"}}])
    assert await pages_of(client, "/items?n=6&prefix=i%2F") == rows
    stars = (await client.get("/items?by=title&prefix=sTAR")).json["items"]
    assert {item["item_id"] for item in stars} == {row["item_id"] for row in rows[1::2]}
    for query in ("cursor=abc", "cursor=%C3%A9", "by=year", "n=0", "n=1001", "ids=[1]", "ids=a"):
        assert is_problem(await client.get(f"/items?{query}"), 400, "invalid_parameter")
    page = (await client.get(f"/items?ids={quote(json.dumps(['z', 'unknown', 'i/01', 'z']))}")).json
    assert [each["item_id"] for each in page["items"]] == ["z", "i/01"]
    exported = await client.get("/export/items")
    assert exported.headers["Content-Type"] == "application/x-ndjson"
    shown = [{**row, "hidden": False} for row in (*rows, dated)]
    assert [json.loads(line) for line in exported.text.splitlines()] == shown
    assert (await client.ask("HEAD", "/export/items")).status == 200
    # Copied over a catalogue in which an item was hidden since, it shows that one again.
    await client.ask("PATCH", "/items/z", json={"hidden": True})
    await client.post("/items", exported.text.encode(), headers=LINES)
    assert (await client.get("/export/items")).text == exported.text


async def test_items_that_ratings_or_events_alone_name_are_listed(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`of=all`, by whichever worker: each once, in the order of ids, without what is deleted."""
    await put(client, "item-3", title="Dune", hidden=True)
    await put(client, "a", title="first")
    # One that has just come, by a worker that has met it, and one that no one has rated.
    rated = {"user_id": "bob", "item_id": "item-31", "rating": 3}
    assert (await client.post("/ratings", rated)).status == 200
    event = {"user_id": "bob", "item_id": "seen", "type": "view"}
    assert (await client.post("/events", event)).status == 200
    everything = ["a", *(f"item-{n}" for n in (0, 1, 2, 3, 31, 4, 5, 6, 7)), "seen"]
    for n in (1, 3, 100):
        found = await pages_of(other, f"/items?of=all&n={n}")
        assert ids_of(found) == everything
        begin = await pages_of(other, f"/items?of=all&prefix=item-3&n={n}")
        assert ids_of(begin) == ["item-3", "item-31"]
        assert ids_of(await pages_of(other, f"/items?prefix=item-3&n={n}")) == ["item-3"]
    shown = {each["item_id"]: each for each in found}
    assert (shown["item-3"]["title"], shown["item-3"]["hidden"]) == ("Dune", True)
    assert shown["seen"] == {"item_id": "seen", "ratings": 0}
    rated = (await other.get("/items/item-0")).json
    assert (rated["ratings"], rated["mean"]) == (shown["item-0"]["ratings"], shown["item-0"]["mean"])
    ids = quote(json.dumps(["item-31", "never", "a"]))
    named = (await other.get(f"/items?of=all&ids={ids}")).json
    assert (ids_of(named["items"]), named["total"]) == (["item-31", "a"], 2)
    assert (await other.get("/items?of=all&n=1")).json["total"] == len(everything)
    for query in ("of=every", "of=all&by=title", "of=all&cursor=abc"):
        assert is_problem(await client.get(f"/items?{query}"), 400, "invalid_parameter")
    # Where many together are deleted a page is short; the next one goes on behind them.
    monkeypatch.setattr(known_items, "_MOST_READS", 1)
    for item in ("a", "item-0", "item-1", "item-31"):
        await client.ask("DELETE", f"/items/{item}")
        everything.remove(item)
    assert ids_of(await pages_of(other, "/items?of=all&n=2")) == everything


async def test_what_an_item_is_expected_to_get_is_told(store: Store) -> None:
    """GET /items/{item_id}: what an average user would give, and each step of the scale by an unknown one."""
    lease = await lead(store)
    await store.items(1).register([b"rated", b"unrated"])
    await publish(store, lease, n_items=1)
    async with serving(store.settings, live=1) as (client, _):
        reply = await client.get("/items/rated?distribution=true")
        assert is_problem(reply, 400, "invalid_parameter", field="distribution")
        steps = make_model(scale=Scale(1.0, 5.0, 1.0))
        await serves(client, (await publish(store, lease, n_items=1, model=steps)).writer.number)
        for item in ("rated", "unrated"):
            found = (await client.get(f"/items/{item}?distribution=true")).ok.json
            chances = np.array(found["distribution"])
            assert float(chances @ [1, 2, 3, 4, 5]) == pytest.approx(found["expected"]["rating"], abs=0.05)
            asked = await client.get(f"/predict?user_id=new&item_id={item}&distribution=true")
            assert asked.json["distribution"] == found["distribution"]
            plain = (await client.get(f"/items/{item}")).ok.json
            assert "distribution" not in plain
            assert ("average" in plain) == (item == "rated")
        average = (await client.get("/items/rated")).json["average"]
        assert 1.0 <= average["low"] < average["rating"] < average["high"] <= 5.0
        # By which /popular ranks it.
        assert (await client.get("/popular")).json["items"][0]["score"] == average["low"]


async def test_attributes_of_a_user_go_with_the_user(client: Client, store: Store) -> None:
    path = "/users/ann/attributes"
    assert is_problem(await client.get(path), 404, "unknown_user")
    reply = await client.ask("PUT", path, json={"age": 30, "since": "2020-01-01", "likes": ["tea"]})
    assert reply.json["attributes"] == {"age": 30, "since": "2020-01-01T00:00:00Z", "likes": ["tea"]}
    reply = await client.ask("PATCH", path, json={"age": 31, "likes": None})
    assert reply.json == (await client.get(path)).json
    assert reply.json["attributes"] == {"age": 31, "since": "2020-01-01T00:00:00Z"}
    assert is_problem(await client.ask("PATCH", path, json={"age": "old"}), 422, "invalid_body", field="age")
    assert is_problem(await client.ask("PUT", path, json={"t": "x" * 20_000}), 422, "invalid_body")
    assert is_problem(await client.ask("PUT", path, json=[1]), 422, "invalid_body")
    assert (await client.ask("DELETE", path)).json == {"deleted": 1}
    assert is_problem(await client.ask("DELETE", path), 404, "unknown_user")
    await client.ask("PUT", path, json={"age": 32})
    assert (await client.ask("DELETE", "/users/ann")).status == 200
    assert is_problem(await client.get(path), 404, "unknown_user")
    assert not await store.redis.exists(store.keys.attributes(b"ann"))


async def test_attributes_of_many_users_are_stored_by_one_call_listed_and_exported(
    client: Client, other: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad row refuses all of them, with its number; nothing of such a call is kept."""
    monkeypatch.setattr(attributes_routes, "_EXPORTED_AT_ONCE", 7)
    assert (await client.get("/attributes")).json == {"users": [], "next": None}
    names = ["attributes", "é/?#", *(f"u{n}" for n in range(30))]
    rows: list[dict[str, object]] = [
        {"user_id": name, "attributes": {"age": n, "since": "2020-01-31"}} for n, name in enumerate(names)
    ]
    for position, row, field in (
        (3, {"user_id": "u3", "attributes": {"age": "old"}}, "attributes.age"),
        (5, {"user_id": "u5", "attributes": {"age": 1, "note": "x" * 20_000}}, None),
        (7, {"user_id": "", "attributes": {}}, "user_id"),
        (9, {"user_id": "u9", "age": 1}, "age"),
    ):
        reply = await client.post("/users", [*rows[:position], row, *rows[position + 1 : 12]])
        assert is_problem(reply, 422, "invalid_body", row=position, field=field)
    too_many = [{"user_id": str(n), "attributes": {}} for n in range(10_001)]
    assert is_problem(await client.post("/users", too_many), 422, "too_many_rows")
    assert (await client.get("/schema")).json["users"] == {}
    # Of a user who stands twice the last counts, and what was said before is replaced.
    await client.ask("PUT", "/users/u1/attributes", json={"city": "Oslo"})
    assert (await client.post("/users", [rows[0], *rows])).json == {"accepted": 33}
    found = await pages_of(other, "/attributes?n=5")
    assert {str(row["user_id"]) for row in found} == set(names)
    assert {"user_id": "u1", "attributes": {"age": 3, "since": "2020-01-31T00:00:00Z"}} in found
    for query in ("cursor=abc", "n=0", "n=1001"):
        assert is_problem(await client.get(f"/attributes?{query}"), 400, "invalid_parameter")
    exported = await client.get("/export/users")
    assert exported.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line) for line in exported.text.splitlines()] == found
