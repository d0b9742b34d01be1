"""Events of types other than ratings in a running stack: learned by the ranking head, and by nothing else."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.serving import Client, serves, serving
from tests.support.trainers import fitted, running_trainer, trainer_settings
from tests.support.waiting import wait_until_async
from trainer.settings import TrainerSettings

PURCHASE, DISLIKE = 4, 6
GROUPS, PER_GROUP, USERS = 4, 10, 60


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive")


@pytest.fixture
async def client(store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        yield client


def purchases(users: range, code: int = PURCHASE) -> Columns:
    """Users who purchase most of one group of items."""
    rng = np.random.default_rng(4)
    pairs = [
        (b"u%d" % user, b"i%d" % (user % GROUPS * PER_GROUP + item))
        for user in users
        for item in rng.permutation(PER_GROUP)[:7].tolist()
    ]
    size = len(pairs)
    times, codes = 1e9 + np.arange(size, dtype=np.float64), np.full(size, code, dtype=np.uint8)
    return Columns([user for user, _ in pairs], [item for _, item in pairs], np.ones(size), times, codes)


async def best(client: Client, user: str) -> list[str]:
    return [each["item_id"] for each in (await client.get(f"/recommend/{user}?n=3")).json["items"]]


async def test_a_store_of_events_alone_recommends(
    store: Store, settings: TrainerSettings, client: Client
) -> None:
    await store.ratings.append_columns(purchases(range(USERS)))
    async with running_trainer(settings):
        await serves(client, await fitted(store))
        # Of one who purchased seven of a group the other three are what comes next.
        for user in range(GROUPS):
            shown = await best(client, f"u{user}")
            assert {int(item[1:]) // PER_GROUP for item in shown} == {user}
        # One who came after the fit, from the next answer on.
        new = purchases(range(USERS, USERS + 1))
        events = [
            {"user_id": "new", "item_id": item.decode(), "type": "purchase"} for item in new.item_id[:4]
        ]
        assert (await client.post("/events", events)).status == 200
        shown = await best(client, "new")
        assert {int(item[1:]) // PER_GROUP for item in shown} == {USERS % GROUPS}
        found = (await client.get(f"/explain/new/{shown[0]}")).json
        relevance = found["relevance"]
        assert {part["item_id"] for part in relevance["parts"]} == {each["item_id"] for each in events}
        total = relevance["base"] + sum(part["contribution"] for part in relevance["parts"])
        assert total == pytest.approx(relevance["value"], rel=1e-5)
        assert found["parts"] == []
        rated = (await client.get("/predict?user_id=new&item_id=i0")).json
        assert rated["rating"] == 3.0


async def test_the_engine_implicit_recommends_by_events_alone(
    store: Store, store_settings: StoreSettings, tmp_path: Path, client: Client
) -> None:
    settings = trainer_settings(store_settings, tmp_path / "archive", engine="implicit")
    await store.ratings.append_columns(purchases(range(USERS)))
    async with running_trainer(settings):
        await serves(client, await fitted(store))
        for user in range(GROUPS):
            assert {int(item[1:]) // PER_GROUP for item in await best(client, f"u{user}")} == {user}
        # Each way of asking: a draw, and by rating, of which there is none.
        for more in ("explore=thompson&seed=1", "order=rating"):
            reply = await client.get(f"/recommend/u0?n=3&{more}")
            assert (reply.status, len(reply.json["items"])) == (200, 3)
        events = [{"user_id": "new", "item_id": f"i{row}", "type": "purchase"} for row in range(4)]
        buyers = ["new", *(f"u{user}" for user in range(0, USERS - 8, GROUPS))]
        events += [{"user_id": user, "item_id": "fresh", "type": "purchase"} for user in buyers]
        assert (await client.post("/events", events)).status == 200
        shown = await best(client, "new")
        assert {int(item[1:]) // PER_GROUP for item in shown} == {0}

        async def is_shown() -> bool:
            return "fresh" in await best(client, f"u{USERS - 4}")

        await wait_until_async(is_shown, "the new item is in lists of its group")
        why = (await client.get(f"/explain/new/{shown[0]}")).json
        total = why["relevance"]["base"] + sum(part["contribution"] for part in why["relevance"]["parts"])
        assert total == pytest.approx(why["relevance"]["value"], rel=1e-5)
        # A refit, from the head before.
        await serves(client, await fitted(store))
        assert {int(item[1:]) // PER_GROUP for item in await best(client, "u1")} == {1}


async def test_an_item_that_came_after_the_fit_joins_by_its_events(
    store: Store, settings: TrainerSettings, client: Client
) -> None:
    await store.ratings.append_columns(purchases(range(USERS)))
    async with running_trainer(settings):
        await serves(client, await fitted(store))
        buyers = [f"u{user}" for user in range(0, USERS - 8, GROUPS)]
        events = [{"user_id": user, "item_id": "fresh", "type": "purchase"} for user in buyers]
        assert (await client.post("/events", events)).status == 200

        async def is_shown() -> bool:
            # To one who purchased of the same group, and not this item.
            return "fresh" in await best(client, f"u{USERS - 4}")

        await wait_until_async(is_shown, "the new item is in lists of its group")
        assert "fresh" not in await best(client, f"u{USERS - 3}")


async def test_a_user_who_is_erased_leaves_no_event(
    store: Store, settings: TrainerSettings, client: Client
) -> None:
    await store.ratings.append_columns(purchases(range(USERS)))
    async with running_trainer(settings):
        outcome = await fitted(store)
        await serves(client, outcome)
        assert (await client.ask("DELETE", "/users/u0")).status == 200
        files = settings.archive_folder / "epoch-000001" / "fits"

        def erased() -> bool:
            found = sorted(files.glob("*/event_values.npy"))
            return bool(found) and all(np.isnan(np.load(path)).sum() == 7 for path in found)

        await wait_until_async(erased, "the events are gone from the fit")
        assert (await client.get("/users/u0/events")).status == 404
        again = await fitted(store)
        assert again > outcome


@pytest.mark.slow
async def test_ratings_are_learned_from_ratings_alone(
    store: Store, settings: TrainerSettings, client: Client
) -> None:
    columns = purchases(range(USERS), code=0)
    rng = np.random.default_rng(1)
    ratings = Columns(
        columns.user_id, columns.item_id, rng.integers(1, 6, len(columns)).astype(np.float64), columns.time
    )
    await store.ratings.append_columns(ratings)
    async with running_trainer(settings):
        await fitted(store)
        before = (await client.get("/items/i0")).json
        await store.ratings.append_columns(purchases(range(USERS), code=DISLIKE))
        await serves(client, await fitted(store))
        after = (await client.get("/items/i0")).json
        assert (after["ratings"], after["mean"]) == (before["ratings"], before["mean"])
