"""A running stack that knows events alone, and no rating: each list answers, by the events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.neighbours import nearest
from tests.support.recovering import opened
from tests.support.servers import StoreServer
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.trainers import fitted, running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

VIEW, PURCHASE, DISLIKE, IMPRESSION = 1, 4, 6, 7
GROUPS, PER_GROUP, USERS, EACH = 4, 10, 60, 7
NOW = 1.7e9


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive")


def bought() -> list[tuple[int, int]]:
    """User and item: each buys seven of one of four groups."""
    rng = np.random.default_rng(4)
    return [
        (user, user % GROUPS * PER_GROUP + item)
        for user in range(USERS)
        for item in rng.permutation(PER_GROUP)[:EACH].tolist()
    ]


def columns(events: list[tuple[str, str, int]]) -> Columns:
    users, items, codes = zip(*events, strict=True)
    times = NOW + np.arange(len(events), dtype=np.float64)
    return Columns(
        [user.encode() for user in users],
        [item.encode() for item in items],
        *(np.ones(len(events)), times, np.array(codes, dtype=np.uint8)),
    )


def purchases() -> Columns:
    return columns([(f"u{user}", f"i{item}", PURCHASE) for user, item in bought()])


def world() -> Columns:
    """Purchases; an item that all dislike, one that was shown to all, and one that half of them looked at."""
    events = [(f"u{user}", f"i{item}", PURCHASE) for user, item in bought()]
    for user in range(USERS):
        events += [(f"u{user}", "bad", DISLIKE), (f"u{user}", "shown", IMPRESSION)]
        events += [(f"u{user}", "seen", VIEW)] * (user < USERS // 2)
    return columns(events)


@asynccontextmanager
async def stack(store: Store, settings: TrainerSettings, *, more: bool = True) -> AsyncIterator[Client]:
    """`more`: events beside the purchases."""
    await store.ratings.append_columns(world() if more else purchases())
    async with running_trainer(settings), serving(settings.store) as (client, _):
        await serves(client, await fitted(store))
        yield client


async def ask(client: Client, path: str) -> dict[str, Any]:
    reply = await client.get(path)
    assert reply.status == 200, reply.text
    found: dict[str, Any] = reply.json
    return found


async def names(client: Client, path: str) -> list[str]:
    return [each["item_id"] for each in (await ask(client, path))["items"]]


def group(item_id: str) -> int:
    return int(item_id[1:]) // PER_GROUP


async def test_the_most_popular_have_the_most_positive_events_by_weight(
    store: Store, settings: TrainerSettings
) -> None:
    types = [
        {"name": name, "meaning": meaning, "weight": weight}
        for name, meaning, weight in (
            *(("view", "positive", 0.25), ("purchase", "positive", 1.0)),
            *(("dislike", "negative", 1.0), ("impression", "shown", 1.0)),
        )
    ]
    await store.event_types.known()
    async with serving(settings.store) as (client, _):
        assert (await client.ask("PUT", "/event-types", json={"types": types})).status == 200
    async with stack(store, settings) as client:
        buyers = {item: sum(other == item for _, other in bought()) for _, item in bought()}
        found = await ask(client, "/popular?n=100")
        listed = {each["item_id"]: each for each in found["items"]}
        assert found["by"] == "events"
        expected = {f"i{item}": (float(count), count) for item, count in buyers.items()}
        expected["seen"] = (0.25 * (USERS // 2), USERS // 2)
        assert {name: (each["score"], each["positives"]) for name, each in listed.items()} == expected
        assert all((each["ratings"], each["mean"]) == (0, None) for each in listed.values())
        scores = [each["score"] for each in found["items"]]
        assert scores == sorted(scores, reverse=True)
        assert (await ask(client, "/items/seen"))["positives"] == USERS // 2
        assert (await ask(client, "/items/bad"))["positives"] == 0
        # By rating there is nothing, as was asked.
        assert await names(client, "/popular?by=rating") == []
        assert is_problem(await client.get("/popular?by=clicks"), 400, "invalid_parameter")
        # What comes in counts within a second or so, once for each user; what is taken back does not.
        events = [{"user_id": f"n{user}", "item_id": "fresh", "type": "purchase"} for user in range(40)]
        assert (await client.post("/events", [*events, *events])).status == 200

        async def first() -> bool:
            best = (await ask(client, "/popular?n=1"))["items"][0]
            return (best["item_id"], best["score"], best["positives"]) == ("fresh", 40.0, 40)

        await wait_until_async(first, "what is bought now is the most popular")
        # And is trending, by what the fit did not know.
        rising = (await ask(client, "/trending?n=1"))["items"][0]
        assert (rising["item_id"], rising["score"]) == ("fresh", 40.0)
        assert (await client.ask("DELETE", "/events/n0/fresh/purchase")).status == 200
        assert (await client.ask("DELETE", "/users/n1")).status == 200

        async def fewer() -> bool:
            return bool((await ask(client, "/items/fresh"))["positives"] == 38)

        await wait_until_async(fewer, "what was taken back, and who was forgotten, counts no more")
        # A refit says the same, and so does a worker that begins with it.
        await serves(client, await fitted(store))
        assert (await ask(client, "/popular?n=1"))["items"][0]["score"] == 38.0


async def test_items_are_alike_and_lists_diverse_by_the_events(
    store: Store, settings: TrainerSettings
) -> None:
    async with stack(store, settings, more=False) as client:
        for item in range(0, GROUPS * PER_GROUP, PER_GROUP - 1):
            found = (await ask(client, f"/similar/i{item}?n={PER_GROUP - 1}"))["items"]
            assert {group(each["item_id"]) for each in found} == {item // PER_GROUP}
            scores = [each["score"] for each in found]
            assert scores == sorted(scores, reverse=True)
            assert 0 < scores[-1] <= scores[0] <= 1
            # Other groups are not like it.
            (last,) = (await ask(client, f"/similar/i{item}?n=100&by=behaviour"))["items"][-1:]
            assert last["score"] < 0.5 * scores[-1]
        assert (await names(client, "/similar/i0?n=3&by=both"))[0] in await names(client, "/similar/i0?n=9")
        # Half of group 0, and two of group 1.
        events = [
            {"user_id": "both", "item_id": f"i{item}", "type": "purchase"} for item in (0, 1, 2, 3, 4, 10, 11)
        ]
        assert (await client.post("/events", events)).status == 200
        lists = {}
        for trade_off in (1.0, 0.3):
            body = {"n": 4, "diversity": {"lambda": trade_off}}
            reply = await client.post("/recommend/both", body)
            lists[trade_off] = [group(each["item_id"]) for each in reply.json["items"]]
        assert lists[1.0] == [0, 0, 0, 0]
        # The second item is of the other group.
        assert lists[0.3][:2] == [0, 1]
        # An item that came after the fit is like those that are bought with it.
        buyers = [f"u{user}" for user in range(0, USERS - 8, GROUPS)]
        more = [{"user_id": user, "item_id": "fresh", "type": "purchase"} for user in buyers]
        assert (await client.post("/events", more)).status == 200

        async def is_alike() -> bool:
            reply = await client.get("/similar/fresh?n=5")
            near = [each["item_id"] for each in reply.json.get("items", [])]
            return len(near) == 5 and {group(each) for each in near} == {0}

        await wait_until_async(is_alike, "the new item is like those of its group")
        assert "fresh" in await names(client, "/similar/i0?n=20")


@pytest.mark.parametrize("at_once", [nearest._HISTORIES_AT_ONCE, 7])
async def test_neighbours_bought_of_the_same_group(
    store: Store, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(nearest, "_HISTORIES_AT_ONCE", at_once)
    async with stack(store, settings) as client:
        for user in (0, 1, 2, 3):
            found = await ask(client, f"/neighbours/u{user}?n=14")
            assert found["among"] == USERS - 1
            near = found["neighbours"]
            assert len(near) == 14
            assert {int(each["user_id"][1:]) % GROUPS for each in near} == {user}
            assert all(0 < each["similarity"] <= 1 for each in near)
            assert all(each["ratings"] == 0 for each in near)
            # Purchases, a dislike, an impression, and a view of half of them.
            assert {each["events"] for each in near} <= {EACH + 2, EACH + 3}
        # One who came after the fit has neighbours at once; one who is forgotten is none's.
        events = [{"user_id": "new", "item_id": f"i{item}", "type": "purchase"} for item in range(4)]
        assert (await client.post("/events", events)).status == 200
        near = (await ask(client, "/neighbours/new?n=5"))["neighbours"]
        assert {int(each["user_id"][1:]) % GROUPS for each in near} == {0}
        gone = near[0]["user_id"]
        assert (await client.ask("DELETE", f"/users/{gone}")).status == 200
        left = (await ask(client, "/neighbours/new?n=100"))["neighbours"]
        assert gone not in {each["user_id"] for each in left}
        assert is_problem(await client.get("/neighbours/stranger"), 404, "unknown_user")


async def test_neighbours_without_the_store_are_those_of_the_last_reading(
    own_server: StoreServer, tmp_path: Path
) -> None:
    store_settings = StoreSettings(
        url=own_server.url, namespace="events", partitions=4, scale="1:5", timeout_s=5.0
    )
    async with (
        opened(store_settings) as store,
        stack(store, trainer_settings(store_settings, tmp_path / "archive")) as client,
    ):
        before = await ask(client, "/neighbours/u0?n=5")
        own_server.kill()
        assert await ask(client, "/neighbours/u0?n=5") == {**before, "degraded": True}
        # Once for each answer.
        assert "\nfoldin_degraded_total 1.0\n" in (await client.get("/metrics")).text


async def test_where_there_are_ratings_they_say_it_unless_events_are_asked_for(
    store: Store, settings: TrainerSettings
) -> None:
    async with stack(store, settings) as client:
        # One that someone tried out changes nothing, however it is read.
        assert (
            await client.post("/ratings", [{"user_id": "u0", "item_id": "i0", "rating": 4}])
        ).status == 200
        await serves(client, await fitted(store))
        assert (await ask(client, "/popular"))["by"] == "events"
        assert {group(each) for each in await names(client, "/similar/i0?n=5")} == {0}
        found = await ask(client, "/neighbours/u0?n=14")
        assert found["among"] == USERS - 1
        assert {int(each["user_id"][1:]) % GROUPS for each in found["neighbours"]} == {0}
        rng = np.random.default_rng(1)
        rows = [
            {"user_id": f"u{user}", "item_id": f"i{item}", "rating": int(rng.integers(1, 6))}
            for user in range(USERS)
            for item in range(5)
        ]
        assert (await client.post("/ratings", rows)).status == 200
        await serves(client, await fitted(store))
        found = await ask(client, "/popular?n=100")
        assert "by" not in found
        assert {each["item_id"] for each in found["items"]} == {f"i{item}" for item in range(5)}
        assert all("positives" not in each for each in found["items"])
        by_events = await ask(client, "/popular?n=100&by=events")
        assert len(by_events["items"]) == GROUPS * PER_GROUP + 1
        assert {each["ratings"] for each in by_events["items"]} == {0, USERS}
        # Of an item that has ratings these tell, of another its events.
        assert {*await names(client, "/similar/i0?n=100")} == {f"i{item}" for item in range(1, 5)}
        near = [each for each in await names(client, "/similar/i39?n=6") if each != "seen"]
        assert {group(each) for each in near} == {3}
