"""A user with very many ratings: what needs all of them has all, and no answer grows with them."""

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.histories import ANSWER_ENTRIES
from tests.support.factories import lead, publish, rating
from tests.support.serving import serves, serving

ITEMS, LEFT = 2 * ANSWER_ENTRIES, 5


@pytest.mark.slow
async def test_calls_about_a_user_with_very_many_ratings(store: Store, store_settings: StoreSettings) -> None:
    ids = [f"item-{row}" for row in range(ITEMS)]
    await store.items(1).register([item.encode() for item in ids])
    rated = ids[:-LEFT]
    await store.ratings.append([rating("ann", item, 1.0 + row % 5) for row, item in enumerate(rated)])
    written = await publish(store, await lead(store), n_items=ITEMS)
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        for _ in range(2):
            # The first reads all and leaves a sample, the second reads that.
            best = (await client.get(f"/recommend/ann?n={LEFT + 5}")).json["items"]
            assert {item["item_id"] for item in best} == set(ids[-LEFT:])
            user = (await client.get("/users/ann")).json
            assert (user["ratings"], user["events"]) == (len(rated), len(rated))
            assert user["mean"] == sum(1.0 + row % 5 for row in range(len(rated))) / len(rated)
            page = (await client.get(f"/users/ann/ratings?limit=2&offset={len(rated) - 2}")).json
            assert ([each["item_id"] for each in page["ratings"]], page["total"]) == (ids[1::-1], len(rated))
            explained = (await client.get(f"/explain/ann/{ids[-1]}")).json
            assert len(explained["parts"]) < ANSWER_ENTRIES
            total = explained["base"] + sum(part["contribution"] for part in explained["parts"])
            assert abs(total - explained["rating"]) < 1e-5
        # The oldest one is known to be there, and to be gone.
        assert (await client.ask("DELETE", "/ratings/ann/item-0")).status == 200
        assert (await client.ask("DELETE", "/ratings/ann/item-0")).status == 404
        assert (await client.get("/users/ann")).json["ratings"] == len(rated) - 1
        best = (await client.get(f"/recommend/ann?n={LEFT + 5}")).json["items"]
        assert {item["item_id"] for item in best} == {*ids[-LEFT:], "item-0"}
        assert (await client.ask("DELETE", "/users/ann")).json["ratings"] == len(rated) - 1
        assert (await client.get("/users/ann")).status == 404
