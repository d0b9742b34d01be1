"""Events of types other than ratings, from the call to the history, the stream and the archive."""

import json
import math

import numpy as np

from featurestore import codecs
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written, lead, rating
from tests.support.serving import LINES, Client, serving
from trainer.archive.events import make_table, type_codes

VIEW, LIKE, PURCHASE = 1, 3, 4


def event(user: str, item: str, kind: str, **more: object) -> dict[str, object]:
    return {"user_id": user, "item_id": item, "type": kind, **more}


async def events_of(client: Client, user: str) -> list[tuple[str, str, float]]:
    found = (await client.get(f"/users/{user}/events")).json
    assert found["total"] == len(found["events"])
    return [(each["item_id"], each["type"], each["value"]) for each in found["events"]]


async def test_events_are_beside_the_ratings(
    published: Written, store: Store, store_settings: StoreSettings
) -> None:
    async with serving(store_settings) as (client, _):
        before = (await client.get("/users/ann")).json
        body = [
            event("ann", "item-0", "view"),
            event("ann", "item-1", "purchase", value=2, timestamp=5.0),
            event("ann", "item-2", "rating", value=4),
            event("ann", "item-0", "view", value=3),
            event("ann", "new", "like"),
        ]
        assert (await client.post("/events", body)).json["accepted"] == 5
        latest = [("new", "like", 1.0), ("item-0", "view", 3.0), ("item-1", "purchase", 2.0)]
        assert await events_of(client, "ann") == latest
        page = (await client.get("/users/ann/events?limit=1&offset=2")).json
        assert (page["total"], page["events"][0]["timestamp"]) == (3, 5.0)
        rated = (await client.get("/users/ann/ratings")).json
        assert [each["item_id"] for each in rated["ratings"]] == ["item-2", "item-0"]
        user = (await client.get("/users/ann")).json
        assert (user["ratings"], user["mean"]) == (before["ratings"] + 1, 4.5)
        assert user["events"] == before["events"] + 5
        # The record of the ratings is what a user with the ratings alone has.
        await store.ratings.append([rating("bob", "item-0", 5.0), rating("bob", "item-2", 4.0)])
        pair = "&item_id=item-5"
        ann, bob = [(await client.get(f"/predict?user_id={each}{pair}")).json for each in ("ann", "bob")]
        assert abs(ann["rating"] - bob["rating"]) < 1e-3
        # One is taken back, and the others stay.
        assert (await client.ask("DELETE", "/events/ann/item-0/view")).json["deleted"] == 1
        again = await client.ask("DELETE", "/events/ann/item-0/view")
        assert (again.status, again.json["code"]) == (404, "unknown_event")
        for path in ("/events/ann/item-0/sneeze", "/events/ann/nothing/view", "/events/zoe/item-0/view"):
            assert (await client.ask("DELETE", path)).json["code"] == "unknown_event"
        assert await events_of(client, "ann") == [latest[0], latest[2]]
        assert (await client.ask("DELETE", "/ratings/ann/item-2")).status == 200
        assert await events_of(client, "ann") == [latest[0], latest[2]]
        assert (await client.ask("DELETE", "/users/ann")).status == 200
        assert (await client.get("/users/ann/events")).status == 404


async def test_the_stream_and_the_archive_have_the_types(store: Store) -> None:
    lines = [rating("eve", "item-0", 2.0), rating("eve", "item-1", 3.0)]
    await store.ratings.append(lines)
    async with serving(store.settings) as (client, _):
        body = "\n".join(json.dumps(event("eve", "item-1", kind)) for kind in ("view", "purchase"))
        assert (await client.post("/events", body.encode(), headers=LINES)).json["accepted"] == 2
    events = await store.stream.read(1, await lead(store), 100, 0)
    own = np.array([user_id == b"eve" for user_id in events.user_id])
    codes = codecs.type_codes_of(events.item_row[own]).tolist()
    assert codes == [0, 0, VIEW, PURCHASE]
    assert events.n[own].tolist() == [1, 2, 3, 4]
    table = make_table(events, store.items(1).ids)
    assert type_codes(table)[own].tolist() == codes
    assert np.array(table["item_id"].to_pylist())[own].tolist() == ["item-0", *["item-1"] * 3]
    n, history = await store.users.history(1, b"eve")
    assert (n, len(history), history.feedback.type_code.tolist()) == (4, 2, [VIEW, PURCHASE])


