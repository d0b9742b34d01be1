"""What lists show, and what comes of it: recorded beside the answers, counted by generation and arm."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish, rating
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 8


@pytest.fixture
async def written(store: Store) -> Written:
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    await store.ratings.append([rating("ann", "item-0", 4.0, 1e9)])
    return await publish(store, await lead(store), n_items=ITEMS, users=[b"ann"])


@pytest.fixture
async def client(store_settings: StoreSettings, written: Written) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        yield client


async def event(client: Client, user: str, item: str, kind: str, **more: Any) -> Any:
    return await client.post("/events", {"user_id": user, "item_id": item, "type": kind, **more})


async def feedback(client: Client, number: int) -> dict[str, Any]:
    generations = (await client.get("/generations")).json["generations"]
    found = next(each for each in generations if each["generation"] == number)
    shown: dict[str, Any] = found.get("feedback", {})
    return shown


async def until(client: Client, written: Written, **least: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def counted() -> bool:
        found.update(await feedback(client, written.writer.number))
        return all(found.get(name, 0) >= number for name, number in least.items())

    await wait_until_async(counted, f"at least {least}")
    return found


async def shown_to(client: Client, user: str) -> list[str]:
    events = (await client.get(f"/users/{user}/events")).json.get("events", [])
    return [each["item_id"] for each in events if each["type"] == "impression"]


async def until_shown(client: Client, user: str, count: int) -> list[str]:
    found: list[str] = []

    async def recorded() -> bool:
        found[:] = await shown_to(client, user)
        return len(found) >= count

    await wait_until_async(recorded, f"{count} items shown to {user}")
    return found


async def test_what_a_list_shows_is_recorded_and_what_comes_of_it_is_counted(
    client: Client, written: Written
) -> None:
    answer = (await client.get("/recommend/ann?n=4&impressions=true")).json
    items = [each["item_id"] for each in answer["items"]]
    assert sorted(await until_shown(client, "ann", 4)) == sorted(items)
    # What was shown is not seen.
    again = (await client.get("/recommend/ann?n=4")).json
    assert [each["item_id"] for each in again["items"]] == items
    assert again["recommendation_id"] != answer["recommendation_id"]
    assert again["recommendation_id"].startswith(f"{written.writer.number}~")
    assert (await event(client, "ann", items[0], "click")).status == 200
    # Of one item once; of one that was not shown, and a negative one, never.
    assert (await event(client, "ann", items[0], "purchase")).status == 200
    assert (await event(client, "ann", items[1], "dislike")).status == 200
    assert (await event(client, "bob", items[1], "like")).status == 200
    late = time.time() + 8 * 86_400
    assert (await event(client, "ann", items[2], "like", timestamp=late)).status == 200
    # The last one counts: what was to count before it has been counted by then.
    assert (await event(client, "ann", items[3], "like")).status == 200
    found = await until(client, written, lists=2, shown=4, positives=2)
    assert (found["lists"], found["shown"], found["positives"]) == (2, 4, 2)
    assert found["coverage"] == pytest.approx(0.5)
    rate = found["positive_rate"]
    # Wilson's interval of 2 of 4.
    assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((0.5, 0.1500, 0.8500), abs=1e-3)
    text = (await client.get("/metrics")).text
    number = written.writer.number
    assert f'foldin_generation_shown_items{{generation="{number}"}} 4.0' in text
    assert f'foldin_generation_positives{{generation="{number}"}} 2.0' in text
    # What coverage is a share of.
    assert f'foldin_generation_items{{generation="{number}"}} {ITEMS}.0' in text
    assert "foldin_impressions_lost_total 0.0" in text


async def test_a_front_end_says_itself_what_it_has_shown(client: Client, written: Written) -> None:
    token = (await client.get("/recommend/ann?n=2")).json["recommendation_id"]
    assert (await shown_to(client, "ann")) == []
    reply = await event(client, "ann", "item-5", "impression", recommendation_id=token, value=7)
    assert reply.status == 200
    assert (await event(client, "ann", "item-5", "like", recommendation_id=token)).status == 200
    found = await until(client, written, shown=1, positives=1)
    assert (found["shown"], found["positives"]) == (1, 1)
    made_up = token.replace(f"{written.writer.number}~", "999999999~", 1)
    assert (await event(client, "ann", "item-6", "impression", recommendation_id=made_up)).status == 200
    assert (await event(client, "ann", "item-6", "like")).status == 200
    # Without a token it is what answers now.
    assert (await event(client, "ann", "item-7", "impression")).status == 200
    assert (await until(client, written, shown=2))["positives"] == 1
    # What an import says is kept; one of a generation that there is not counts for none.
    for value in (12345, 0):
        assert (await event(client, "eve", f"item-{value % 7}", "impression", value=value)).status == 200
    values = {each["value"] for each in (await client.get("/users/eve/events")).json["events"]}
    assert values == {12345.0, 0.0}
    for wrong in (-1, 2.5, 1e300):
        reply = await event(client, "eve", "item-1", "impression", value=wrong)
        assert is_problem(reply, 422, "invalid_body")
        assert reply.json["field"] == "value"
    reply = await event(client, "ann", "item-6", "impression", recommendation_id="mine")
    assert is_problem(reply, 422, "invalid_body")
    assert reply.json["field"] == "recommendation_id"


async def test_a_scenario_records_for_all_its_lists(client: Client, written: Written) -> None:
    assert (await client.ask("PUT", "/scenarios/home", json={"impressions": True})).status == 200
    await client.get("/recommend/ann?n=3&scenario=home")
    await until_shown(client, "ann", 3)
    await client.get("/recommend/bob?n=3&scenario=home&impressions=false")
    await client.post("/recommend/eve", {"n": 2, "impressions": True})
    assert len(await until_shown(client, "eve", 2)) == 2
    assert (await client.get("/users/bob/events")).status == 404


async def test_what_was_shown_does_not_bring_back_who_is_forgotten(client: Client, store: Store) -> None:
    for user, other in (("ann", "bob"), ("stranger", "other")):
        await client.get(f"/recommend/{user}?n=4&impressions=true")
        assert (await client.ask("DELETE", f"/users/{user}")).status == 200
        # By another worker, which knows of no queue but its own.
        await client.get(f"/recommend/{other}?n=4&impressions=true")
        await store.ratings.forget(other.encode())
    await client.get("/recommend/eve?n=4&impressions=true")
    await until_shown(client, "eve", 4)
    for user in ("ann", "bob", "stranger", "other"):
        assert (await client.get(f"/users/{user}/events")).status == 404
    # Who comes back is shown lists again.
    assert (await client.post("/ratings", {"user_id": "ann", "item_id": "item-1", "rating": 3})).status == 200
    await client.get("/recommend/ann?n=4&impressions=true")
    await until_shown(client, "ann", 4)


async def test_positives_count_for_the_arm_that_has_shown_the_item(client: Client, written: Written) -> None:
    for name in ("home", "other"):
        assert (await client.ask("PUT", f"/scenarios/{name}", json={"impressions": True})).status == 200
    arms = [{"name": name, "share": 0.5, "scenario": name} for name in ("home", "other")]
    assert (await client.ask("PUT", "/experiments/lists", json={"arms": arms})).status == 200
    expected = {"home": [0, 0], "other": [0, 0]}
    for k in range(6):
        answer = (await client.get(f"/recommend/user-{k}?n=2")).json
        arm = answer["arms"]["lists"]
        items = [each["item_id"] for each in answer["items"]]
        await until_shown(client, f"user-{k}", 2)
        expected[arm][0] += 2
        if k % 2:
            token = answer["recommendation_id"]
            assert (await event(client, f"user-{k}", items[0], "like", recommendation_id=token)).status == 200
            expected[arm][1] += 1
        # Without the token it counts for the generation alone: it may follow from another list.
        assert (await event(client, f"user-{k}", items[1], "like")).status == 200

    async def counted() -> bool:
        found = (await client.get("/experiments/lists")).json["arms"]
        return {arm["name"]: [arm["shown"], arm["positives"]] for arm in found} == expected

    await wait_until_async(counted, f"{expected}")
    found = (await client.get("/experiments/lists")).json["arms"]
    assert all(arm["positive_rate"]["low"] < arm["positive_rate"]["high"] for arm in found)
    assert 'foldin_arm_shown_items{arm="home",experiment="lists"}' in (await client.get("/metrics")).text
    assert (await until(client, written, positives=9))["positives"] == 9


async def test_what_counts_as_seen_is_said_by_type(client: Client) -> None:
    for item, kind in (("item-1", "view"), ("item-2", "purchase"), ("item-3", "impression")):
        assert (await event(client, "ann", item, kind)).status == 200

    async def left_out(query: str) -> set[int]:
        items = (await client.get(f"/recommend/ann?n=100{query}")).json["items"]
        return set(range(ITEMS)) - {int(each["item_id"].removeprefix("item-")) for each in items}

    # A rating and a purchase; a view is no consumption, nor is a showing.
    assert await left_out("") == {0, 2}
    assert await left_out("&exclude_seen=view,purchase") == {1, 2}
    assert await left_out("&exclude_seen=rating") == {0}
    assert await left_out("&exclude_seen=impression,rating") == {0, 3}
    assert await left_out("&exclude_seen=false") == set()
    reply = await client.post("/recommend/ann", {"n": 100, "exclude_seen": ["view"]})
    assert {each["item_id"] for each in reply.json["items"]}.isdisjoint({"item-1"})
    refused = await client.get("/recommend/ann?exclude_seen=view,glance")
    assert is_problem(refused, 422, "unknown_event_type")
    assert "glance" in refused.json["detail"]
    assert refused.json["field"] == "exclude_seen"
    refused = await client.post("/recommend/ann", {"exclude_seen": ["glance"]})
    assert is_problem(refused, 422, "unknown_event_type")


async def test_a_damaged_history_refuses_no_event_and_damaged_sums_no_generations(
    client: Client, store: Store, written: Written
) -> None:
    await store.redis.append(store.keys.history(1, b"ann"), b"half")
    assert (await event(client, "ann", "item-1", "like")).status == 200
    await store.redis.hset(store.keys.showings, "1", b"short")
    reply = await client.get("/generations")
    assert reply.status == 200
    assert [each["generation"] for each in reply.json["generations"]] == [written.writer.number]
    assert "feedback" not in reply.json["generations"][0]


async def test_while_there_is_no_room_nothing_shown_is_stored(
    store_settings: StoreSettings, store: Store
) -> None:
    lease = await lead(store)
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    number = (await publish(store, lease, n_items=ITEMS)).writer.number
    async with serving(store_settings) as (client, app):
        await serves(client, number)
        await store.room.say(lease, "archive_disk", await store.time())
        await wait_until_async(lambda: is_full(app), "the worker knows")
        await client.get("/recommend/bob?n=4&impressions=true")
        await wait_until_async(lambda: lost(app, 4), "4 items are left out")
        assert (await client.get("/users/bob/events")).status == 404


async def is_full(app: web.Application) -> bool:
    return app[CONTEXT].follower.full is not None


async def lost(app: web.Application, count: int) -> bool:
    return app[CONTEXT].counts.impressions_lost == count
