"""Experiments: two scenarios at once, each for its users, by whichever worker."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from featurestore.experiments.tallies import new_tally
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 8
USERS = [f"user-{k}" for k in range(40)]


@pytest.fixture
async def client(store_settings: StoreSettings, published: Written) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        await serves(client, published.writer.number)
        yield client


async def begun(client: Client, name: str, body: Any) -> Any:
    reply = await client.ask("PUT", f"/experiments/{name}", json=body)
    assert reply.status == 200, reply.text
    assert reply.json["followed"]
    return reply.json


async def until_figures(client: Client, name: str, **least: int) -> list[dict[str, Any]]:
    """The arms, as soon as together they have counted as much as `least`."""
    found: list[dict[str, Any]] = []

    async def counted() -> bool:
        found[:] = (await client.get(f"/experiments/{name}")).json["arms"]
        return all(sum(arm[figure] for arm in found) >= number for figure, number in least.items())

    await wait_until_async(counted, f"figures {least}")
    return found


async def test_scenarios_take_the_place_of_the_one_that_is_asked_for(client: Client, store: Store) -> None:
    for name, kept in (("home", [0, 1, 2]), ("fewer", [5]), ("other", [6])):
        rules = {"candidate_items": [f"item-{row}" for row in kept]}
        assert (await client.ask("PUT", f"/scenarios/{name}", json=rules)).status == 200
    body = {
        "arms": [
            {"name": "a", "share": 0.5, "scenario": "home"},
            {"name": "b", "share": 0.5, "scenario": "fewer"},
        ],
        "scenario": "home",
    }
    await begun(client, "lists", body)
    counts = {"a": 0, "b": 0}

    async def items(user: str, query: str = "") -> tuple[set[str], Any]:
        answer = (await client.get(f"/recommend/{user}?exclude_seen=false{query}")).json
        return {each["item_id"] for each in answer["items"]}, answer.get("arms")

    for user in USERS:
        found, shown = await items(user, "&scenario=home")
        assert found == ({"item-5"} if shown["lists"] == "b" else {"item-0", "item-1", "item-2"})
        counts[shown["lists"]] += 1
    assert min(counts.values()) > 5
    assert await items("user-0", "&scenario=other") == ({"item-6"}, None)
    assert len((await items("user-0"))[0]) == ITEMS
    figures = await until_figures(client, "lists", lists=len(USERS))
    assert {arm["name"]: arm["lists"] for arm in figures} == counts
    # An arm whose scenario was deleted is no arm: the call gets what it asks for.
    assert (await client.ask("DELETE", "/scenarios/fewer")).status == 200
    for user in USERS[:10]:
        found_items, shown = await items(user, "&scenario=home")
        assert found_items == {"item-0", "item-1", "item-2"}
        assert shown in (None, {"lists": "a"})
    assert (await client.ask("PUT", "/scenarios/fewer", json={"candidate_items": ["item-7"]})).status == 200
    assert (await client.ask("DELETE", "/experiments/lists?keep=b")).status == 200
    assert await items("user-0", "&scenario=home") == ({"item-7"}, None)
    # Of calls that ask for none.
    del body["scenario"]
    await begun(client, "default", body)
    assert (await items("user-0"))[1] is not None
    ended = (await client.ask("DELETE", "/experiments/default?keep=a")).json
    assert ended == {"ended": "default", "followed": True, "scenario": "home"}
    assert (await items("user-0"))[0] == {"item-7"}
    assert (await client.get("/experiments")).json == {"experiments": [], "default_scenario": "home"}
    # What is not there does nothing.
    assert (await client.ask("DELETE", "/scenarios/home")).status == 200
    assert len((await items("user-0"))[0]) == ITEMS


async def test_one_that_cannot_be_read_does_nothing_and_can_be_ended(client: Client, store: Store) -> None:
    await store.redis.hset(store.keys.experiments, "torn", b'{"arms":[')
    assert is_problem(await client.get("/experiments/torn"), 503, "data_damaged")
    assert (await client.get("/recommend/user-0")).status == 200
    assert (await client.ask("DELETE", "/experiments/torn")).status == 200
    assert (await client.get("/experiments")).json == {"experiments": []}


async def test_what_is_no_experiment_is_refused_by_name(client: Client, store: Store) -> None:
    for name in ("s", "t"):
        assert (await client.ask("PUT", f"/scenarios/{name}", json={})).status == 200
    one, other = ({"name": name, "share": 0.5, "scenario": name} for name in ("s", "t"))
    for body, status, code, field in (
        ({"arms": [one]}, 422, "invalid_body", "arms"),
        ({"arms": [one, {**other, "share": 0.7}]}, 422, "invalid_body", "arms.share"),
        ({"arms": [one, {**other, "share": 0}]}, 422, "invalid_body", "arms.share"),
        ({"arms": [one, {**other, "name": "s"}]}, 422, "invalid_body", "arms.name"),
        ({"arms": [one, {**other, "name": "a b"}]}, 422, "invalid_body", "arms.name"),
        ({"arms": [one, {"name": "b", "share": 0.5}]}, 422, "invalid_body", "arms"),
        ({"arms": [one, {**other, "scenario": "gone"}]}, 404, "unknown_scenario", "arms.scenario"),
    ):
        reply = await client.ask("PUT", "/experiments/x", json=body)
        assert is_problem(reply, status, code)
        assert reply.json.get("field") == field, body
    good = {"arms": [one, other]}
    await begun(client, "lists", good)
    assert (await begun(client, "lists", good))["name"] == "lists"
    for name in ("lists", "others"):
        refused = await client.ask("PUT", f"/experiments/{name}", json={"arms": [other, one]})
        assert is_problem(refused, 409, "experiment_exists")
    assert is_problem(await client.ask("DELETE", "/experiments/lists?keep=z"), 400, "invalid_parameter")
    for method in ("GET", "DELETE"):
        assert is_problem(await client.ask(method, "/experiments/none"), 404, "unknown_experiment")
    # Sums that count nothing are damage of this one alone.
    tally = new_tally()
    tally[0, 0] = float("nan")
    await store.redis.hset(store.keys.experiment_sums("lists"), "0", tally.astype("<f8").tobytes())
    assert is_problem(await client.get("/experiments/lists"), 503, "data_damaged")
    assert (await client.get("/metrics")).status == 200
    assert (await client.ask("DELETE", "/experiments/lists")).status == 200
