"""A service in each of its states: before the first generation, between two, and where there is no room."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from featurestore.quotas.limits import parse_quotas
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish
from tests.support.serving import BOTH_WAYS, is_problem, send_raw, serves, serving


def rows(n: int, item: str = "item-{}", user: str = "ann") -> list[dict[str, Any]]:
    return [{"user_id": user, "item_id": item.format(row % 8), "rating": 3} for row in range(n)]


@BOTH_WAYS
async def test_before_the_first_generation(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, _):
        for path in ("/predict?user_id=u&item_id=i", "/recommend/u", "/popular", "/users/u", "/readyz"):
            is_problem(await client.get(path), 503, "no_generation")
        is_problem(await client.post("/predict", {"user_id": "u", "item_id": "i"}), 503, "no_generation")
        reply = await client.post("/ratings", {"user_id": "u", "item_id": "i", "rating": 3})
        assert reply.json == {"accepted": 1, "generation": None}
        assert (await client.get("/users/u/ratings")).json["total"] == 1
        assert (await client.ask("DELETE", "/ratings/u/i")).status == 200
        assert (await client.get("/generations")).json["live"] == 0
        assert (await client.get("/metrics")).status == 200
        assert (await client.get("/status")).json["generation"] == 0
        await publish(store, await lead(store), n_items=1)
        await serves(client, 1)


async def test_generations_can_be_gone_back_to(
    store: Store, store_settings: StoreSettings, published: Written
) -> None:
    first = published.writer.number
    async with serving(store_settings) as (client, _):
        await serves(client, first)
        lease = await lead(store)
        second = (await publish(store, lease, users=[b"ann"], seed=1)).writer.number
        await serves(client, second)
        listed = (await client.get("/generations")).json["generations"]
        found = [(each["generation"], each["live"]) for each in listed]
        assert found == [(second, True), (first, False)]
        back = await client.post(f"/generations/{first}/activate")
        assert back.status == 200
        assert [back.json[name] for name in ("generation", "held", "served")] == [first, True, True]
        assert (await client.get("/predict?user_id=ann&item_id=item-1")).json["generation"] == first
        forward = (await client.post(f"/generations/{second}/activate")).json
        assert (forward["generation"], forward["held"]) == (second, False)
        is_problem(await client.post("/generations/99/activate"), 404, "unknown_generation")
        for number in ("x", "-1", "1.0", "0"):
            is_problem(await client.post(f"/generations/{number}/activate"), 400, "invalid_parameter")


async def test_forgetting_is_complete_at_once(store_settings: StoreSettings, published: Written) -> None:
    async with serving(store_settings, erase_wait_s=0.1) as (client, _):
        await serves(client, published.writer.number)
        unknown = (await client.get("/predict?user_id=ghost&item_id=item-7")).json
        reply = await client.ask("DELETE", "/users/ann")
        assert (reply.status, reply.json["ratings"], reply.json["archive"]) == (200, 1, "pending")
        assert (await client.get("/predict?user_id=ann&item_id=item-7")).json == unknown
        is_problem(await client.get("/users/ann"), 404, "unknown_user")
        receipt = (await client.get(f"/receipts/{reply.json['receipt']}")).json
        assert receipt["archive"] == "pending"
        for wrong in ("none", f"{'0' * 32}-{int(time.time()) - 3700:x}"):
            is_problem(await client.get(f"/receipts/{wrong}"), 404, "unknown_receipt")


async def test_what_has_no_room_is_refused_whole(
    store: Store, store_settings: StoreSettings, published: Written
) -> None:
    before = await store.stream.lag(1), await store.redis.llen(store.keys.order(1))
    async with serving(replace(store_settings, stream_limit=5)) as (client, _):
        is_problem(await client.post("/ratings", rows(30, user="u")), 429, "stream_full")
        events = [{**row, "type": "view"} for row in rows(200, user="u")]
        for event in events:
            del event["rating"]
        is_problem(await client.post("/events", events), 429, "stream_full")
    async with serving(replace(store_settings, max_items=8)) as (client, _):
        new = {"user_id": "u", "item_id": "one more", "rating": 3}
        is_problem(await client.post("/ratings", new), 422, "too_many_items")
        is_problem(await client.ask("PUT", "/items/one-more", json={}), 422, "too_many_items")
        assert (await client.ask("PUT", "/items/item-0", json={})).status == 200
        is_problem(await client.get("/users/u"), 404, "unknown_user")
    assert (await store.stream.lag(1), await store.redis.llen(store.keys.order(1))) == before


async def test_ratings_items_and_history_are_bounded_and_a_refused_call_changes_nothing(
    store: Store, store_settings: StoreSettings, published: Written
) -> None:
    """A day's share comes back too slowly to count here."""

    async def stored() -> tuple[int, object]:
        return await store.redis.llen(store.keys.order(1)), await store.stream.lag(1)

    async with serving(store_settings, quotas=parse_quotas("off,ratings=100/d,items=10/d,history=90")) as (
        client,
        _,
    ):
        assert (await client.post("/ratings", rows(40))).status == 200
        new = [dict(row, item_id=f"n{at}") for at, row in enumerate(rows(11))]
        for body, quota in ((rows(61), "ratings"), (None, ""), (rows(1, "another"), "items")):
            if body is None:
                assert (await client.post("/ratings", new)).status == 200, (
                    "more than it holds takes a full one"
                )
                continue
            before = await stored()
            reply = await client.post("/ratings", body)
            assert is_problem(reply, 429, "quota_exceeded")
            assert reply.json["quota"] == quota
            assert await stored() == before
        # 1 + 40 + 11 entries are there.
        reply = await client.post("/ratings", [*rows(1, user="bob"), *rows(39)])
        assert is_problem(reply, 422, "too_many_ratings")
        assert (reply.json["field"], reply.json["row"]) == ("user_id", 1)
        assert await stored() == before
        # Of one who has too many, a rating can still be taken back.
        assert (await client.ask("DELETE", "/ratings/ann/item-1")).status == 200


async def test_a_body_that_does_not_come_is_given_up(store_settings: StoreSettings) -> None:
    async with serving(store_settings, body_timeout_s=0.05) as (client, _):
        head = b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: 9\r\n\r\n[{"
        port = int(client.url.rpartition(":")[2])
        assert b"HTTP/1.1 408" in await asyncio.to_thread(send_raw, port, head)


@pytest.mark.parametrize("path", ["/ratings/eve/item-1", "/events/eve/item-1/view"])
async def test_who_is_forgotten_while_a_rating_is_taken_back_is_not_brought_back(
    store: Store,
    store_settings: StoreSettings,
    published: Written,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    async with serving(store_settings) as (client, app):
        await serves(client, published.writer.number)
        await client.post("/events", [{"user_id": "eve", "item_id": "item-1", "type": "view"}])
        await client.post("/ratings", {"user_id": "eve", "item_id": "item-1", "rating": 3})
        users = app[CONTEXT].store.users
        read = users.history

        async def then_forgotten(epoch: int, user_id: bytes) -> Any:
            found = await read(epoch, user_id)
            # By another worker.
            await store.ratings.forget(user_id)
            return found

        monkeypatch.setattr(users, "history", then_forgotten)
        reply = await client.ask("DELETE", path)
        assert is_problem(reply, 404, f"unknown_{path.split('/')[1].removesuffix('s')}")
        monkeypatch.undo()
        assert (await store.users.history(1, b"eve"))[1].entries == 0
        assert (await client.get("/users/eve")).status == 404
