"""Where room runs out ratings are refused before anything is lost, and it comes back by itself."""

from operator import not_

import pytest

from featurestore.settings import StoreSettings
from service.context import CONTEXT
from tests.support.disks import leave_free, small_disk
from tests.support.factories import low_rank_ratings, opened, rating
from tests.support.servers import StoreServer
from tests.support.serving import Client, is_problem, serving, until_receipt
from tests.support.trainers import archived, fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.slow, pytest.mark.fault]

RATINGS, RATING = "/ratings", {"user_id": "more", "item_id": "i1", "rating": 3}
HISTORY = {"nb_users": 1, "nb_items": 1, "user_history": [0], "item_history": [0], "rating_history": [3]}
HISTORY["replace"] = True


async def takes_ratings(client: Client) -> bool:
    return (await client.post(RATINGS, RATING)).status == 200


async def test_a_store_without_memory_refuses_and_comes_back(own_server: StoreServer) -> None:
    settings = StoreSettings(url=own_server.url, partitions=4, timeout_s=5.0)
    trainer = trainer_settings(settings, own_server.folder / "archive")
    async with opened(settings) as store, serving(settings) as (client, _):
        async with running_trainer(trainer):
            await store.ratings.append(low_rank_ratings())
            await fitted(store)
            await store.redis.config_set("maxmemory", "1mb")
            live = (await store.generations.live()).generation
            await until_drained(store)
            is_problem(await client.post(RATINGS, RATING), 507, "store_full")
            await reads_go_on(client)
            await is_forgotten(client, "u0")
            is_problem(await client.ask("POST", "/train"), 507, "store_full")
            is_problem(await client.post("/train", HISTORY), 507, "store_full")
        # Another trainer takes over, and what was half done is gone.
        async with running_trainer(trainer) as second:
            await wait_until_async(lambda: second.term is not None, "the second trainer leads")
            pointer = await store.generations.live()
            assert (pointer.generation, pointer.pending) == (live, 0)
            await is_forgotten(client, "u1")
            await reads_go_on(client)
            await store.redis.config_set("maxmemory", "0")
            await wait_until_async(lambda: takes_ratings(client), "ratings are taken again")
            assert await fitted(store) > live
            await until_drained(store)


async def test_a_disk_that_fills_up_refuses_ratings_before_it_is_full(own_server: StoreServer) -> None:
    settings = StoreSettings(url=own_server.url, partitions=4, timeout_s=5.0)
    async with opened(settings) as store:
        with small_disk(own_server.folder / "disk", 192) as disk:
            trainer = trainer_settings(settings, disk / "archive")
            async with serving(settings) as (client, app), running_trainer(trainer) as running:
                await store.ratings.append(low_rank_ratings())
                await fitted(store)
                live = await store.generations.live()
                # To the watermark: most of what is left is free.
                leave_free(disk, 48)
                await wait_until_async(lambda: takes_ratings(client), "ratings are refused", not_)
                is_problem(await client.post(RATINGS, RATING), 507, "disk_full")
                assert app[CONTEXT].follower.full == "archive_disk"
                assert 'foldin_refusing{reason="archive_disk"} 1.0' in (await client.get("/metrics")).text
                is_problem(await client.post("/train", HISTORY), 507, "disk_full")
                await reads_go_on(client)
                await is_forgotten(client, "u0")
                # To the last byte, with events that wait: past the service, which refuses them.
                leave_free(disk, 0)
                late = [rating("late", f"i{n}") for n in range(200)]
                await store.ratings.append(late)
                await wait_until_async(
                    lambda: store.stream.lag(1), "events wait", lambda lag: sum(lag.values()) >= 200
                )
                assert running.term is not None
                await reads_go_on(client)
                (disk / "filler").unlink()
                await wait_until_async(lambda: takes_ratings(client), "ratings are taken again")
                assert app[CONTEXT].follower.full is None
                assert 'foldin_refusing{reason="archive_disk"} 0.0' in (await client.get("/metrics")).text
                await until_drained(store)
                # One leader, all along.
                assert (await store.generations.live()).fence == live.fence
            kept = [(user, item) for user, _, item, _ in archived(trainer) if user == "late"]
            assert sorted(kept) == sorted((each.user_id.decode(), each.item_id.decode()) for each in late)


async def reads_go_on(client: Client) -> None:
    for path in ("/predict?user_id=u2&item_id=i1", "/recommend/u2", "/users/u3", "/popular", "/readyz"):
        assert (await client.get(path)).ok.json, path


async def is_forgotten(client: Client, user: str) -> None:
    reply = (await client.ask("DELETE", f"/users/{user}")).ok
    # The files of the store are rewritten for it, beside other tests on busy cores.
    await until_receipt(client, reply.json["receipt"])
