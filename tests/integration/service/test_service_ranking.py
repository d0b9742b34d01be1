"""Lists by the ranking head, asked of workers over one store: read-your-writes, the parts of a score, and
what is answered without a head.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest

from factors import RankingHead, Scorer, posterior_of
from factors.ranking.blending import blended
from featurestore.codecs import pack_histories
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written, lead, make_head, publish, rating
from tests.support.serving import Client, serves, serving

ITEMS = 40
RATED = {"item-0": 5.0, "item-1": 1.0, "item-7": 4.0}


@pytest.fixture(scope="module")
def head() -> RankingHead:
    return make_head(ITEMS)


@pytest.fixture
async def written(store: Store, head: RankingHead) -> Written:
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    await store.ratings.append([rating("ann", item, value) for item, value in RATED.items()])
    return await publish(store, await lead(store), n_items=ITEMS, users=[b"ann"], head=head)


@pytest.fixture
async def clients(store_settings: StoreSettings, written: Written) -> AsyncIterator[list[Client]]:
    """Two workers over one store."""
    async with AsyncExitStack() as ends:
        found = []
        for _ in range(2):
            client, _ = await ends.enter_async_context(serving(store_settings))
            await serves(client, written.writer.number)
            found.append(client)
        yield found


async def by_hand(store: Store, written: Written, head: RankingHead) -> dict[str, tuple[float, float, float]]:
    """Score, relevance and rating of every item for ann, from the history as it is stored."""
    _, history = await store.users.history(1, b"ann")
    packed, posterior = pack_histories([history]), posterior_of(written.model)
    user = posterior.fold_in_users(written.items, packed)
    rows = np.arange(ITEMS)
    rating = Scorer(posterior, written.items).rating(user, np.zeros(ITEMS, np.int64), rows)
    relevance = head.scores(packed, rows)
    scores = blended(relevance, rating, head.parameters.gamma, written.model.scale)
    columns = zip(scores.tolist(), relevance.tolist(), rating.tolist(), strict=True)
    return {f"item-{row}": parts for row, parts in enumerate(columns)}


async def test_a_rating_counts_in_the_next_list_of_every_worker(
    clients: list[Client], store: Store, written: Written, head: RankingHead
) -> None:
    one, other = clients
    before = (await other.get("/recommend/ann?n=5")).json
    best = before["items"][0]["item_id"]
    reply = await one.post("/ratings", {"user_id": "ann", "item_id": best, "rating": 5})
    assert reply.status == 200
    after = (await other.get("/recommend/ann?n=5")).json
    assert best not in {item["item_id"] for item in after["items"]}
    assert [item["score"] for item in after["items"]] != [item["score"] for item in before["items"][1:]]
    # As folding the history in by hand has it, not as some worker may still remember.
    expected = await by_hand(store, written, head)
    for item in after["items"]:
        parts = (item["score"], item["relevance"], item["rating"])
        assert parts == pytest.approx(expected[item["item_id"]], rel=1e-4, abs=1e-6)
    assert (await one.get("/recommend/ann?n=5")).json["items"] == after["items"]
    # And taken back.
    assert (await other.ask("DELETE", f"/ratings/ann/{best}")).status == 200
    assert (await one.get("/recommend/ann?n=5")).json["items"] == before["items"]


async def test_a_list_is_every_item_in_the_order_of_its_score(
    clients: list[Client], store: Store, written: Written, head: RankingHead
) -> None:
    client, _ = clients
    expected = await by_hand(store, written, head)
    reply = (await client.get("/recommend/ann?n=1000")).json
    assert (reply["order"], len(reply["items"])) == ("score", ITEMS - len(RATED))
    order = sorted(set(expected) - set(RATED), key=lambda item: expected[item], reverse=True)
    scores = [item["score"] for item in reply["items"]]
    assert scores == pytest.approx([expected[item][0] for item in order], rel=1e-4, abs=1e-6)
    shifted = (await client.get("/recommend/ann?n=3&offset=2")).json["items"]
    assert shifted == reply["items"][2:5]
    assert len((await client.get("/recommend/ann?n=1000&exclude_seen=false")).json["items"]) == ITEMS
    body = {"ratings": [{"item_id": item, "rating": value} for item, value in RATED.items()], "n": 1000}
    anonymous = (await client.post("/recommend", body)).json
    assert [item["item_id"] for item in anonymous["items"]] == [item["item_id"] for item in reply["items"]]


async def test_the_order_by_rating_is_that_of_predictions(clients: list[Client]) -> None:
    client, _ = clients
    reply = (await client.get("/recommend/ann?n=1000&order=rating")).json
    assert reply["order"] == "rating"
    assert all(item["score"] == item["rating"] and "relevance" not in item for item in reply["items"])
    item_ids = [f"item-{row}" for row in range(ITEMS) if f"item-{row}" not in RATED]
    asked = (await client.post("/predict", {"user_id": "ann", "item_ids": item_ids})).json["predictions"]
    ratings = sorted((each["rating"] for each in asked), reverse=True)
    assert [item["rating"] for item in reply["items"]] == pytest.approx(ratings, abs=1e-5)


async def test_an_explanation_adds_up_to_what_is_served(clients: list[Client]) -> None:
    client, _ = clients
    for item in (await client.get("/recommend/ann?n=1000")).json["items"]:
        why = (await client.get(f"/explain/ann/{item['item_id']}")).json
        parts = why["relevance"]["parts"]
        total = why["relevance"]["base"] + sum(part["contribution"] for part in parts)
        assert round(total, 6) == why["relevance"]["value"] == round(why["relevance"]["value"], 6)
        assert why["relevance"]["value"] == pytest.approx(item["relevance"], rel=1e-4, abs=2e-6)
        assert why["score"] == pytest.approx(item["score"], rel=1e-4, abs=2e-6)
        assert {part["item_id"] for part in parts} == set(RATED)
        rated = why["base"] + sum(part["contribution"] for part in why["parts"])
        assert round(rated, 6) == why["rating"] == pytest.approx(item["rating"], abs=1e-5)
    unknown = (await client.get("/explain/ann/unheard-of")).json
    assert (unknown["score"], unknown["relevance"]["value"], unknown["relevance"]["parts"]) == (0.0, 0.0, [])


async def test_a_draw_is_repeatable_and_tells_the_expected_numbers(
    clients: list[Client], store: Store, written: Written, head: RankingHead
) -> None:
    client, other = clients
    path = "/recommend/ann?n=10&explore=thompson&seed="
    first = (await client.get(f"{path}1")).json
    assert (await other.get(f"{path}1")).json["items"] == first["items"]
    orders = {
        tuple(item["item_id"] for item in (await client.get(f"{path}{k}")).json["items"]) for k in range(9)
    }
    assert len(orders) > 1
    expected = await by_hand(store, written, head)
    for item in first["items"]:
        assert item["item_id"] not in RATED
        parts = (item["score"], item["relevance"], item["rating"])
        assert parts == pytest.approx(expected[item["item_id"]], rel=1e-4, abs=1e-6)


async def test_without_a_head_lists_are_by_rating(
    store: Store, store_settings: StoreSettings, written: Written
) -> None:
    # Damaged after it was published.
    chunk = store.keys.index_chunk(1, written.writer.number, 0)
    await store.redis.setrange(chunk, 200, b"other bytes")
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        reply = (await client.get("/recommend/ann?n=5")).json
        assert reply["order"] == "rating"
        assert reply["items"] == (await client.get("/recommend/ann?n=5&order=rating")).json["items"]
        assert "relevance" not in (await client.get("/explain/ann/item-9")).json
        metrics = (await client.get("/metrics")).text
        assert 'foldin_ranking_head{worker="0"} 0.0' in metrics
