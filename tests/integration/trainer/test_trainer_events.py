"""A running stack that knows events alone, and no rating: each list answers by the events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.store import Store
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.trainers import fitted, running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

VIEW, PURCHASE, DISLIKE, IMPRESSION = 1, 4, 6, 7
GROUPS, PER_GROUP, USERS, EACH = 4, 10, 60, 7
NOW = 1.7e9
TYPES = (
    *(("view", "positive", 0.25), ("purchase", "positive", 1.0)),
    *(("dislike", "negative", 1.0), ("impression", "shown", 1.0)),
)
pytestmark = pytest.mark.usefixtures("quick_rounds")


def bought() -> list[tuple[int, int]]:
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


def purchases() -> list[tuple[str, str, int]]:
    return [(f"u{user}", f"i{item}", PURCHASE) for user, item in bought()]


def world() -> Columns:
    """Purchases; an item that all dislike, one that was shown to all, and one that half of them looked at."""
    events = purchases()
    for user in range(USERS):
        events += [(f"u{user}", "bad", DISLIKE), (f"u{user}", "shown", IMPRESSION)]
        events += [(f"u{user}", "seen", VIEW)] * (user < USERS // 2)
    return columns(events)


@asynccontextmanager
async def stack(store: Store, settings: TrainerSettings, given: Columns) -> AsyncIterator[Client]:
    await store.ratings.append_columns(given)
    async with running_trainer(settings), serving(settings.store, erase_wait_s=0.0) as (client, _):
        await serves(client, await fitted(store))
        yield client


async def ask(client: Client, path: str) -> dict[str, Any]:
    return dict((await client.get(path)).ok.json)


async def names(client: Client, path: str) -> list[str]:
    return [each["item_id"] for each in (await ask(client, path))["items"]]


async def buy(client: Client, users: list[str], items: list[str]) -> None:
    events = [{"user_id": user, "item_id": item, "type": "purchase"} for user in users for item in items]
    assert (await client.post("/events", events)).status == 200


def group(item_id: str) -> int:
    return int(item_id[1:]) // PER_GROUP


async def test_the_most_popular_has_the_most_positive_events(store: Store, settings: TrainerSettings) -> None:
    types = [{"name": name, "meaning": meaning, "weight": weight} for name, meaning, weight in TYPES]
    await store.event_types.known()
    async with serving(settings.store) as (client, _):
        assert (await client.ask("PUT", "/event-types", json={"types": types})).status == 200
    async with stack(store, settings, world()) as client:
        buyers = {item: sum(other == item for _, other in bought()) for _, item in bought()}
        found = await ask(client, "/popular?n=100")
        listed = {each["item_id"]: each for each in found["items"]}
        assert found["by"] == "events"
        expected = {f"i{item}": (float(count), count) for item, count in buyers.items()}
        expected["seen"] = (0.25 * (USERS // 2), USERS // 2)
        assert {name: (each["score"], each["positives"]) for name, each in listed.items()} == expected
        assert all((each["ratings"], each["mean"]) == (0, None) for each in listed.values())
        # By rating there is nothing, as was asked.
        assert await names(client, "/popular?by=rating") == []
        assert is_problem(await client.get("/popular?by=clicks"), 400, "invalid_parameter")
        # What comes in counts soon, once for each user; what is taken back does not.
        for _ in range(2):
            await buy(client, [f"n{user}" for user in range(40)], ["fresh"])

        async def fresh(score: int) -> bool:
            best, up = [(await ask(client, f"/{path}?n=1"))["items"][0] for path in ("popular", "trending")]
            return (best["item_id"], best["score"], up["item_id"]) == ("fresh", float(score), "fresh")

        await wait_until_async(lambda: fresh(40), "what is bought now is the most popular, and trending")
        # What was done long ago is no trend because it comes in now.
        old = [
            {"user_id": f"o{user}", "item_id": "old", "type": "purchase", "timestamp": NOW - 1e8}
            for user in range(30)
        ]
        assert (await client.post("/events", old)).status == 200
        popular = partial(names, client, "/popular?n=2")
        await wait_until_async(popular, "it is popular", lambda found: found == ["fresh", "old"])
        trending = (await ask(client, "/trending?n=100"))["items"]
        assert (trending[0]["score"], trending[-1]["item_id"]) == (1.0, "old")
        assert trending[-1]["score"] > 0.0
        assert (await client.ask("DELETE", "/events/n0/fresh/purchase")).status == 200
        assert (await client.ask("DELETE", "/users/n1")).status == 200
        await wait_until_async(lambda: fresh(38), "what was taken back and who was forgotten count no more")
        # A refit says the same.
        await serves(client, await fitted(store))
        assert (await ask(client, "/popular?n=1"))["items"][0]["score"] == 38.0


async def test_lists_and_neighbours_follow_the_events(store: Store, settings: TrainerSettings) -> None:
    async with stack(store, settings, columns(purchases())) as client:
        # Of one who purchased seven of a group the other three are what comes next.
        for user in range(GROUPS):
            assert {group(item) for item in await names(client, f"/recommend/u{user}?n=3")} == {user}
        for item in range(0, GROUPS * PER_GROUP, PER_GROUP - 1):
            found = (await ask(client, f"/similar/i{item}?n={PER_GROUP - 1}"))["items"]
            assert {group(each["item_id"]) for each in found} == {item // PER_GROUP}
            scores = [each["score"] for each in found]
            assert scores == sorted(scores, reverse=True)
        near = (await ask(client, "/neighbours/u1?n=14"))["neighbours"]
        assert (await ask(client, "/neighbours/u1?n=2&offset=1"))["neighbours"] == near[1:3]
        assert {int(each["user_id"][1:]) % GROUPS for each in near} == {1}
        assert {(each["ratings"], each["events"]) for each in near} == {(0, EACH)}
        # One who came after the fit, from the next answer on: half of group 0, and two of group 1.
        bought_now = [f"i{item}" for item in (0, 1, 2, 3, 4, 10, 11)]
        await buy(client, ["both"], bought_now)
        for trade_off, groups in ((1.0, [0, 0]), (0.3, [0, 1])):
            reply = await client.post("/recommend/both", {"n": 4, "diversity": {"lambda": trade_off}})
            assert [group(each["item_id"]) for each in reply.json["items"]][:2] == groups
        relevance = (await ask(client, "/explain/both/i5"))["relevance"]
        assert {part["item_id"] for part in relevance["parts"]} == {*bought_now}
        total = relevance["base"] + sum(part["contribution"] for part in relevance["parts"])
        assert total == pytest.approx(relevance["value"], rel=1e-5)
        assert (await ask(client, "/predict?user_id=both&item_id=i0"))["rating"] == 3.0
        gone = (await ask(client, "/neighbours/both?n=5"))["neighbours"][0]["user_id"]
        assert (await client.ask("DELETE", f"/users/{gone}")).status == 200
        left = (await ask(client, "/neighbours/both?n=100"))["neighbours"]
        assert gone not in {each["user_id"] for each in left}
        # An item that came after the fit is like those that are bought with it, and in lists of its group.
        await buy(client, [f"u{user}" for user in range(4, USERS - 8, GROUPS)], ["fresh"])

        async def has_joined() -> bool:
            reply = await client.get("/similar/fresh?n=5")
            near = [each["item_id"] for each in reply.json.get("items", [])]
            # The three that the user has not bought, and this one.
            shown = await names(client, f"/recommend/u{USERS - 4}?n=4")
            return len(near) == 5 and {group(each) for each in near} == {0} and "fresh" in shown

        await wait_until_async(has_joined, "the new item is like those of its group")

        # Who is erased leaves no event in the files of the fit.
        def erased() -> bool:
            found = [np.load(path) for path in settings.archive_folder.glob("*/fits/*/event_values.npy")]
            return bool(found) and all(np.isnan(each).sum() == EACH for each in found)

        await wait_until_async(erased, "the events are gone from the fit")


async def test_implicit_recommends(store: Store, tmp_path: Path) -> None:
    settings = trainer_settings(store.settings, tmp_path / "archive", engine="implicit", lease_ttl_s=30.0)
    async with stack(store, settings, columns(purchases())) as client:
        for user in range(GROUPS):
            assert {group(item) for item in await names(client, f"/recommend/u{user}?n=3")} == {user}
        # Each way of asking: a draw, and by rating, of which there is none.
        for more in ("explore=thompson&seed=1", "order=rating"):
            assert len(await names(client, f"/recommend/u0?n=3&{more}")) == 3
        buyers = [f"u{user}" for user in range(0, USERS - 8, GROUPS)]
        await buy(client, ["new"], [f"i{row}" for row in range(4)])
        await buy(client, ["new", *buyers], ["fresh"])
        assert {group(item) for item in await names(client, "/recommend/new?n=3")} == {0}
        shown, what = partial(names, client, f"/recommend/u{USERS - 4}?n=4"), "the new item is in lists"
        await wait_until_async(shown, what, lambda items: "fresh" in items)
        # A refit, from the head before, and with ratings.
        rows = [{"user_id": user, "item_id": "i0", "rating": 5} for user in buyers]
        assert (await client.post("/ratings", rows)).status == 200
        generation = await fitted(store)
        await serves(client, generation)
        assert (await store.generations.meta(1, generation)).summary.engine == "implicit"
        assert {group(item) for item in await names(client, "/recommend/u1?n=3")} == {1}
