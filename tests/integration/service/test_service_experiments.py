"""Experiments: two scenarios at once, each for its users, by one worker and by two."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.experiments.definition import Arm, Definition
from featurestore.experiments.tallies import new_tally
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import lead, rating, write_generation
from tests.support.serving import Client, client_of, is_problem, processes, serves, serving
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
