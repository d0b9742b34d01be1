"""Lists that are about no user, under rules."""

import re
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from featurestore.catalogue.item import CatalogueItem
from featurestore.generations.activity import activity_to_bytes
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.routes import lists
from tests.support.factories import Written, lead, publish, publish_for_ann
from tests.support.serving import Client, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 12


def film(row: int, since: float | None = None) -> CatalogueItem:
    """Every third one is a drama, the others crime; a tag is that of four neighbours."""
    categories = ["drama" if row % 3 == 0 else "crime"]
    tags = [f"tag-{row // 4}"]
    return CatalogueItem(f"item-{row}", f"Film {row}", categories, {"tags": tags}, available_from=since)


async def put(store: Store, *films: CatalogueItem) -> None:
    def becomes(each: CatalogueItem) -> Callable[[CatalogueItem | None], CatalogueItem]:
        return lambda _: each

    await store.catalogue.change({each.item_id.encode(): becomes(each) for each in films})


@pytest.fixture
async def client(
    store_settings: StoreSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    # Off the event loop, as of a large catalogue.
    monkeypatch.setattr(lists, "_QUICK_ROWS", 0)
    written: Written = await publish_for_ann(store, {"item-0": 5.0}, ITEMS)
    await put(store, *map(film, range(ITEMS)))
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        yield client


async def listed(client: Client, path: str) -> dict[int, float | None]:
    """Rows in their order, with what they are listed by."""
    reply = await client.get(path)
    assert reply.status == 200, reply.text
    assert not re.search(r'"score":\d*\.\d{7}', reply.text), "as many digits as a rating has"
    return {
        int(item["item_id"].removeprefix("item-")): item.get("score", item.get("available_from"))
        for item in reply.json["items"]
    }


async def test_items_are_alike_by_content_by_behaviour_and_by_both(client: Client, store: Store) -> None:
    behaviour = await listed(client, "/similar/item-3?n=100")
    assert behaviour == await listed(client, "/similar/item-3?n=100&by=behaviour")
    assert 3 not in behaviour
    content = await listed(client, "/similar/item-3?n=100&by=content")
    # Both texts; then one of three, by row.
    assert content == {0: 1.0, 1: 0.333333, 2: 0.333333, 6: 0.333333, 9: 0.333333}
    assert list(content) == [0, 1, 2, 6, 9]
    both = await listed(client, "/similar/item-3?n=100&by=both")
    expected = {
        row: ((content.get(row) or 0.0) + max(behaviour.get(row) or 0.0, 0.0)) / 2
        for row in {*content, *behaviour}
    }
    assert both == pytest.approx(expected, abs=2e-6)
    scores = [score or 0.0 for score in both.values()]
    assert scores == sorted(scores, reverse=True)
    assert set(await listed(client, "/similar/item-3?n=100&by=content&category=drama")) == {0, 6, 9}
    # An item that has never been rated is like others by content alone.
    await put(store, CatalogueItem("new", "New", ["drama"]))
    assert set(await listed(client, "/similar/new?by=content")) == {0, 3, 6, 9}
    assert await listed(client, "/similar/new") == {}


async def test_what_is_pinned_stands_in_lists_that_do_not_rank_it(client: Client, store: Store) -> None:
    await put(store, CatalogueItem("item-99", "Unrated, and like nothing"))
    pinned = [{"item_id": "item-99", "position": 1}, {"item_id": "item-3", "position": 2}]
    assert (await client.ask("PUT", "/scenarios/shop", json={"pinned": pinned})).status == 200

    async def known() -> bool:
        return 99 in await listed(client, "/latest?n=100")

    await wait_until_async(known, "the row of the item")
    for path in ("/similar/item-3?n=3", "/similar/item-3?n=3&by=both", "/popular?n=3", "/latest?n=3"):
        plain, found = list(await listed(client, path)), list(await listed(client, f"{path}&scenario=shop"))
        # An item is not like itself, wherever it is pinned.
        first = [99] if path.startswith("/similar") else [99, 3]
        assert found == [*first, *[row for row in plain if row not in first]][:3], path


async def test_the_most_loved_of_a_category(client: Client) -> None:
    loved = await listed(client, "/popular?n=100")
    drama = await listed(client, "/popular?n=100&category=drama")
    assert list(drama) == [row for row in loved if row % 3 == 0]
    assert 3 not in await listed(client, "/popular?n=100&exclude_items=item-3")
    reply = await client.get("/popular?category=opera")
    assert (reply.json["items"], reply.json["reason"]) == ([], "no item passes the filter")
    rules = {"per_category": 1, "boosts": [{"filter": {}, "multiply": 2}]}
    assert (await client.ask("PUT", "/scenarios/front", json=rules)).status == 200
    assert len(await listed(client, "/popular?n=100&scenario=front")) == 2


async def test_the_latest_come_first(client: Client, store: Store) -> None:
    assert list(await listed(client, "/latest?n=100")) == list(range(ITEMS))[::-1]
    now = time.time()
    await put(store, film(2, now - 60), film(5, now - 3600), film(7, now - 60), film(9, now + 3600))
    latest = await listed(client, "/latest?n=100")
    rest = [row for row in range(ITEMS) if row not in (2, 5, 7, 9)][::-1]
    assert list(latest) == [7, 2, 5, *rest]
    assert list(latest.values())[:4] == pytest.approx([now - 60, now - 60, now - 3600, None])
    assert list(await listed(client, "/latest?n=2")) == [7, 2]
    assert list(await listed(client, "/latest?n=4&category=drama")) == [6, 3, 0]
    # A score is boosted, a time is not.
    rules = {"boosts": [{"filter": {"must": [{"has_id": ["item-0"]}]}, "multiply": 10}]}
    assert (await client.ask("PUT", "/scenarios/front", json=rules)).status == 200
    assert await listed(client, "/latest?n=100&scenario=front") == latest


async def test_what_is_rated_of_late_comes_first(store_settings: StoreSettings, store: Store) -> None:
    now, week = time.time(), 7 * 86_400.0
    times = [[now - 4 * week] * 5, [now] * 2, [], [now]]
    indptr = np.cumsum([0, *map(len, times), 0, 0, 0, 0]).astype(np.int64)
    activity = activity_to_bytes(indptr, np.concatenate([np.array(each) for each in times]), now_s=now)
    await store.items(1).register([b"item-%d" % row for row in range(8)])
    lease = await lead(store)
    written = await publish(store, lease, n_items=8, activity=activity)
    await put(store, *map(film, range(8)))
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        trending = await listed(client, "/trending")
        assert trending == pytest.approx({1: 2.0, 3: 1.0, 0: 5 / 16}, rel=1e-3)
        assert list(trending) == [1, 3, 0]
        assert list(await listed(client, "/trending?category=drama")) == [3, 0]
        # Hidden ones and deleted ones are in no list, and the next in their place.
        assert (await client.ask("PATCH", "/items/item-1", json={"hidden": True})).status == 200
        assert (await client.ask("DELETE", "/items/item-3")).status == 200
        assert list(await listed(client, "/trending")) == [0]
        assert not {1, 3} & set(await listed(client, "/latest?n=100"))
        assert (await client.ask("PATCH", "/items/item-1", json={"hidden": False})).status == 200
        await put(store, film(3))
        assert list(await listed(client, "/trending")) == [1, 3, 0]
        # Three ratings more of item 5, folded in by a trainer.
        rows = np.array([5], dtype=np.int32)
        await store.generations.claim_deltas(lease, 1, written.writer.number)
        await store.generations.push_delta(lease, 1, written.writer.number, rows, written.items[rows])

        async def known() -> bool:
            return 5 in await listed(client, "/trending")

        await wait_until_async(known, "the item that is rated now")
        # Its count was 3, of which the fit that was published says nothing.
        assert list(await listed(client, "/trending")) == [5, 1, 3, 0]
    older = await publish(store, lease, n_items=8)
    async with serving(store_settings) as (client, _):
        await serves(client, older.writer.number)
        reply = await client.get("/trending")
        assert (reply.json["items"], reply.json["reason"]) == ([], lists.NO_ACTIVITY)
