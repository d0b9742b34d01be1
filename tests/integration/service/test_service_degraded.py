"""The store is away: what a worker holds answers, says so, and stops saying so by itself."""

import asyncio

import pytest

from featurestore.settings import StoreSettings
from tests.support.factories import opened, publish_for_ann
from tests.support.servers import StoreServer
from tests.support.serving import BOTH_WAYS, Client, is_problem, serving
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.fault

PAIR = "/predict?user_id=ann&item_id=item-5"
READS = ("/recommend/ann?n=3", "/explain/ann/item-5", "/users/ann")


@pytest.fixture
async def settings(own_server: StoreServer) -> StoreSettings:
    found = StoreSettings(url=own_server.url, partitions=2, timeout_s=30.0)
    async with opened(found) as store:
        await publish_for_ann(store, {"item-1": 5.0, "item-2": 1.0})
    return found


async def back(client: Client) -> bool:
    ready, predicted = await client.get("/readyz"), await client.get(PAIR)
    return ready.status == 200 and "degraded" not in {**ready.json, **predicted.json}


@BOTH_WAYS
async def test_reads_go_on_marked_and_writes_are_refused(
    own_server: StoreServer, settings: StoreSettings
) -> None:
    async with serving(settings, live=1) as (client, _):
        batch = {"pairs": [["ann", "item-5"], ["ann", "item-6"]]}
        before = [await client.get(path) for path in (PAIR, *READS)]
        pairs = await client.post("/predict", batch)
        assert all(reply.status == 200 and "degraded" not in reply.json for reply in (*before, pairs))
        # Read-your-writes is what a marked answer gives up, and no other: this rating is in none.
        sent = {"user_id": "ann", "item_id": "item-5", "rating": 1}
        assert (await client.post("/ratings", sent)).status == 200
        own_server.kill()
        for path, reply in zip((PAIR, *READS), before, strict=True):
            degraded = (await client.get(path)).ok
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
        ready = await wait_until_async(
            lambda: client.get("/readyz"), "the next poll has failed", lambda reply: "degraded" in reply.json
        )
        assert ready.json == {"ready": True, "generation": 1, "epoch": 1, "degraded": True}
        metrics = (await client.get("/metrics")).text
        assert "foldin_store_up 0.0" in metrics
        assert float(metrics.split("\nfoldin_degraded_total ")[1].split("\n")[0]) >= 8
        await asyncio.to_thread(own_server.start)
        await wait_until_async(lambda: back(client), "answers are whole again")
        assert (await client.get(PAIR)).json["rating"] < before[0].json["rating"]
        # Reads and ratings go over connections of their own, which come back one after the other.
        await wait_until_async(
            lambda: client.post("/ratings", rating),
            "ratings are taken again",
            lambda reply: reply.status == 200,
        )
