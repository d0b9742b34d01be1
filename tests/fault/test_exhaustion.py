"""The whole of Foldin where room runs out: ratings are refused before anything is lost, what frees and what
leads goes on, and it comes back by itself.
"""

import uuid
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import low_rank_ratings
from tests.support.servers import StoreServer
from tests.support.serving import Client, is_problem, serving
from tests.support.trainers import fitted, running_trainer, trainer_settings, until_drained, until_live
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.fault

# By promise: within this time of there being room.
BACK_WITHIN_S = 10.0
RATINGS = "/ratings"


def call_of(prefix: str, count: int = 500) -> list[dict[str, object]]:
    """Ratings of as many users, whose long ids take the store a quarter of a megabyte."""
    return [
        {"user_id": f"{prefix}-{number}-{'u' * 180}", "item_id": f"i{number % 12}", "rating": 3}
        for number in range(count)
    ]


async def takes_ratings(client: Client) -> bool:
    return (await client.post(RATINGS, call_of("back", 1))).status == 200


async def fill(client: Client) -> None:
    """Rate until the store refuses."""
    for _ in range(200):
        reply = await client.post(RATINGS, call_of(uuid.uuid4().hex[:8]))
        if reply.status != 200:
            assert is_problem(reply, 507, "store_full")
            assert int(reply.headers["Retry-After"]) >= 1
            return
    raise AssertionError("the store never filled up")


async def test_a_store_without_memory_refuses_ratings_and_comes_back(
    own_server: StoreServer, tmp_path: Path
) -> None:
    settings = StoreSettings(url=own_server.url, partitions=4, timeout_s=5.0)
    trainer = trainer_settings(settings, tmp_path / "archive")
    store = await Store.open(settings)
    try:
        async with serving(settings) as (client, _):
            async with running_trainer(trainer):
                await store.ratings.append(low_rank_ratings())
                await fitted(store)
                used = (await store.redis.info("memory"))["used_memory"]
                await store.redis.config_set("maxmemory", used + 2**21)
                await fill(client)
                # Trimmed streams gave some back: from here on nothing is enough.
                await store.redis.config_set("maxmemory", "1mb")
                live = (await store.generations.live()).generation
                await until_drained(store)
                is_problem(await client.post(RATINGS, call_of("no", 1)), 507, "store_full")
                await reads_go_on(client)
                await is_forgotten(client, "u0")
                is_problem(await client.ask("POST", "/train"), 507, "store_full")
                history = {"user_history": [0], "item_history": [0], "rating_history": [3], "replace": True}
                body = {"nb_users": 1, "nb_items": 1, **history}
                is_problem(await client.post("/train", body), 507, "store_full")
            # Another trainer takes over, and what was half done is gone.
            async with running_trainer(trainer) as second:
                await wait_until_async(lambda: second.term is not None, 20, "the second trainer leads")
                pointer = await store.generations.live()
                assert (pointer.generation, pointer.pending) == (live, 0)
                await is_forgotten(client, "u1")
                await reads_go_on(client)
                await store.redis.config_set("maxmemory", "0")
                await wait_until_async(
                    lambda: takes_ratings(client), BACK_WITHIN_S, "ratings are taken again"
                )
                assert await fitted(store) > live
                await until_live(store, live + 1)
                await until_drained(store)
    finally:
        await store.close()


async def reads_go_on(client: Client) -> None:
    """Answers as ever, of a user whose record is behind too."""
    for path in ("/predict?user_id=u2&item_id=i1", "/recommend/u2", "/users/u3", "/popular", "/readyz"):
        reply = await client.get(path)
        assert reply.status == 200, (path, reply.text)


async def is_forgotten(client: Client, user: str) -> None:
    """Forget a user, in the archive too."""
    reply = await client.ask("DELETE", f"/users/{user}")
    assert reply.status == 200, reply.text
    receipt = reply.json["receipt"]

    async def erased() -> bool:
        return bool((await client.get(f"/receipts/{receipt}")).json["archive"] == "erased")

    await wait_until_async(erased, 20, f"{user} is erased")
