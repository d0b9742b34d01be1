"""A service in each of its states, and while generations go live one after the other."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish, publish_for_ann, write_generation
from tests.support.serving import BOTH_WAYS, Client, is_problem, send_raw, serves, serving
from tests.support.waiting import wait_until_async
from tests.unit.factors.factors_world import history

RATERS, FLIPS = 3, 2


def rows(n: int, item: str = "item-{}", user: str = "ann") -> list[dict[str, Any]]:
    return [{"user_id": user, "item_id": item.format(row % 8), "rating": 3} for row in range(n)]


@BOTH_WAYS
async def test_before_the_first_generation(store: Store) -> None:
    async with serving(store.settings) as (client, _):
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


async def test_generations_can_be_gone_back_to(client: Client, store: Store, published: Written) -> None:
    first = published.writer.number
    lease = await lead(store)
    second = (await publish(store, lease, users=[b"ann"], seed=1)).writer.number
    await serves(client, second)
    listed = (await client.get("/generations")).json["generations"]
    found = [(each["generation"], each["live"]) for each in listed]
    assert found == [(second, True), (first, False)]
    back = (await client.post(f"/generations/{first}/activate")).ok
    assert [back.json[name] for name in ("generation", "held", "served")] == [first, True, True]
    assert (await client.get("/predict?user_id=ann&item_id=item-1")).json["generation"] == first
    forward = (await client.post(f"/generations/{second}/activate")).json
    assert (forward["generation"], forward["held"]) == (second, False)
    is_problem(await client.post("/generations/99/activate"), 404, "unknown_generation")
    for number in ("x", "-1", "1.0", "0"):
        is_problem(await client.post(f"/generations/{number}/activate"), 400, "invalid_parameter")


async def test_forgetting_is_complete_at_once(client: Client) -> None:
    unknown = (await client.get("/predict?user_id=ghost&item_id=item-7")).json
    reply = await client.ask("DELETE", "/users/ann")
    assert (reply.status, reply.json["ratings"], reply.json["archive"]) == (200, 1, "pending")
    assert (await client.get("/predict?user_id=ann&item_id=item-7")).json == unknown
    is_problem(await client.get("/users/ann"), 404, "unknown_user")
    receipt = (await client.get(f"/receipts/{reply.json['receipt']}")).json
    assert receipt["archive"] == "pending"
    for wrong in ("none", f"{'0' * 32}-{int(time.time()) - 3700:x}"):
        is_problem(await client.get(f"/receipts/{wrong}"), 404, "unknown_receipt")


async def test_what_is_full_refuses(store: Store, published: Written) -> None:
    before = await store.stream.lag(1), await store.redis.llen(store.keys.order(1))
    async with serving(replace(store.settings, stream_limit=5)) as (client, _):
        is_problem(await client.post("/ratings", rows(30, user="u")), 429, "stream_full")
        events = [{**row, "type": "view"} for row in rows(200, user="u")]
        for event in events:
            del event["rating"]
        is_problem(await client.post("/events", events), 429, "stream_full")
    async with serving(replace(store.settings, max_items=8)) as (client, _):
        new = {"user_id": "u", "item_id": "one more", "rating": 3}
        is_problem(await client.post("/ratings", new), 422, "too_many_items")
        is_problem(await client.ask("PUT", "/items/one-more", json={}), 422, "too_many_items")
        assert (await client.ask("PUT", "/items/item-0", json={})).status == 200
        is_problem(await client.get("/users/u"), 404, "unknown_user")
    assert (await store.stream.lag(1), await store.redis.llen(store.keys.order(1))) == before


async def test_a_body_that_does_not_come_is_given_up(store_settings: StoreSettings) -> None:
    head = b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 9\r\n\r\n[{"
    async with serving(store_settings, body_timeout_s=0.05) as (client, _):
        assert b"HTTP/1.1 408" in await asyncio.to_thread(send_raw, client.port, head)
    async with serving(store_settings) as (client, app):
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(head)
        context = app[CONTEXT]
        await wait_until_async(lambda: context.traffic.in_flight == 1, "it is read")
        writer.transport.abort()
        await wait_until_async(lambda: context.traffic.in_flight == 0, "it is given up")
        # A client that leaves is no mistake of the service.
        assert (context.counts.exceptions, context.counts.requests["/ratings"]) == (0, {"400": 1})


def by_hand(written: Written, rated: dict[int, float], row: int) -> float:
    return written.rating_of(history([*rated], [*rated.values()]), row)


async def test_raters_read_their_writes_while_generations_flip(store: Store) -> None:
    published = await publish_for_ann(store, {"item-0": 5.0}, 8)
    lease, stop = await lead(store), asyncio.Event()
    generations, counts = {published.writer.number: published}, [0] * RATERS

    async def rate_and_ask(number: int, one: Client, other: Client) -> None:
        rng, history, user = random.Random(number), dict[int, float](), f"user-{number}"
        while not stop.is_set():
            row, value = rng.randrange(8), float(rng.randint(1, 5))
            body = {"user_id": user, "item_id": f"item-{row}", "rating": value}
            assert (await one.post("/ratings", body)).status == 200
            history.pop(row, None)
            history[row] = value
            rows = [rng.randrange(8) for _ in range(3)]
            answer = (await other.get(f"/predict?user_id={user}&item_id=item-{rows[0]}")).json
            wanted = by_hand(generations[answer["generation"]], history, rows[0])
            assert abs(answer["rating"] - wanted) < 1e-4, (user, answer, wanted)
            # An answer about many pairs is of one generation.
            body = {"user_id": user, "item_ids": [f"item-{each}" for each in rows]}
            many = (await one.post("/predict", body)).json
            for each, asked in zip(many["predictions"], rows, strict=True):
                wanted = by_hand(generations[many["generation"]], history, asked)
                assert abs(each["rating"] - wanted) < 1e-4, (user, many, wanted)
            counts[number] += 1

    async with AsyncExitStack() as ends:
        workers = [(await ends.enter_async_context(serving(store.settings)))[0] for _ in range(2)]
        for worker in workers:
            await serves(worker, published.writer.number)
        raters = [
            asyncio.create_task(rate_and_ask(number, workers[number % 2], workers[1 - number % 2]))
            for number in range(RATERS)
        ]
        try:
            for seed in range(1, FLIPS + 1):
                users = [b"user-%d" % number for number in range(0, RATERS, 2)]
                written = await write_generation(store, lease, users=users, seed=seed)
                generations[written.writer.number] = written
                assert await written.writer.flip(automatic=False)
                for worker in workers:
                    await serves(worker, written.writer.number)
                least = min(counts)
                await wait_until_async(
                    lambda least=least: min(counts) > least or any(rater.done() for rater in raters),  # type: ignore[misc]  # its default
                    "each goes on",
                )
        finally:
            stop.set()
            await asyncio.gather(*raters)
