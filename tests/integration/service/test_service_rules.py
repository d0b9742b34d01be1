"""Lists under rules over HTTP: filters, boosts, caps, pinned places, scenarios, by whichever worker."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from factors import Ranker, posterior_of
from featurestore.catalogue.item import AttributeValue, CatalogueItem
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service import call_rules
from service.rules.rerank import unit
from tests.support.factories import (
    Written,
    lead,
    make_head,
    make_items,
    make_model,
    publish,
    publish_for_ann,
    rating,
)
from tests.support.serving import Client, is_problem, serves, serving

ITEMS = 12
OLD = {"must": [{"key": "year", "range": {"lt": 1906}}]}


def film(row: int, **changes: Any) -> CatalogueItem:
    """Every third one is a drama, the others crime, all of the year 1900 + row."""
    categories = ["drama" if row % 3 == 0 else "crime"]
    attributes: dict[str, AttributeValue] = {"year": 1900.0 + row, "country": "fr" if row % 2 else "us"}
    return CatalogueItem(f"item-{row}", f"Film {row}", categories, attributes, **changes)


async def put(store: Store, *films: CatalogueItem) -> None:
    def becomes(each: CatalogueItem) -> Callable[[CatalogueItem | None], CatalogueItem]:
        return lambda _: each

    await store.catalogue.schema.hold("items", {"year": "number", "country": "text", "length": "number"})
    await store.catalogue.change({each.item_id.encode(): becomes(each) for each in films})


@pytest.fixture
async def published(store: Store) -> Written:
    written = await publish_for_ann(store, {"item-0": 5.0, "item-1": 1.0, "item-2": 4.0}, ITEMS)
    await put(store, *map(film, range(ITEMS)))
    return written


@pytest.fixture
async def client(store_settings: StoreSettings, published: Written) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        await serves(client, published.writer.number)
        yield client


async def listed(client: Client, path: str = "/recommend/ann", **body: Any) -> list[int]:
    reply = await (client.post(path, {"n": 100, **body}) if body else client.get(path))
    assert reply.status == 200, reply.text
    return [int(item["item_id"].removeprefix("item-")) for item in reply.json["items"]]


async def test_filters_leave_what_passes_in_its_order(client: Client) -> None:
    best = await listed(client, "/recommend/ann?n=100")
    assert set(best) == set(range(3, ITEMS))
    assert await listed(client, filter={}) == best
    assert await listed(client, filter=OLD) == [row for row in best if row < 6]
    assert await listed(client, filter=OLD, exclude_items=["item-3"]) == [
        row for row in best if row in (4, 5)
    ]
    assert await listed(client, candidate_items=["item-9", "item-4", "gone"]) == [
        row for row in best if row in (4, 9)
    ]
    assert await listed(client, filter={"must_not": [{"has_id": ["item-7"]}]}) == [
        row for row in best if row != 7
    ]
    seen = await listed(client, filter=OLD, exclude_seen=False)
    assert set(seen) == set(range(6))
    # By GET, and for someone who is not stored.
    assert await listed(client, "/recommend/ann?n=100&category=drama") == [
        row for row in best if row % 3 == 0
    ]
    assert set(await listed(client, "/recommend/ann?n=100&exclude_items=item-3,,item-4,gone")) == {*best} - {
        3,
        4,
    }
    ratings = [{"item_id": "item-3", "rating": 5}]
    assert set(await listed(client, "/recommend", ratings=ratings, filter=OLD)) == {0, 1, 2, 4, 5}


async def test_an_empty_list_says_why(client: Client, store: Store) -> None:
    async def why(path: str, body: Any = None) -> str | None:
        reply = await (client.get(path) if body is None else client.post(path, body))
        assert reply.status == 200, reply.text
        assert ("reason" in reply.json) == (not reply.json["items"])
        found: str | None = reply.json.get("reason")
        return found

    everything = (await client.get("/recommend/new?n=1000")).json["items"]
    ids = [each["item_id"] for each in everything]
    future = {"filter": {"must": [{"key": "year", "range": {"gt": 3000}}]}}
    path = "/recommend/ann"
    assert await why(path, {}) is None
    assert await why(path, future) == "no item passes the filter"
    assert await why(f"{path}?category=opera") == "no item passes the filter"
    assert await why(path, {"candidate_items": ["item-0"]}) == call_rules.ALL_SEEN
    assert await why(path, {"candidate_items": ["gone"]}) == call_rules.NO_CANDIDATE
    both = {"candidate_items": ids[:3], "exclude_items": ids[:3]}
    assert await why(path, both) == call_rules.ALL_EXCLUDED
    assert await why(f"{path}?offset=9999") == call_rules.BEHIND
    # Of several reasons the first that leaves nothing of what those before it have left.
    assert await why(path, {**both, **future}) == "no item passes the filter"
    for rated in ids:
        await store.ratings.append([rating("all", rated)])
    assert await why("/recommend/all") == call_rules.ALL_SEEN
    assert await why("/recommend/all?exclude_seen=false") is None
    hidden = [{"item_id": item_id, "hidden": True, "attributes": {"year": 1900}} for item_id in ids]
    assert (await client.post("/items", hidden)).status == 200
    for each in (path, "/recommend/new", "/popular", "/latest", f"/similar/{ids[0]}"):
        assert await why(each) == call_rules.NONE_SHOWN
    assert (await client.ask("PATCH", f"/items/{ids[0]}", json={"hidden": False})).status == 200
    old = {"filter": {"must": [{"has_id": [ids[1]]}]}}
    assert await why("/recommend/new", old) == call_rules.NONE_PASSES_SHOWN
    assert await why(f"/similar/{ids[0]}") == call_rules.NONE_SHOWN


async def test_caps_pinned_places_and_diversity(client: Client) -> None:
    best = await listed(client, "/recommend/ann?n=100")
    capped = await listed(client, per_category=1)
    assert capped == [best[0], next(row for row in best if (row % 3 == 0) != (best[0] % 3 == 0))]
    pinned = [{"item_id": "item-11", "position": 2}, {"item_id": "item-0", "position": 4}]
    # An item that was rated and does not pass the filter is shown where an editor wants it.
    rows = await listed(client, pinned=pinned, filter=OLD)
    rest = [row for row in best if row < 6]
    assert rows == [rest[0], 11, rest[1], 0, *rest[2:]]
    assert await listed(client, pinned=pinned, exclude_items=["item-0", "item-11"]) == [
        row for row in best if row != 11
    ]
    assert await listed(client, diversity={"lambda": 1}) == best


async def test_diversity_is_that_of_its_definition(store: Store, store_settings: StoreSettings) -> None:
    # Items of as many tastes: those of the other worlds differ in their bias alone.
    n, model, rng = 200, make_model(), np.random.default_rng(3)
    items = make_items(model, n)
    items[:, 2:5] += rng.normal(0.0, 0.8, (n, 3)).astype(np.float32)
    await store.items(1).register([b"item-%d" % row for row in range(n)])
    written = await publish(store, await lead(store), n_items=n, items=items)
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        best = (await client.get(f"/recommend/new?n={n}")).json["items"]
        score = {int(each["item_id"].removeprefix("item-")): each["score"] - 1.0 for each in best}
        vectors = unit(Ranker(posterior_of(model), items).directions(np.arange(n)))
        chosen: list[int] = []
        while len(chosen) < 20:
            left = [row for row in score if row not in chosen]
            nearest = {
                row: max((float(vectors[row] @ vectors[k]) for k in chosen), default=0.0) for row in left
            }
            chosen.append(
                max(left, key=lambda row: 0.5 * score[row] / max(score.values()) - 0.5 * nearest[row])
            )
        assert chosen != list(score)[:20]
        assert await listed(client, "/recommend/new", n=20, diversity={"lambda": 0.5}) == chosen
        for offset in (0, 10):
            page = await listed(client, "/recommend/new", n=10, offset=offset, diversity={"lambda": 0.5})
            assert page == chosen[offset : offset + 10]


async def test_what_is_hidden_is_in_no_list_whatever_the_rules_say(
    client: Client, store: Store, store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings) as (other, _):
        await serves(other, published.writer.number)
        body: dict[str, Any] = {
            "pinned": [{"item_id": "item-5", "position": 1}],
            "candidate_items": ["item-5", "item-6"],
        }
        assert await listed(other, **body) == [5, 6]
        await put(store, film(5, hidden=True), film(6, available_from=time.time() + 60))
        for worker in (client, other):
            assert await listed(worker, **body) == []
        # A new attribute, and a category, are there for the next answer of each.
        await put(store, CatalogueItem("item-7", categories=["opera"], attributes={"length": 90.0}))
        for worker in (client, other):
            assert await listed(worker, "/recommend/ann?category=opera") == [7]
            condition = {"must": [{"key": "length", "match": {"value": 90}}]}
            assert await listed(worker, filter=condition) == [7]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"filter": {"must": [{"key": "price", "range": {"lt": 3}}]}}, "/filter/must/0/key"),
    ({"filter": [1]}, "/filter"),
    ({"boosts": [{"filter": {}, "multiply": 100}]}, "/boosts/0/multiply"),
    ({"diversity": {"lambda": 2}}, "/diversity/lambda"),
    ({"per_category": 0}, "/per_category"),
    ({"per_category": 1, "n": 1000, "offset": 1}, "/n"),
    ({"per_category": 1, "explore": "thompson"}, "/explore"),
    ({"pinned": [{"item_id": "a", "position": 0}]}, "/pinned/0/position"),
]


async def test_rules_that_are_wrong_are_named(client: Client) -> None:
    for body, field in WRONG:
        reply = await client.post("/recommend/ann", body)
        assert is_problem(reply, 422, "invalid_rule")
        assert reply.json["field"] == field
        assert is_problem(await client.post("/recommend", {"ratings": [], **body}), 422, "invalid_rule")


async def test_a_scenario_is_the_one_that_was_put_last(
    client: Client, store_settings: StoreSettings, published: Written
) -> None:
    best = await listed(client, "/recommend/ann?n=100")
    async with serving(store_settings) as (other, _):
        await serves(other, published.writer.number)
        for low in (1906, 1909):
            rules = {"filter": {"must": [{"key": "year", "range": {"gte": low}}]}, "per_category": 50}
            reply = await client.ask("PUT", "/scenarios/home", json=rules)
            assert (reply.status, reply.json) == (200, {"name": "home", **rules})
            for worker in (client, other):
                assert (await worker.get("/scenarios/home")).json == {"name": "home", **rules}
                later = [row for row in best if row >= low - 1900]
                assert await listed(worker, "/recommend/ann?n=100&scenario=home") == later
                # What the call says takes the place of what the scenario says; a category narrows it.
                assert await listed(worker, scenario="home", filter=OLD) == [row for row in best if row < 6]
                drama = "/recommend/ann?n=100&scenario=home&category=drama"
                assert await listed(worker, drama) == [row for row in later if row % 3 == 0]
        assert (await other.get("/scenarios")).json == {"scenarios": ["home"]}
        assert (await client.get("/recommend/ann?scenario=home")).status == 200
        assert (await other.ask("DELETE", "/scenarios/home")).json == {"deleted": 1}
        for worker in (client, other):
            assert is_problem(await worker.get("/recommend/ann?scenario=home"), 404, "unknown_scenario")
            assert is_problem(await worker.get("/scenarios/home"), 404, "unknown_scenario")
        assert is_problem(await other.ask("DELETE", "/scenarios/home"), 404, "unknown_scenario")


async def test_a_scenario_is_checked_when_it_is_put(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"filter": {"must": [{"key": "price", "range": {"lt": 3}}]}}
    reply = await client.ask("PUT", "/scenarios/home", json=wrong)
    assert is_problem(reply, 422, "invalid_rule")
    assert is_problem(await client.ask("PUT", "/scenarios/a%20b", json={}), 400, "invalid_parameter")
    monkeypatch.setattr("featurestore.catalogue.scenarios.MOST_SCENARIOS", 1)
    assert (await client.ask("PUT", "/scenarios/home", json={})).status == 200
    assert (await client.ask("PUT", "/scenarios/home", json={"per_category": 2})).status == 200
    assert is_problem(await client.ask("PUT", "/scenarios/more", json={}), 422, "too_many_scenarios")
    # Foreign bytes under its name are told, and can be replaced.
    await store.scenarios.put(b"home", b"\xff{")
    for path in ("/recommend/ann?scenario=home", "/scenarios/home"):
        assert is_problem(await client.get(path), 503, "data_damaged")
    assert (await client.ask("PUT", "/scenarios/home", json={})).status == 200
    assert (await client.get("/recommend/ann?scenario=home")).status == 200


async def test_rules_are_about_the_score_of_the_ranking_head(
    store: Store, store_settings: StoreSettings
) -> None:
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    await store.ratings.append([rating("ann", "item-0", 5.0)])
    written = await publish(store, await lead(store), n_items=ITEMS, users=[b"ann"], head=make_head(ITEMS))
    await put(store, *map(film, range(ITEMS)))
    async with serving(store_settings) as (client, _):
        await serves(client, written.writer.number)
        plain = (await client.post("/recommend/ann", {"n": 100})).json
        assert plain["order"] == "score"
        boosts = [{"filter": OLD, "multiply": 3.0}]
        items = (await client.post("/recommend/ann", {"n": 100, "boosts": boosts})).json["items"]
        expected = {
            item["item_id"]: item["score"] * (3.0 if int(item["item_id"][5:]) < 6 else 1.0)
            for item in plain["items"]
        }
        assert {item["item_id"]: item["score"] for item in items} == pytest.approx(expected, abs=4e-6)
        # The parts of a score stay as they are; of scores of 0 the more relevant item stands first.
        parts = {item["item_id"]: (item["relevance"], item["rating"]) for item in plain["items"]}
        for item in items:
            assert (item["relevance"], item["rating"]) == pytest.approx(parts[item["item_id"]], abs=1e-6)
        ranks = [(-item["score"], -item["relevance"]) for item in items]
        assert ranks == sorted(ranks)
        capped = await listed(client, per_category=2, diversity={"lambda": 0.5})
        assert sorted(row % 3 == 0 for row in capped) == [False, False, True, True]
        by_rating = (await client.post("/recommend/ann", {"n": 3, "order": "rating", "filter": OLD})).json
        assert by_rating["order"] == "rating"
        assert all(int(item["item_id"][5:]) < 6 for item in by_rating["items"])