async def test_one_bad_event_refuses_all(published: Written, store_settings: StoreSettings) -> None:
    good = event("zoe", "item-0", "view")
    cases = [
        (event("zoe", "item-0", "sneeze"), "invalid_type", "type"),
        (event("zoe", "item-0", "rating"), "invalid_body", "value"),
        (event("zoe", "item-0", "rating", value=9), "invalid_body", "value"),
        (event("zoe", "item-0", "view", timestamp=1e18), "invalid_body", "timestamp"),
        (event("zoe", "", "view"), "invalid_body", "item_id"),
        (event("zoe", "item-0", "view", recommendation_id="x" * 500), "invalid_body", "recommendation_id"),
        ({"user_id": "zoe", "item_id": "item-0"}, "invalid_body", "type"),
    ]
    async with serving(store_settings) as (client, _):
        for bad, code, field in cases:
            found = (await client.post("/events", [good, bad])).json
            assert (found["status"], found["code"], found["field"], found["row"]) == (422, code, field, 1)
        one = (await client.post("/events", cases[0][0])).json
        assert "row" not in one
        assert "purchase" in one["detail"]
        assert (await client.get("/users/zoe/events")).status == 404
        assert (await client.post("/events", [good] * 10_001)).json["code"] == "too_many_rows"


async def test_types_are_put_and_retired(published: Written, store_settings: StoreSettings) -> None:
    async with serving(store_settings) as (client, _), serving(store_settings) as (other, _):
        types = (await client.get("/event-types")).json["types"]
        assert [each["code"] for each in types] == [1, 2, 3, 4, 5, 6, 7]
        assert (await client.post("/events", event("ann", "item-3", "skip"))).status == 200
        wanted = [
            {"name": "view", "meaning": "positive", "weight": 0.25},
            {"name": "share", "meaning": "positive", "consumed": True},
        ]
        put = await client.ask("PUT", "/event-types", json={"types": wanted})
        named = {each["name"]: each for each in put.json["types"]}
        assert (named["share"]["code"], named["view"]["code"], named["view"]["weight"]) == (8, 1, 0.25)
        assert [name for name, each in named.items() if not each["retired"]] == ["view", "share"]
        assert (await client.post("/events", event("ann", "item-3", "share"))).status == 200
        assert (await client.post("/events", event("ann", "item-3", "skip"))).json["code"] == "invalid_type"
        assert {kind for _, kind, _ in await events_of(client, "ann")} == {"skip", "share"}
        # A worker that has not asked yet does so now.
        assert (await other.get("/event-types")).json["types"] == put.json["types"]
        bad = [
            [{"name": "skip", "meaning": "positive"}],
            [{"name": "rating", "meaning": "positive"}],
            [wanted[0], wanted[0]],
            [{"name": f"t{k}", "meaning": "positive"} for k in range(23)],
        ]
        for types in bad:
            refused = await client.ask("PUT", "/event-types", json={"types": types})
            assert (refused.status, refused.json["code"]) == (422, "invalid_type")
        for types in (
            [{"name": "No", "meaning": "positive"}],
            [{"name": "view\n", "meaning": "positive"}],
            [{"name": "a", "meaning": "maybe"}],
        ):
            assert (await client.ask("PUT", "/event-types", json={"types": types})).status == 422
        assert (await client.get("/event-types")).json["types"] == put.json["types"]


async def test_what_was_stored_can_be_read(published: Written, store: Store) -> None:
    damaged = codecs.pack_entry((31 << codecs.ROW_BITS) | 1, 1.0, math.nan)
    await store.redis.set(store.keys.history(1, b"ann"), damaged)
    async with serving(store.settings) as (client, _):
        assert (await client.get("/users/ann/events")).json["code"] == "data_damaged"
    await store.redis.set(store.keys.event_types, b'{"format":1,"types":[{"name":"a"}]}')
    async with serving(store.settings) as (client, _):
        assert (await client.post("/events", event("bob", "item-0", "view"))).json["code"] == "data_damaged"
        put = await client.ask("PUT", "/event-types", json={"types": [{"name": "a", "meaning": "positive"}]})
        assert (put.status, put.json["code"]) == (503, "data_damaged")
