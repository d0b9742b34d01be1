"""Events of types other than ratings, what lists show, and experiments, which are counted by it."""

import json
import time
from typing import Any

import numpy as np
import pytest

from featurestore.experiments import new_tally
from featurestore.store import Store
from tests.support.factories import Written, lead, rating
from tests.support.serving import LINES, Client, Reply, is_problem, serving
from tests.support.waiting import wait_until_async
from trainer.archive.events import make_table, type_codes

ITEMS = 8
VIEW, PURCHASE = 1, 4
USERS = [f"user-{k}" for k in range(20)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted is written at once, and not every two seconds."""
    for module in ("service.feedback", "service.experiments.counting"):
        monkeypatch.setattr(f"{module}._FLUSH_S", 0.05)


def row(user: str, item: str, kind: str, **more: object) -> dict[str, object]:
    return {"user_id": user, "item_id": item, "type": kind, **more}


async def event(client: Client, user: str, item: str, kind: str, **more: object) -> Reply:
    return await client.post("/events", row(user, item, kind, **more))


async def events_of(client: Client, user: str) -> list[tuple[str, str, float]]:
    found = (await client.get(f"/users/{user}/events")).json
    assert found["total"] == len(found["events"])
    return [(each["item_id"], each["type"], each["value"]) for each in found["events"]]


async def until(client: Client, published: Written, **least: int) -> dict[str, Any]:
    async def counted() -> dict[str, Any]:
        listed = (await client.get("/generations")).json["generations"]
        own = next(each for each in listed if each["generation"] == published.writer.number)
        return dict(own.get("feedback", {}))

    def enough(found: dict[str, Any]) -> bool:
        return all(found.get(name, 0) >= number for name, number in least.items())

    return dict(await wait_until_async(counted, f"at least {least}", enough))


async def until_shown(client: Client, user: str, count: int) -> list[str]:
    async def recorded() -> list[str]:
        events = (await client.get(f"/users/{user}/events")).json.get("events", [])
        return [each["item_id"] for each in events if each["type"] == "impression"]

    return list(await wait_until_async(recorded, f"{count} shown to {user}", lambda ids: len(ids) >= count))


async def test_events_are_beside_the_ratings(client: Client, store: Store) -> None:
    before = (await client.get("/users/ann")).json
    body = [
        row("ann", "item-0", "view"),
        row("ann", "item-1", "purchase", value=2, timestamp=5.0),
        row("ann", "item-2", "rating", value=4),
        row("ann", "item-0", "view", value=3),
        row("ann", "new", "like"),
    ]
    assert (await client.post("/events", body)).json["accepted"] == 5
    latest = [("new", "like", 1.0), ("item-0", "view", 3.0), ("item-1", "purchase", 2.0)]
    assert await events_of(client, "ann") == latest
    page = (await client.get("/users/ann/events?n=1&offset=2")).json
    assert (page["total"], page["events"][0]["timestamp"]) == (3, 5.0)
    rated = (await client.get("/users/ann/ratings")).json
    assert [each["item_id"] for each in rated["ratings"]] == ["item-2", "item-0"]
    user = (await client.get("/users/ann")).json
    assert (user["ratings"], user["mean"]) == (before["ratings"] + 1, 4.5)
    assert user["events"] == before["events"] + 5
    # The record of the ratings is what a user with the ratings alone has.
    await store.ratings.append([rating("bob", "item-0", 5.0), rating("bob", "item-2", 4.0)])
    ann, bob = [(await client.get(f"/predict?user_id={who}&item_id=item-5")).json for who in ("ann", "bob")]
    assert abs(ann["rating"] - bob["rating"]) < 1e-3
    # One is taken back, and the others stay.
    assert (await client.ask("DELETE", "/events/ann/item-0/view")).json["deleted"] == 1
    for path in ("ann/item-0/view", "ann/item-0/sneeze", "ann/nothing/view", "zoe/item-0/view"):
        assert is_problem(await client.ask("DELETE", f"/events/{path}"), 404, "unknown_event")
    assert (await client.ask("DELETE", "/ratings/ann/item-2")).status == 200
    assert await events_of(client, "ann") == [latest[0], latest[2]]
    # Of the stream and of the archive they have their types.
    lines = "\n".join(json.dumps(row("eve", "item-1", kind)) for kind in ("view", "purchase"))
    await store.ratings.append([rating("eve", "item-1", 3.0)])
    assert (await client.post("/events", lines.encode(), headers=LINES)).json["accepted"] == 2
    events = await store.stream.read(1, await lead(store), 100, 0)
    own = np.array([user_id == b"eve" for user_id in events.user_id])
    assert events.type_code[own].tolist() == [0, VIEW, PURCHASE]
    table = make_table(events, store.items(1).ids)
    assert type_codes(table)[own].tolist() == [0, VIEW, PURCHASE]
    assert np.array(table["item_id"].to_pylist())[own].tolist() == ["item-1"] * 3


async def test_one_bad_event_refuses_all(client: Client) -> None:
    good = row("zoe", "item-0", "view")
    for bad, code, field in (
        (row("zoe", "item-0", "sneeze"), "invalid_type", "type"),
        (row("zoe", "item-0", "rating", value=9), "invalid_body", "value"),
        (row("zoe", "item-0", "impression", value=2.5), "invalid_body", "value"),
        (row("zoe", "item-0", "view", timestamp=1e18), "invalid_body", "timestamp"),
        (row("zoe", "item-0", "impression", recommendation_id="mine"), "invalid_body", "recommendation_id"),
        ({"user_id": "zoe", "item_id": "item-0"}, "invalid_body", "type"),
    ):
        assert is_problem(await client.post("/events", [good, bad]), 422, code, field=field, row=1)
    assert (await client.get("/users/zoe/events")).status == 404
    assert is_problem(await client.post("/events", [good] * 10_001), 422, "too_many_rows")


async def test_types_are_put_and_retired(client: Client, store: Store) -> None:
    async with serving(store.settings) as (other, _):
        types = (await client.get("/event-types")).json["types"]
        assert [each["code"] for each in types] == [1, 2, 3, 4, 5, 6, 7]
        assert (await event(client, "ann", "item-3", "skip")).status == 200
        wanted = [
            {"name": "view", "meaning": "positive", "weight": 0.25},
            {"name": "share", "meaning": "positive", "consumed": True},
        ]
        put = await client.ask("PUT", "/event-types", json={"types": wanted})
        named = {each["name"]: each for each in put.json["types"]}
        assert (named["share"]["code"], named["view"]["code"], named["view"]["weight"]) == (8, 1, 0.25)
        assert [name for name, each in named.items() if each["retired"]] == []
        put = await client.ask("DELETE", "/event-types/skip")
        assert [each["name"] for each in put.json["types"] if each["retired"]] == ["skip"]
        assert is_problem(await client.ask("DELETE", "/event-types/skipp"), 404, "not_found")
        assert (await event(client, "ann", "item-3", "share")).status == 200
        assert is_problem(await event(client, "ann", "item-3", "skip"), 422, "invalid_type")
        assert {kind for _, kind, _ in await events_of(client, "ann")} == {"skip", "share"}
        # A worker that has not asked yet does so now.
        assert (await other.get("/event-types")).json["types"] == put.json["types"]
        for bad in (
            [{"name": "skip", "meaning": "positive"}],
            [wanted[0], wanted[0]],
            [{"name": f"t{k}", "meaning": "positive"} for k in range(24)],
        ):
            assert is_problem(
                await client.ask("PUT", "/event-types", json={"types": bad}), 422, "invalid_type"
            )
        for unreadable in ({"name": "No", "meaning": "positive"}, {"name": "a", "meaning": "maybe"}):
            assert (await client.ask("PUT", "/event-types", json={"types": [unreadable]})).status == 422
        assert (await client.get("/event-types")).json["types"] == put.json["types"]
    # One who cannot read them takes no event.
    await store.redis.set(store.keys.event_types, b'{"format":1,"types":[{"name":"a"}]}')
    async with serving(store.settings) as (other, _):
        assert is_problem(await event(other, "bob", "item-0", "view"), 503, "data_damaged")


async def test_what_counts_as_seen_is_said_by_type(client: Client) -> None:
    for item, kind in (("item-1", "view"), ("item-2", "purchase"), ("item-3", "impression")):
        assert (await event(client, "ann", item, kind)).status == 200
    for query, expected in (
        # A rating and a purchase; a view is no consumption, nor is a showing.
        ("", {0, 2}),
        ("&exclude_seen=view,purchase", {1, 2}),
        ("&exclude_seen=rating", {0}),
        ("&exclude_seen=impression,rating", {0, 3}),
        ("&exclude_seen=false", set[int]()),
    ):
        items = (await client.get(f"/recommend/ann?n=100{query}")).json["items"]
        assert set(range(ITEMS)) - {int(each["item_id"].removeprefix("item-")) for each in items} == expected
    reply = await client.post("/recommend/ann", {"n": 100, "exclude_seen": ["view"]})
    assert {each["item_id"] for each in reply.json["items"]}.isdisjoint({"item-1"})
    refused = await client.get("/recommend/ann?exclude_seen=view,glance")
    assert is_problem(refused, 422, "unknown_event_type")
    assert (refused.json["field"], "glance" in refused.json["detail"]) == ("exclude_seen", True)


async def test_what_is_shown_and_what_comes_of_it_are_counted(client: Client, published: Written) -> None:
    number = published.writer.number
    answer = (await client.get("/recommend/ann?n=4&impressions=true")).json
    items = [each["item_id"] for each in answer["items"]]
    assert sorted(await until_shown(client, "ann", 4)) == sorted(items)
    # What was shown is not seen.
    again = (await client.get("/recommend/ann?n=4")).json
    assert [each["item_id"] for each in again["items"]] == items
    assert again["recommendation_id"].startswith(f"{number}~")
    # Of one item once; of one that was not shown, and a negative one, never; nor before it was shown.
    early = {"timestamp": time.time() - 86_400}
    for user, item, kind, more in (
        ("ann", items[0], "click", {}),
        ("ann", items[0], "purchase", {}),
        ("ann", items[1], "dislike", {}),
        ("bob", items[1], "like", {}),
        ("ann", items[2], "like", early),
        # The last one counts: what was to count before it has been counted by then.
        ("ann", items[3], "like", {}),
    ):
        assert (await event(client, user, item, kind, **more)).status == 200
    found = await until(client, published, lists=2, shown=4, positives=2)
    assert (found["lists"], found["shown"], found["positives"]) == (2, 4, 2)
    assert found["coverage"] == pytest.approx(0.5)
    rate = found["positive_rate"]
    # Wilson's interval of 2 of 4.
    assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((0.5, 0.1500, 0.8500), abs=1e-3)
    # A front end says itself what it has shown, and what was chosen in the same call.
    token = again["recommendation_id"]
    # What comes of a showing of more than seven days before counts no more.
    week = {"timestamp": time.time() - 8 * 86_400, "recommendation_id": token}
    assert (await event(client, "zoe", "item-1", "impression", **week)).status == 200
    assert (await event(client, "zoe", "item-1", "like")).status == 200
    both = [row("eve", "item-5", kind, recommendation_id=token) for kind in ("impression", "purchase")]
    assert (await client.post("/events", both)).status == 200
    made_up = token.replace(f"{number}~", "999999999~", 1)
    assert (await event(client, "eve", "item-6", "impression", recommendation_id=made_up)).status == 200
    assert (await event(client, "eve", "item-6", "like")).status == 200
    assert (await event(client, "eve", "item-7", "impression")).status == 200
    assert (await until(client, published, shown=7, positives=3))["positives"] == 3
    text = (await client.get("/metrics")).text
    for name, value in (("shown_items", 7), ("positives", 3), ("items", ITEMS)):
        assert f'foldin_generation_{name}{{generation="{number}"}} {value}.0' in text
    assert "foldin_impressions_lost_total 0.0" in text


async def begun(client: Client, name: str, body: Any) -> None:
    reply = (await client.ask("PUT", f"/experiments/{name}", json=body)).ok
    assert (reply.json["name"], reply.json["followed"]) == (name, True)


async def test_an_experiment_gives_each_user_one_scenario_and_counts_what_comes_of_it(client: Client) -> None:
    for name, kept in (("home", [0, 1, 2]), ("fewer", [5]), ("other", [6])):
        # None asks for impressions: the experiment has what its arms show recorded.
        rules = {"candidate_items": [f"item-{each}" for each in kept]}
        assert (await client.ask("PUT", f"/scenarios/{name}", json=rules)).status == 200
    arms = [{"name": name, "share": 0.5, "scenario": of} for name, of in (("a", "home"), ("b", "fewer"))]
    await begun(client, "lists", {"arms": arms, "scenario": "home"})
    counts = {name: {"lists": 0, "shown": 0, "positives": 0} for name in ("a", "b")}

    async def asked(user: str, query: str = "") -> tuple[set[str], Any, str]:
        answer = (await client.get(f"/recommend/{user}?exclude_seen=false{query}")).json
        return {each["item_id"] for each in answer["items"]}, answer.get("arms"), answer["recommendation_id"]

    for number, user in enumerate(USERS):
        found, shown, token = await asked(user, "&scenario=home")
        assert found == ({"item-5"} if shown["lists"] == "b" else {"item-0", "item-1", "item-2"})
        arm = counts[shown["lists"]]
        arm["lists"] += 1
        arm["shown"] += len(found)
        if number % 4 == 0:
            await until_shown(client, user, len(found))
            item = min(found)
            assert (await event(client, user, item, "like", recommendation_id=token)).status == 200
            arm["positives"] += 1
    assert min(arm["lists"] for arm in counts.values()) > 0
    assert (await asked("user-0", "&scenario=other"))[:2] == ({"item-6"}, None)
    # Of a client that sends what it has shown itself, no showing is counted twice.
    _, shown, _ = await asked("user-0", "&scenario=home&impressions=false")
    counts[shown["lists"]]["lists"] += 1

    def counted(told: Reply) -> bool:
        arms = told.json["arms"]
        return {arm["name"]: {name: arm[name] for name in counts["a"]} for arm in arms} == counts

    await wait_until_async(lambda: client.get("/experiments/lists"), f"{counts}", counted)
    assert 'foldin_arm_shown_items{arm="a",experiment="lists"}' in (await client.get("/metrics")).text
    # An arm whose scenario was deleted is no arm: the call gets what it asks for.
    assert (await client.ask("DELETE", "/scenarios/fewer")).status == 200
    assert {frozenset((await asked(user, "&scenario=home"))[0]) for user in USERS[:10]} == {
        frozenset({"item-0", "item-1", "item-2"})
    }
    assert (await client.ask("PUT", "/scenarios/fewer", json={"candidate_items": ["item-7"]})).status == 200
    assert (await client.ask("DELETE", "/experiments/lists?keep=b")).status == 200
    assert (await asked("user-0", "&scenario=home"))[:2] == ({"item-7"}, None)
    # Of calls that ask for none.
    await begun(client, "default", {"arms": arms})
    assert (await asked("user-0"))[1] is not None
    ended = (await client.ask("DELETE", "/experiments/default?keep=a")).json
    assert ended == {"ended": "default", "followed": True, "scenario": "home"}
    assert (await client.get("/experiments")).json == {"experiments": [], "default_scenario": "home"}


async def test_what_is_no_experiment_is_refused_by_name(client: Client, store: Store) -> None:
    for name in ("s", "t"):
        assert (await client.ask("PUT", f"/scenarios/{name}", json={})).status == 200
    one, other = ({"name": name, "share": 0.5, "scenario": name} for name in ("s", "t"))
    for arms, status, code, field in (
        ([one], 422, "invalid_body", "arms"),
        ([one, {**other, "share": 0.7}], 422, "invalid_body", "arms.share"),
        ([one, {**other, "name": "s"}], 422, "invalid_body", "arms.name"),
        ([one, {"name": "b", "share": 0.5}], 422, "invalid_body", "arms.scenario"),
        ([one, {**other, "scenario": "gone"}], 404, "unknown_scenario", "arms.scenario"),
    ):
        reply = await client.ask("PUT", "/experiments/x", json={"arms": arms})
        assert is_problem(reply, status, code, field=field)
    for _ in range(2):
        await begun(client, "lists", {"arms": [one, other]})
    for name in ("lists", "others"):
        refused = await client.ask("PUT", f"/experiments/{name}", json={"arms": [other, one]})
        assert is_problem(refused, 409, "experiment_exists")
    assert is_problem(await client.ask("DELETE", "/experiments/lists?keep=z"), 400, "invalid_parameter")
    for method in ("GET", "DELETE"):
        assert is_problem(await client.ask(method, "/experiments/none"), 404, "unknown_experiment")
    # One that cannot be read, and sums that count nothing, are damage of this one alone.
    tally = new_tally()
    tally[0, 0] = float("nan")
    await store.redis.hset(store.keys.experiment_sums("lists"), "0", tally.astype("<f8").tobytes())
    await store.redis.hset(store.keys.experiments, "torn", b'{"arms":[')
    for name in ("lists", "torn"):
        assert is_problem(await client.get(f"/experiments/{name}"), 503, "data_damaged")
        assert (await client.get("/metrics")).status == (await client.get("/recommend/ann")).status == 200
        assert (await client.ask("DELETE", f"/experiments/{name}")).status == 200
