"""Experiments: two scenarios at once, each for its users, by one worker and by two."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import StoreRefused
from featurestore.experiments.definition import Arm, Definition
from featurestore.experiments.stored import MOST_EXPERIMENTS
from featurestore.experiments.tallies import new_tally
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import lead, rating, write_generation
from tests.support.serving import BOTH_WAYS, Client, client_of, is_problem, processes, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 8
USERS = [f"user-{k}" for k in range(40)]
ARMS = [{"name": "a", "share": 0.5, "scenario": "home"}, {"name": "b", "share": 0.5, "scenario": "fewer"}]
LISTS = {"arms": ARMS, "scenario": "home"}
DEFINED = Definition((Arm("a", 0.5, "home"), Arm("b", 0.5, "fewer")), 1e9)


async def prepare(store: Store) -> int:
    """Make a generation and three scenarios; return the number of the first."""
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    await store.ratings.append([rating(user, "item-0", 4.0, 1e9) for user in USERS])
    written = await write_generation(store, await lead(store), n_items=ITEMS)
    assert await written.writer.flip(automatic=False)
    for name, kept in (("home", "[0,1,2]"), ("fewer", "[5]"), ("other", "[6]")):
        rules = kept.replace("[", '["item-').replace(",", '","item-').replace("]", '"]')
        await store.scenarios.put(name.encode(), b'{"candidate_items":%b}' % rules.encode())
    return written.writer.number


@pytest.fixture
async def client(store_settings: StoreSettings, store: Store) -> AsyncIterator[Client]:
    number = await prepare(store)
    async with serving(store_settings) as (client, _):
        await serves(client, number)
        yield client


async def begun(client: Client, name: str, body: Any) -> Any:
    reply = await client.ask("PUT", f"/experiments/{name}", json=body)
    assert reply.status == 200, reply.text
    assert reply.json["followed"]
    return reply.json


async def items(client: Client, user: str, query: str = "", **more: Any) -> tuple[set[str], Any]:
    answer = (await client.get(f"/recommend/{user}?exclude_seen=false{query}", **more)).json
    return {each["item_id"] for each in answer["items"]}, answer.get("arms")


async def until_figures(client: Client, name: str, **least: int) -> list[dict[str, Any]]:
    """The arms, as soon as together they have counted as much as `least`."""
    found: list[dict[str, Any]] = []

    async def counted() -> bool:
        found[:] = (await client.get(f"/experiments/{name}")).json["arms"]
        return all(sum(arm[figure] for arm in found) >= number for figure, number in least.items())

    await wait_until_async(counted, f"figures {least}")
    return found


@BOTH_WAYS
async def test_scenarios_take_the_place_of_the_one_that_is_asked_for(client: Client, store: Store) -> None:
    await begun(client, "lists", LISTS)
    counts = {"a": 0, "b": 0}
    for user in USERS:
        found, shown = await items(client, user, "&scenario=home")
        assert found == ({"item-5"} if shown["lists"] == "b" else {"item-0", "item-1", "item-2"})
        counts[shown["lists"]] += 1
    assert min(counts.values()) > 5
    assert await items(client, "user-0", "&scenario=other") == ({"item-6"}, None)
    assert len((await items(client, "user-0"))[0]) == ITEMS
    figures = await until_figures(client, "lists", lists=len(USERS), users=len(USERS))
    assert {arm["name"]: (arm["lists"], arm["users"]) for arm in figures} == {
        name: (count, count) for name, count in counts.items()
    }
    # An arm whose scenario was deleted is no arm: the call gets what it asks for.
    assert (await client.ask("DELETE", "/scenarios/fewer")).status == 200
    for user in USERS[:10]:
        found_items, shown = await items(client, user, "&scenario=home")
        assert found_items == {"item-0", "item-1", "item-2"}
        assert shown in (None, {"lists": "a"})
    assert (await client.ask("PUT", "/scenarios/fewer", json={"candidate_items": ["item-7"]})).status == 200
    assert is_problem(await client.ask("DELETE", "/experiments/lists?keep=c"), 400, "invalid_parameter")
    assert (await client.ask("DELETE", "/experiments/lists?keep=b")).status == 200
    assert await items(client, "user-0", "&scenario=home") == ({"item-7"}, None)
    # What was counted goes with it.
    assert not any(b"experiment" in key for key in await store.redis.keys(f"*{store.settings.namespace}*"))
    assert is_problem(await client.ask("DELETE", "/experiments/lists"), 404, "unknown_experiment")
    # Of calls that ask for none.
    await begun(client, "default", {"arms": ARMS})
    assert (await items(client, "user-0"))[1] is not None
    ended = (await client.ask("DELETE", "/experiments/default?keep=a")).json
    assert ended == {"ended": "default", "followed": True, "scenario": "home"}
    assert (await items(client, "user-0"))[0] == {"item-7"}
    assert (await client.get("/experiments")).json == {"experiments": [], "default_scenario": "home"}
    # What is not there does nothing.
    assert (await client.ask("DELETE", "/scenarios/home")).status == 200
    assert len((await items(client, "user-0"))[0]) == ITEMS


async def test_what_is_no_experiment_is_refused_by_name(client: Client) -> None:
    one, other = ARMS

    async def refused(body: Any, status: int, code: str, field: str, name: str = "x") -> str:
        reply = await client.ask("PUT", f"/experiments/{name}", json=body)
        assert is_problem(reply, status, code)
        assert reply.json.get("field") == field
        return str(reply.json["detail"])

    await refused({"arms": [one]}, 422, "invalid_body", "arms")
    await refused({"arms": [one, {**other, "share": 0.7}]}, 422, "invalid_body", "arms.share")
    await refused({"arms": [one, {**other, "share": 0}]}, 422, "invalid_body", "arms.share")
    await refused({"arms": [one, {**other, "name": "a"}]}, 422, "invalid_body", "arms.name")
    await refused({"arms": [one, {**other, "name": "a b"}]}, 422, "invalid_body", "arms.name")
    await refused({"arms": [one, {"name": "b", "share": 0.5}]}, 422, "invalid_body", "arms.scenario")
    generation = {"name": "b", "share": 0.5, "generation": 1}
    assert "'generation'" in await refused(
        {"arms": [one, generation]}, 422, "invalid_body", "arms.generation"
    )
    missing = {**other, "scenario": "missing"}
    await refused({"arms": [one, missing]}, 404, "unknown_scenario", "arms.scenario")
    await begun(client, "lists", LISTS)
    assert (await begun(client, "lists", LISTS))["name"] == "lists"
    changed = {**LISTS, "arms": [other, one]}
    await refused(changed, 409, "experiment_exists", "name", "lists")
    await refused(changed, 409, "experiment_exists", "name", "others")
    assert is_problem(await client.get("/experiments/none"), 404, "unknown_experiment")


async def test_there_is_room_for_so_many(store: Store) -> None:
    for k in range(MOST_EXPERIMENTS):
        await store.experiments.begin(f"e{k}", Definition(DEFINED.arms, 1e9, scenario=f"s{k}"))
    with pytest.raises(StoreRefused):
        await store.experiments.begin("more", Definition(DEFINED.arms, 1e9, scenario="more"))


@pytest.mark.parametrize("torn", [b'{"arms":[', b'{"arms":5}', b'{"arms":[{"generation":NaN}],"began":1}'])
async def test_one_that_cannot_be_read_does_nothing_and_can_be_ended(
    client: Client, store: Store, torn: bytes
) -> None:
    await store.redis.hset(store.keys.experiments, "torn", torn)
    assert is_problem(await client.get("/experiments/torn"), 503, "data_damaged")
    assert await items(client, "user-0", "&scenario=other") == ({"item-6"}, None)
    await begun(client, "lists", LISTS)
    assert (await client.ask("DELETE", "/experiments/torn")).status == 200
    assert [each["name"] for each in (await client.get("/experiments")).json["experiments"]] == ["lists"]


async def test_what_one_has_counted_late_is_none_of_another_of_its_name(store: Store) -> None:
    ended = await store.experiments.begin("lists", Definition(DEFINED.arms, 1e9 + 0.1))
    await store.tallies.add(ended, 0, new_tally() + 1.0, [1, 2])
    assert (await store.tallies.read(ended))[0][0].all()
    assert await store.experiments.end("lists", 2)
    await store.tallies.add(ended, 0, new_tally() + 1.0, [3])
    new = await store.experiments.begin("lists", Definition(DEFINED.arms, 1e9 + 0.2))
    await store.tallies.add(ended, 0, new_tally() + 1.0, [4])
    ((tally, users), _) = await store.tallies.read(new)
    assert (float(tally.sum()), users) == (0.0, 0)
    await store.tallies.add(new, 0, new_tally() + 1.0, [4])
    ((tally, users), _) = await store.tallies.read(new)
    assert (float(tally.min()), users) == (1.0, 1)


async def test_a_worker_goes_on_where_experiments_are_of_another_type(client: Client, store: Store) -> None:
    await begun(client, "lists", LISTS)
    await store.redis.set(store.keys.experiments, b"x")

    async def plain() -> bool:
        answers = [await items(client, user, "&scenario=home") for user in USERS[:10]]
        return answers == [({"item-0", "item-1", "item-2"}, None)] * 10

    await wait_until_async(plain, "there is no experiment")
    assert is_problem(await client.get("/experiments"), 503, "data_damaged")
    assert is_problem(await client.ask("PUT", "/experiments/lists", json=LISTS), 503, "data_damaged")
    # What a person does about it.
    await store.redis.delete(store.keys.experiments)
    await begun(client, "lists", LISTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -96.0])
async def test_a_sum_that_counts_nothing_is_damage(client: Client, store: Store, value: float) -> None:
    await begun(client, "lists", LISTS)
    tally = new_tally()
    tally[0, 0] = value
    await store.redis.hset(store.keys.experiment_sums("lists"), "0", tally.astype("<f8").tobytes())
    assert is_problem(await client.get("/experiments/lists"), 503, "data_damaged")
    assert (await client.get("/metrics")).status == 200


@pytest.mark.slow
async def test_two_workers_agree_from_the_answer_on(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    number = await prepare(store)
    with processes(store_settings, tmp_path, workers=2) as service:
        service.wait_for()
        async with client_of(service.url) as client:
            await serves(client, number)
            await begun(client, "lists", LISTS)
            (experiment,) = (await store.experiments.all()).running
            wanted = []
            for user in USERS:
                arm = experiment.arms[experiment.arm_of(experiment.mark_of(user.encode()))]
                kept = {"item-5"} if arm.name == "b" else {"item-0", "item-1", "item-2"}
                wanted.append((kept, {"lists": arm.name}))
            close = {"headers": {"Connection": "close"}}
            for _ in range(4):
                asked = (items(client, user, "&scenario=home", **close) for user in USERS)
                assert await asyncio.gather(*asked) == wanted
            found = await until_figures(client, "lists", users=len(USERS))
            # Whichever worker has seen them, and however often.
            assert sum(arm["users"] for arm in found) == len(USERS)
            assert (await client.ask("DELETE", "/experiments/lists?keep=b")).json["followed"]
            after = [await items(client, USERS[0], "&scenario=home", **close) for _ in range(4)]
            assert all(shown is None for _, shown in after)
