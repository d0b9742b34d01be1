"""Experiments: two generations or scenarios at once, each for its users, by one worker and by two."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from featurestore.codecs import History, pack_histories
from featurestore.errors import StoreRefused
from featurestore.experiments.definition import Arm, Definition, Experiment
from featurestore.experiments.stored import MOST_EXPERIMENTS, ExperimentExists, Winner
from featurestore.experiments.tallies import new_tally
from featurestore.leases import Lease
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written, lead, rating, write_generation
from tests.support.serving import BOTH_WAYS, Client, client_of, is_problem, processes, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 8
USERS = [f"user-{k}" for k in range(40)]


async def two_generations(store: Store) -> tuple[Lease, Written, Written]:
    """The second is live, the first the one before; they differ in every item."""
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    await store.ratings.append([rating(user, "item-0", 4.0, 1e9) for user in USERS])
    lease = await lead(store)
    both = []
    for seed in (1, 2):
        both.append(await write_generation(store, lease, n_items=ITEMS, seed=seed))
        assert await both[-1].writer.flip(automatic=False)
    return lease, both[0], both[1]


def arms(first: Written, second: Written) -> dict[str, Any]:
    pairs = (("old", first), ("new", second))
    return {"arms": [{"name": n, "share": 0.5, "generation": w.writer.number} for n, w in pairs]}


@pytest.fixture
async def generations(store: Store) -> tuple[Lease, Written, Written]:
    return await two_generations(store)


@pytest.fixture
async def client(
    store_settings: StoreSettings, generations: tuple[Lease, Written, Written]
) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        await serves(client, generations[2].writer.number)
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


def given(written: Written, ratings: dict[int, float], row: int) -> float:
    """The rating of an item row by a generation for a user with these ratings."""
    rows = np.array([*ratings], dtype=np.int32)
    history = History(rows, np.array([*ratings.values()]), np.full(len(rows), 1e9))
    return written.rating_of(pack_histories([history]), row)


@pytest.mark.slow
@BOTH_WAYS
async def test_each_user_has_one_arm_in_every_answer(
    client: Client, store: Store, generations: tuple[Lease, Written, Written]
) -> None:
    _, first, second = generations
    await begun(client, "fits", arms(first, second))
    seen: dict[str, set[int]] = {"old": set(), "new": set()}
    replies = await asyncio.gather(*(client.get(f"/predict?user_id={u}&item_id=item-3") for u in USERS))
    of_user: dict[str, Written] = {}
    for user, reply in zip(USERS, replies, strict=True):
        arm = reply.json["arms"]["fits"]
        seen[arm].add(reply.json["generation"])
        of_user[user] = first if arm == "old" else second
        assert reply.json["rating"] == pytest.approx(given(of_user[user], {0: 4.0}, 3), abs=1e-5)
    assert seen == {"old": {first.writer.number}, "new": {second.writer.number}}
    for user in USERS[:8]:
        number = of_user[user].writer.number
        paths = ("/recommend/{}", "/explain/{}/item-3", "/predict?user_id={}&item_id=item-3&timestamp=2e9")
        for path in paths:
            answer = (await client.get(path.format(user))).json
            assert answer["generation"] == number
            assert answer["arms"] == {"fits": "old" if of_user[user] is first else "new"}
        answer = (await client.post("/predict", {"user_id": user, "item_ids": ["item-3"]})).json
        assert (answer["generation"], len(answer["arms"])) == (number, 1)
    # Pairs of several users are one answer: of one generation, which is the live one.
    answer = (await client.post("/predict", {"pairs": [[user, "item-3"] for user in USERS]})).json
    assert answer["generation"] == second.writer.number
    assert "arms" not in answer
    expected = given(second, {0: 4.0}, 3)
    assert [each["rating"] for each in answer["predictions"]] == pytest.approx([expected] * 40, abs=1e-5)
    found = await until_figures(client, "fits", users=len(USERS))
    assert {arm["name"]: arm["served"] for arm in found} == {"old": True, "new": True}


@pytest.mark.slow
async def test_a_rating_is_in_the_next_answer_of_either_arm_and_its_error_is_counted(
    client: Client, generations: tuple[Lease, Written, Written]
) -> None:
    _, first, second = generations
    await begun(client, "fits", arms(first, second))
    squared = {"old": [0.0, 0], "new": [0.0, 0]}
    for k, user in enumerate(USERS):
        value = float(1 + k % 5)
        before = (await client.get(f"/predict?user_id={user}&item_id=item-1")).json
        reply = await client.post(
            "/ratings", {"user_id": user, "item_id": "item-1", "rating": value, "timestamp": 1e9}
        )
        assert reply.status == 200
        after = (await client.get(f"/predict?user_id={user}&item_id=item-2")).json
        assert after["arms"] == before["arms"]
        arm = after["arms"]["fits"]
        written = first if arm == "old" else second
        assert after["rating"] == pytest.approx(given(written, {0: 4.0, 1: value}, 2), abs=1e-5)
        squared[arm][0] += (before["rating"] - value) ** 2
        squared[arm][1] += 1
    found = await until_figures(client, "fits", ratings=len(USERS))
    for arm in found:
        total, count = squared[arm["name"]]
        assert arm["ratings"] == count
        assert arm["rmse"]["value"] == pytest.approx((total / count) ** 0.5, abs=1e-4)
        assert arm["rmse"]["low"] < arm["rmse"]["value"] < arm["rmse"]["high"]
    assert "rmse_difference" not in found[0]
    difference = found[1]["rmse"]["value"] - found[0]["rmse"]["value"]
    assert found[1]["rmse_difference"]["value"] == pytest.approx(difference)


async def test_a_generation_of_an_experiment_stays_and_ends_as_the_live_one(
    client: Client, store: Store, generations: tuple[Lease, Written, Written]
) -> None:
    lease, first, second = generations
    await begun(client, "fits", arms(first, second))
    later = [await write_generation(store, lease, n_items=ITEMS, seed=seed) for seed in (3, 4)]
    # A fit of the trainer's own accord waits; one that a person asked for goes live beside the experiment.
    assert not await later[1].writer.flip(automatic=True)
    assert await later[1].writer.flip(automatic=False)
    assert await store.generations.prune(lease) >= {first.writer.number, second.writer.number}
    await serves(client, later[1].writer.number)
    replies = [(await client.get(f"/predict?user_id={user}&item_id=item-3")).json for user in USERS]
    assert {each["generation"] for each in replies} == {first.writer.number, second.writer.number}
    assert is_problem(await client.ask("DELETE", "/experiments/fits?keep=third"), 400, "invalid_parameter")
    ended = await client.ask("DELETE", "/experiments/fits?keep=new")
    assert ended.json == {
        "ended": "fits",
        "followed": True,
        "generation": second.writer.number,
        "held": True,
    }
    await serves(client, second.writer.number)
    answer = (await client.get("/predict?user_id=user-0&item_id=item-3")).json
    assert answer["generation"] == second.writer.number
    assert "arms" not in answer
    assert not any(b"experiment" in key for key in await store.redis.keys(f"*{store.settings.namespace}*"))
    assert is_problem(await client.ask("DELETE", "/experiments/fits"), 404, "unknown_experiment")
    assert await store.generations.prune(lease) == {second.writer.number, later[1].writer.number}


async def test_new_items_reach_both_arms(
    client: Client, store: Store, generations: tuple[Lease, Written, Written]
) -> None:
    lease, first, second = generations
    await begun(client, "fits", arms(first, second))
    row = (await store.items(1).register([b"fresh"]))[0]
    for written in (first, second):
        number = written.writer.number
        await store.generations.claim_deltas(lease, 1, number)
        await store.generations.push_delta(lease, 1, number, np.array([row], np.int32), written.items[3:4])

    async def known() -> bool:
        pairs = [(await client.get(f"/predict?user_id={u}&item_id=fresh")).json for u in USERS[:10]]
        olds = [(await client.get(f"/predict?user_id={u}&item_id=item-3")).json for u in USERS[:10]]
        return [each["rating"] for each in pairs] == [each["rating"] for each in olds]

    await wait_until_async(known, "the item in both generations")


@pytest.mark.parametrize("how", ["damaged", "gone"])
async def test_an_arm_that_is_lost_is_answered_by_the_live_generation_and_says_so(
    store_settings: StoreSettings, store: Store, how: str
) -> None:
    _, first, second = await two_generations(store)
    number = first.writer.number
    if how == "damaged":
        await store.redis.set(store.keys.chunk(1, number, 0), b"x" * 64)
    async with serving(store_settings) as (client, _):
        await serves(client, second.writer.number)
        if how == "gone":
            await store.redis.delete(store.keys.meta(1, number))
        await begun(client, "fits", arms(first, second))
        replies = [(await client.get(f"/predict?user_id={user}&item_id=item-3")).json for user in USERS]
        assert {each["generation"] for each in replies} == {second.writer.number}
        assert {each.get("arms", {}).get("fits") for each in replies} == {None, "new"}
        found = (await client.get("/experiments/fits")).json["arms"]
        assert [arm["served"] for arm in found] == [False, True]
        assert (await client.ask("DELETE", "/experiments/fits")).status == 200


@pytest.mark.slow
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


async def test_what_is_no_experiment_is_refused_by_name(
    client: Client, generations: tuple[Lease, Written, Written]
) -> None:
    _, first, second = generations
    good = arms(first, second)

    async def refused(body: Any, status: int, code: str, field: str, name: str = "x") -> None:
        reply = await client.ask("PUT", f"/experiments/{name}", json=body)
        assert is_problem(reply, status, code)
        assert reply.json.get("field") == field

    one, other = good["arms"]
    await refused({"arms": [one]}, 422, "invalid_body", "arms")
    await refused({"arms": [one, {**other, "share": 0.7}]}, 422, "invalid_body", "arms.share")
    await refused({"arms": [one, {**other, "share": 0}]}, 422, "invalid_body", "arms.share")
    await refused({"arms": [one, {**other, "name": "old"}]}, 422, "invalid_body", "arms.name")
    await refused({"arms": [one, {**other, "name": "a b"}]}, 422, "invalid_body", "arms.name")
    await refused({"arms": [one, {"name": "b", "share": 0.5, "scenario": "s"}]}, 422, "invalid_body", "arms")
    await refused({"arms": [one, {"name": "b", "share": 0.5}]}, 422, "invalid_body", "arms")
    await refused({**good, "scenario": "s"}, 422, "invalid_body", "scenario")
    await refused({"arms": [one, {**other, "generation": 99}]}, 404, "unknown_generation", "arms.generation")
    lists = [{"name": name, "share": 0.5, "scenario": name} for name in ("s", "t")]
    await refused({"arms": lists}, 404, "unknown_scenario", "arms.scenario")
    await begun(client, "fits", good)
    assert (await begun(client, "fits", good))["name"] == "fits"
    await refused({"arms": [other, one]}, 409, "experiment_exists", "name", "fits")
    await refused({"arms": [other, one]}, 409, "experiment_exists", "name", "others")
    assert is_problem(await client.get("/experiments/none"), 404, "unknown_experiment")


async def test_one_that_cannot_be_read_does_nothing_and_can_be_ended(client: Client, store: Store) -> None:
    await store.redis.hset(store.keys.experiments, "torn", b'{"arms":[')
    assert is_problem(await client.get("/experiments/torn"), 503, "data_damaged")
    assert (await client.get("/predict?user_id=user-0&item_id=item-0")).status == 200
    assert (await client.ask("DELETE", "/experiments/torn")).status == 200
    assert (await client.get("/experiments")).json == {"experiments": []}


@pytest.mark.parametrize(
    "broken",
    [
        b'{"arms":5,"epoch":1}',
        b'{"arms":[5,{"generation":NaN},{"generation":[]}],"epoch":1}',
        b'{"epoch":[]}',
    ],
)
async def test_one_without_arms_stops_no_publication_and_no_other_experiment(
    store: Store, broken: bytes
) -> None:
    lease, first, second = await two_generations(store)
    await store.redis.hset(store.keys.experiments, "broken", broken)
    third = await write_generation(store, lease, n_items=ITEMS, seed=3)
    # As a refit does it: none is an arm.
    assert await third.writer.flip()
    both = tuple(
        Arm(f"g{each.writer.number}", 0.5, generation=each.writer.number) for each in (first, second)
    )
    if b"arms" not in broken:
        assert (await store.experiments.begin("fits", Definition(both, 1e9, 1))).name == "fits"


async def test_what_one_has_counted_late_is_none_of_another_of_its_name(store: Store) -> None:
    _, first, second = await two_generations(store)
    numbers = (first.writer.number, second.writer.number)
    both = tuple(Arm(f"g{number}", 0.5, generation=number) for number in numbers)
    ended = await store.experiments.begin("fits", Definition(both, 1e9 + 0.1, 1))
    await store.tallies.add(ended, 0, new_tally() + 1.0, [1, 2])
    assert (await store.tallies.read(ended))[0][0].all()
    assert await store.experiments.end("fits", 2, Winner())
    await store.tallies.add(ended, 0, new_tally() + 1.0, [3])
    new = await store.experiments.begin("fits", Definition(both, 1e9 + 0.2, 1))
    await store.tallies.add(ended, 0, new_tally() + 1.0, [4])
    ((tally, users), _) = await store.tallies.read(new)
    assert (float(tally.sum()), users) == (0.0, 0)
    await store.tallies.add(new, 0, new_tally() + 1.0, [4])
    ((tally, users), _) = await store.tallies.read(new)
    assert (float(tally.min()), users) == (1.0, 1)


async def test_those_of_ended_histories_leave_name_and_room(store: Store) -> None:
    _, first, second = await two_generations(store)
    arms = tuple(
        Arm(f"g{each.writer.number}", 0.5, generation=each.writer.number) for each in (first, second)
    )
    names = ["fits", *(f"old-{k}" for k in range(MOST_EXPERIMENTS - 1))]
    for name in names:
        await store.redis.hset(store.keys.experiments, name, msgspec.json.encode(Definition(arms, 1e9, 99)))
    left = Experiment("fits", Definition(arms, 1e9, 99))
    await store.tallies.add(left, 0, new_tally() + 1.0, [1])
    found = await store.experiments.begin("fits", Definition(arms, 1e9, 1))
    assert (await store.experiments.all()).running == (found,)
    assert not await store.redis.exists(store.keys.experiment_sums("fits"))
    # One that runs keeps its name and its room.
    scenarios = Arm("a", 0.5, scenario="a"), Arm("b", 0.5, scenario="b")
    with pytest.raises(ExperimentExists):
        await store.experiments.begin("fits", Definition(scenarios, 1e9))
    for k in range(MOST_EXPERIMENTS - 1):
        await store.experiments.begin(f"new-{k}", Definition(scenarios, 1e9, scenario=f"s{k}"))
    with pytest.raises(StoreRefused):
        await store.experiments.begin("more", Definition(scenarios, 1e9, scenario="more"))


@pytest.mark.slow
async def test_one_of_an_ended_history_is_in_the_way_of_nothing(
    client: Client, store: Store, generations: tuple[Lease, Written, Written]
) -> None:
    _, first, second = generations
    numbers = [each.writer.number for each in (first, second)]
    ended = Definition((Arm("x", 0.5, numbers[0]), Arm("y", 0.5, numbers[1])), 1.0, epoch=77)
    # By name it comes first.
    await store.redis.hset(store.keys.experiments, "a", msgspec.json.encode(ended))
    await begun(client, "fits", arms(first, second))
    for user in USERS:
        reply = await client.post("/ratings", {"user_id": user, "item_id": "item-1", "rating": 3.0})
        assert reply.status == 200
    replies = [(await client.get(f"/predict?user_id={user}&item_id=item-3")).json for user in USERS]
    assert {each["generation"] for each in replies} == {*numbers}
    assert {each["arms"]["fits"] for each in replies} == {"old", "new"}
    found = await until_figures(client, "fits", users=len(USERS), ratings=len(USERS))
    assert all(arm["ratings"] > 0 for arm in found)
    assert (await client.get("/experiments/fits")).json["waits"]
    left = (await client.get("/experiments/a")).json
    assert (left["waits"], sum(arm["ratings"] for arm in left["arms"])) == (False, 0)


@BOTH_WAYS
async def test_a_worker_goes_on_where_experiments_are_of_another_type(
    client: Client, store: Store, generations: tuple[Lease, Written, Written]
) -> None:
    lease, first, second = generations
    await begun(client, "fits", arms(first, second))
    await store.redis.set(store.keys.experiments, b"x")
    later = await write_generation(store, lease, n_items=ITEMS, seed=3)
    assert await later.writer.flip(automatic=False)
    await serves(client, later.writer.number)
    answers = [(await client.get(f"/predict?user_id={user}&item_id=item-3")).json for user in USERS]
    assert {each["generation"] for each in answers} == {later.writer.number}
    assert not any({"arms", "degraded"} & each.keys() for each in answers)
    assert is_problem(await client.get("/experiments"), 503, "data_damaged")
    damaged = await client.ask("PUT", "/experiments/fits", json=arms(first, second))
    assert is_problem(damaged, 503, "data_damaged")
    # What a person does about it.
    await store.redis.delete(store.keys.experiments)
    await begun(client, "fits", arms(first, second))
    answers = [(await client.get(f"/predict?user_id={user}&item_id=item-3")).json for user in USERS]
    assert {each["arms"]["fits"] for each in answers} == {"old", "new"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -96.0])
async def test_a_sum_that_counts_nothing_is_damage(
    client: Client, store: Store, generations: tuple[Lease, Written, Written], value: float
) -> None:
    await begun(client, "fits", arms(*generations[1:]))
    tally = new_tally()
    tally[0, 0] = value
    await store.redis.hset(store.keys.experiment_sums("fits"), "0", tally.astype("<f8").tobytes())
    assert is_problem(await client.get("/experiments/fits"), 503, "data_damaged")
    assert (await client.get("/metrics")).status == 200


@pytest.mark.slow
async def test_two_workers_agree_from_the_answer_on(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    _, first, second = await two_generations(store)
    with processes(store_settings, tmp_path, workers=2) as service:
        service.wait_for()
        async with client_of(service.url) as client:
            await serves(client, second.writer.number)
            await begun(client, "fits", arms(first, second))
            (experiment,) = (await store.experiments.all()).running
            close = {"headers": {"Connection": "close"}}
            for _ in range(4):
                paths = [f"/predict?user_id={user}&item_id=item-3" for user in USERS]
                replies = await asyncio.gather(*(client.get(path, **close) for path in paths))
                for user, reply in zip(USERS, replies, strict=True):
                    arm = _arm_of(experiment, user)
                    assert reply.json["arms"] == {"fits": arm.name}
                    assert reply.json["generation"] == arm.generation
            found = await until_figures(client, "fits", users=len(USERS))
            # Whichever worker has seen them, and however often.
            assert sum(arm["users"] for arm in found) == len(USERS)
            assert (await client.ask("DELETE", "/experiments/fits?keep=old")).json["followed"]

            async def back() -> bool:
                replies = [await client.get(paths[0], **close) for _ in range(4)]
                return {each.json["generation"] for each in replies} == {first.writer.number}

            await wait_until_async(back, "both workers answer from what was kept")


def _arm_of(experiment: Experiment, user: str) -> Any:
    return experiment.arms[experiment.arm_of(experiment.mark_of(user.encode()))]
