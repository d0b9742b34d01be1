"""The store is away: what a worker holds answers, says so, and stops saying so by itself."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from tests.support.factories import publish_for_ann
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import BOTH_WAYS, Client, client_of, is_problem, processes, serves, serving
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.fault

PAIR = "/predict?user_id=ann&item_id=item-5"
READS = ("/recommend/ann?n=3", "/explain/ann/item-5", "/users/ann")


@pytest.fixture
async def settings(own_server: StoreServer) -> StoreSettings:
    found = StoreSettings(url=own_server.url, partitions=2)
    store = await Store.open(found)
    await publish_for_ann(store, {"item-1": 5.0, "item-2": 1.0})
    await store.close()
    return found


async def back(client: Client) -> bool:
    ready, predicted = await client.get("/readyz"), await client.get(PAIR)
    return ready.status == 200 and "degraded" not in {**ready.json, **predicted.json}


@BOTH_WAYS
async def test_reads_go_on_marked_and_writes_are_refused(
    own_server: StoreServer, settings: StoreSettings
) -> None:
    async with serving(settings) as (client, _):
        await serves(client, 1)
        batch = {"pairs": [["ann", "item-5"], ["ann", "item-6"]]}
        before = [await client.get(path) for path in (PAIR, *READS)]
        pairs = await client.post("/predict", batch)
        assert all(reply.status == 200 and "degraded" not in reply.json for reply in (*before, pairs))
        own_server.kill()
        for path, reply in zip((PAIR, *READS), before, strict=True):
            degraded = await client.get(path)
            assert degraded.status == 200, degraded.text
            # The same answer, and the mark; each list has an id of its own.
            for answer in (degraded.json, reply.json):
                answer.pop("recommendation_id", None)
            assert degraded.json == {**reply.json, "degraded": True}
        assert (await client.post("/predict", batch)).json == {**pairs.json, "degraded": True}
        at = await client.get(f"{PAIR}&timestamp=1e9&distribution=false")
        assert (at.status, at.json["degraded"]) == (200, True)
        # Of a user who was not read nothing is known here, which the basis says.
        unknown = await client.get("/predict?user_id=eve&item_id=item-5")
        assert (unknown.json["basis"], unknown.json["degraded"]) == ("item", True)
        for path in ("/recommend/eve", "/users/eve", "/users/ann/ratings", "/generations"):
            is_problem(await client.get(path), 503, "store_unavailable")
        # These rest on the item table, and on what the call brings.
        assert (await client.get("/similar/item-1")).status == 200
        assert (await client.get("/popular")).status == 200
        anonymous = {"ratings": [{"item_id": "item-1", "rating": 5}], "n": 2}
        assert (await client.post("/recommend", anonymous)).status == 200
        rating = {"user_id": "ann", "item_id": "item-3", "rating": 4}
        for reply in (
            await client.post("/ratings", rating),
            await client.ask("DELETE", "/users/eve"),
            await client.ask("POST", "/train"),
        ):
            is_problem(reply, 503, "store_unavailable")

        async def told() -> bool:
            return "degraded" in (await client.get("/readyz")).json

        await wait_until_async(told, "the next poll has failed")
        ready = await client.get("/readyz")
        assert (ready.status, ready.json) == (
            200,
            {"ready": True, "generation": 1, "epoch": 1, "degraded": True},
        )
        metrics = (await client.get("/metrics")).text
        assert "foldin_store_up 0.0" in metrics
        assert float(metrics.split("\nfoldin_degraded_total ")[1].split("\n")[0]) >= 8
        await asyncio.to_thread(own_server.start)
        await wait_until_async(lambda: back(client), "answers are whole again")


async def test_a_rating_is_in_every_answer_that_is_not_marked(
    own_server: StoreServer, settings: StoreSettings
) -> None:
    """Read-your-writes is what a marked answer gives up, and no other."""
    async with serving(settings) as (client, _):
        await serves(client, 1)
        old = (await client.get(PAIR)).json
        assert (
            await client.post("/ratings", {"user_id": "ann", "item_id": "item-5", "rating": 1})
        ).status == 200
        own_server.kill()
        marked = (await client.get(PAIR)).json
        assert marked == {**old, "degraded": True}
        await asyncio.to_thread(own_server.start)
        await wait_until_async(lambda: back(client), "the store is back")
        assert (await client.get(PAIR)).json["rating"] < old["rating"]


@BOTH_WAYS
async def test_a_forgotten_user_is_not_answered_from_a_copy(
    own_server: StoreServer, settings: StoreSettings
) -> None:
    async with serving(settings, erase_wait_s=0.1) as (client, _):
        await serves(client, 1)
        for path in (PAIR, *READS):
            assert (await client.get(path)).status == 200
        assert (await client.ask("DELETE", "/users/ann")).status == 200
        own_server.kill()
        reply = await client.get(PAIR)
        assert (reply.json["basis"], reply.json["degraded"]) == ("item", True)
        for path in READS:
            is_problem(await client.get(path), 503, "store_unavailable")


async def test_who_was_forgotten_by_one_replica_is_not_answered_from_a_copy_of_another(
    own_server: StoreServer, settings: StoreSettings
) -> None:
    async with serving(settings, erase_wait_s=0.1) as (client, _), serving(settings) as (other, app):
        for each in (client, other):
            await serves(each, 1)
        for path in (PAIR, *READS):
            assert (await other.get(path)).status == 200
        assert (await client.ask("DELETE", "/users/ann")).status == 200
        follower = app[CONTEXT].follower
        told_at = follower.polled_at
        # One poll may have been under way.
        await wait_until_async(lambda: follower.polled_at > told_at + 0.15, "it is polled")
        own_server.kill()
        reply = await other.get(PAIR)
        assert (reply.json["basis"], reply.json["degraded"]) == ("item", True)
        for path in READS:
            is_problem(await other.get(path), 503, "store_unavailable")


async def test_a_store_that_misses_replicas_is_read_and_followed(
    own_server: StoreServer, settings: StoreSettings
) -> None:
    """With `min-replicas-to-write` it refuses every write, the beat of a worker, too."""
    async with serving(settings) as (client, app), Redis.from_url(own_server.url) as administrator:
        await serves(client, 1)
        follower = app[CONTEXT].follower
        await administrator.config_set("min-replicas-to-write", 1)
        rating = {"user_id": "ann", "item_id": "item-3", "rating": 4}
        is_problem(await client.post("/ratings", rating), 503, "store_unavailable")
        refused_at = follower.polled_at
        # Two beats are refused meanwhile.
        await wait_until_async(lambda: follower.polled_at > refused_at + 1.0, "it is polled")
        assert follower.failures_total == 0
        assert await back(client)
        await administrator.config_set("min-replicas-to-write", 0)
        assert (await client.post("/ratings", rating)).status == 200


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_known_users_wait_for_the_store_once_under_load(how: str, tmp_path: Path) -> None:
    with running_server(KIND, tmp_path) as server:
        settings = StoreSettings(url=server.url, partitions=2, timeout_s=1.0)
        store = await Store.open(settings)
        await publish_for_ann(store, {"item-1": 5.0, "item-2": 1.0})
        await store.close()
        with processes(settings, tmp_path) as service:
            async with client_of(service.url) as client:
                await serves(client, 1)
                whole = (await client.get(PAIR)).json
                took: list[float] = []
                stop = asyncio.Event()

                async def ask() -> None:
                    while not stop.is_set():
                        began = time.monotonic()
                        reply = await client.get(PAIR)
                        assert reply.status == 200, reply.text
                        assert reply.json in (whole, {**whole, "degraded": True})
                        if "degraded" in reply.json:
                            took.append(time.monotonic() - began)

                asking = [asyncio.create_task(ask()) for _ in range(8)]
                (server.kill if how == "kill" else server.pause)()
                await wait_until_async(lambda: len(took) > 500, "copies answer")
                # Of those that wait for the time-out of a store that stands still each does so once.
                assert sum(seconds >= settings.timeout_s for seconds in took) <= len(asking)
                await asyncio.to_thread(server.start if how == "kill" else server.resume)
                await wait_until_async(lambda: back(client), "answers are whole again")
                stop.set()
                await asyncio.gather(*asking)


async def test_the_status_waits_once_for_a_store_that_hangs(
    own_server: StoreServer, settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.operations.status._PROBE_TIMEOUT_S", 3.0)
    async with serving(replace(settings, timeout_s=30.0)) as (client, _):
        await serves(client, 1)
        own_server.pause()
        try:
            began = time.monotonic()
            found = (await client.get("/status")).json
            assert (found["store_up"], found["backed_up"]) == (False, None)
            assert 2.9 < time.monotonic() - began < 5.9
        finally:
            own_server.resume()
