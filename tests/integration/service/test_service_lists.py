"""Lists under rules over HTTP, about a user and about none, by whichever worker."""

import re
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from factors import Ranker, posterior_of
from featurestore.catalogue.item import AttributeValue, CatalogueItem
from featurestore.generations.activity import activity_to_bytes
from featurestore.store import Store
from service import call_rules
from service.routes import lists
from service.rules.rerank import unit
from tests.support.factories import Written, lead, make_items, make_model, publish, publish_for_ann, put_items
from tests.support.serving import Client, is_problem, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 12
OLD = {"must": [{"key": "year", "range": {"lt": 1906}}]}


def film(row: int, **changes: Any) -> CatalogueItem:
    """Every third one is a drama, the others crime; a tag is that of four neighbours."""
    attributes: dict[str, AttributeValue] = {"year": 1900.0 + row, "tags": [f"tag-{row // 4}"]}
    genre = "drama" if row % 3 == 0 else "crime"
    return CatalogueItem(f"item-{row}", f"Film {row}", [genre], attributes, **changes)


async def put(store: Store, *films: CatalogueItem) -> None:
    await store.catalogue.schema.hold("items", {"year": "number", "length": "number", "tags": "list"})
    await put_items(store, *films)


@pytest.fixture
async def published(store: Store) -> Written:
    written = await publish_for_ann(store, {"item-0": 5.0, "item-1": 1.0, "item-2": 4.0}, ITEMS)
    await put(store, *map(film, range(ITEMS)))
    return written


async def scores_of(client: Client, path: str, body: Any = None) -> dict[int, float | None]:
    reply = (await (client.get(path) if body is None else client.post(path, {"n": 100, **body}))).ok
    assert not re.search(r'"score":\d*\.\d{7}', reply.text), "as many digits as a rating has"
    return {
        int(item["item_id"].removeprefix("item-")): item.get("score", item.get("available_from"))
        for item in reply.json["items"]
    }


async def listed(client: Client, path: str = "/recommend/ann", **body: Any) -> list[int]:
    return list(await scores_of(client, path, body or None))


async def test_rules_of_a_list_for_a_user(client: Client) -> None:
    best = await listed(client, "/recommend/ann?n=100")
    assert set(best) == set(range(3, ITEMS))
    assert await listed(client, filter={}) == best
    assert await listed(client, filter=OLD) == [row for row in best if row < 6]
    some = [row for row in best if row in (4, 5)]
    assert await listed(client, filter=OLD, exclude_items=["item-3"]) == some
    some = [row for row in best if row in (4, 9)]
    assert await listed(client, candidate_items=["item-9", "item-4", "gone"]) == some
    assert set(await listed(client, filter=OLD, exclude_seen=False)) == set(range(6))
    # By GET, and for someone who is not stored.
    drama = [row for row in best if row % 3 == 0]
    assert await listed(client, "/recommend/ann?n=100&category=opera,drama") == drama
    excluded = "/recommend/ann?n=100&exclude_items=item-3,,item-4,gone"
    assert set(await listed(client, excluded)) == {*best} - {3, 4}
    ratings = [{"item_id": "item-3", "rating": 5}]
    assert set(await listed(client, "/recommend", ratings=ratings, filter=OLD)) == {0, 1, 2, 4, 5}
    # Boosts multiply what is above the low end of the scale.
    plain = await scores_of(client, "/recommend/ann", {"filter": {}})
    boosts = [{"filter": OLD, "multiply": 0.5}]
    boosted = await scores_of(client, "/recommend/ann", {"boosts": boosts})
    expected = {row: 1 + ((score or 0.0) - 1) * (0.5 if row < 6 else 1.0) for row, score in plain.items()}
    assert boosted == pytest.approx(expected, abs=2e-6)
    page = await listed(client, n=2, offset=3, boosts=boosts)
    assert page == list(boosted)[3:5]
    # Caps, pinned places and diversity; what was rated is shown where an editor wants it.
    capped = await listed(client, per_category=1)
    assert capped == [best[0], next(row for row in best if (row % 3 == 0) != (best[0] % 3 == 0))]
    pinned = [{"item_id": "item-11", "position": 2}, {"item_id": "item-0", "position": 4}]
    rest = [row for row in best if row < 6]
    assert await listed(client, pinned=pinned, filter=OLD) == [rest[0], 11, rest[1], 0, *rest[2:]]
    barred = await listed(client, pinned=pinned, exclude_items=["item-0", "item-11"])
    assert barred == [row for row in best if row != 11]
    assert await listed(client, diversity={"lambda": 1}) == best


async def test_an_empty_list_says_why(client: Client) -> None:
    async def why(path: str, body: Any = None) -> str | None:
        reply = (await (client.get(path) if body is None else client.post(path, body))).ok
        assert ("reason" in reply.json) == (not reply.json["items"])
        found: str | None = reply.json.get("reason")
        return found

    ids = [f"item-{row}" for row in range(ITEMS)]
    future = {"filter": {"must": [{"key": "year", "range": {"gt": 3000}}]}}
    both = {"candidate_items": ids[3:6], "exclude_items": ids[3:6]}
    path = "/recommend/ann"
    assert await why(path, {}) is None
    # Of several reasons the first that leaves nothing of what those before it have left.
    for body in (future, {**both, **future}):
        assert await why(path, body) == "no item passes the filter"
    assert await why("/popular?category=opera") == "no item has category 'opera'"
    # Both, as a filter of the caller's is in one of a scenario's.
    tags = [{"item_id": each, "attributes": {"kind": "Green Tea"}} for each in ids]
    assert (await client.post("/items", tags)).status == 200
    meant = {"filter": {"must": {"should": {"key": "kind", "match": {"any": ["cocoa", "green tea"]}}}}}
    assert await why(path, meant) == "no item has kind 'green tea': is 'Green Tea' meant?"
    assert await why(path, {"candidate_items": ["item-0"]}) == call_rules.ALL_SEEN
    assert await why(path, {"candidate_items": ["gone"]}) == call_rules.NO_CANDIDATE
    assert await why(path, both) == call_rules.ALL_EXCLUDED
    assert await why(f"{path}?offset=9999") == call_rules.BEHIND
    assert (await client.post("/items", [{"item_id": each, "hidden": True} for each in ids])).status == 200
    for each in (path, "/recommend/new", "/popular", "/latest", f"/similar/{ids[0]}"):
        assert await why(each) == call_rules.NONE_SHOWN


async def test_diversity_is_that_of_its_definition(store: Store) -> None:
    # Items of as many tastes: those of the other worlds differ in their bias alone.
    n, model, rng = 400, make_model(), np.random.default_rng(3)
    items = make_items(model, n)
    items[:, 2:5] += rng.normal(0.0, 0.8, (n, 3)).astype(np.float32)
    written = await publish_for_ann(store, {}, n, items=items)
    async with serving(store.settings, live=written.writer.number) as (client, _):
        best = (await client.get(f"/recommend/new?n={n}")).json["items"]
        score = {int(each["item_id"].removeprefix("item-")): each["score"] - 1.0 for each in best}
        vectors = unit(Ranker(posterior_of(model), items).directions(np.arange(n)))
        chosen: list[int] = []
        while len(chosen) < 60:
            left = [row for row in score if row not in chosen]
            near = {row: max((float(vectors[row] @ vectors[k]) for k in chosen), default=0.0) for row in left}
            most = max(score.values())
            chosen.append(max(left, key=lambda row: 0.5 * score[row] / most - 0.5 * near[row]))
        assert chosen != list(score)[:60]
        for n, offset in ((60, 0), (20, 0), (20, 20), (20, 40)):
            page = await listed(client, "/recommend/new", n=n, offset=offset, diversity={"lambda": 0.5})
            assert page == chosen[offset : offset + n]


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


async def test_a_scenario_is_the_one_that_was_put_last(client: Client, other: Client) -> None:
    best = await listed(client, "/recommend/ann?n=100")
    for low in (1906, 1909):
        rules = {"filter": {"must": [{"key": "year", "range": {"gte": low}}]}, "per_category": 50}
        reply = await client.ask("PUT", "/scenarios/home", json=rules)
        assert (reply.status, reply.json) == (200, {"name": "home", **rules})
        later = [row for row in best if row >= low - 1900]
        for worker in (client, other):
            assert (await worker.get("/scenarios/home")).json == {"name": "home", **rules}
            assert await listed(worker, "/recommend/ann?n=100&scenario=home") == later
            # An item must pass the filter of the call too; a category narrows it further.
            even = {"must_not": [{"has_id": ["item-10"]}]}
            assert await listed(worker, scenario="home", filter=even) == [row for row in later if row != 10]
            assert await listed(worker, scenario="home", filter=OLD) == []
            # Nor does a call pin what the scenario leaves out.
            pinned = [{"item_id": "item-1", "position": 1}]
            assert await listed(worker, scenario="home", pinned=pinned) == later
            drama = "/recommend/ann?n=100&scenario=home&category=drama"
            assert await listed(worker, drama) == [row for row in later if row % 3 == 0]
    # Exclusions are joined, candidates are those of both, and the smaller cap holds.
    few = [f"item-{row}" for row in (2, 4, 5, 8)]
    rules = {"exclude_items": few[:1], "candidate_items": few, "per_category": 2}
    assert (await client.ask("PUT", "/scenarios/few", json=rules)).status == 200
    own = [f"item-{row}" for row in range(3, 9)]
    found = await listed(other, scenario="few", exclude_items=few[1:2], candidate_items=own)
    assert set(found) == {5, 8}
    assert len(await listed(other, scenario="few", per_category=1, exclude_items=[])) == 1
    assert (await client.ask("DELETE", "/scenarios/few")).json == {"deleted": 1}
    # How many there are, what counts as seen, and a draw: a call that says nothing has the scenario's.
    rules = {"n": 4, "exclude_seen": False, "explore": "thompson"}
    assert (await client.ask("PUT", "/scenarios/home", json=rules)).status == 200
    answer = (await other.get("/recommend/ann?scenario=home")).json
    assert (len(answer["items"]), "seed" in answer) == (4, True)
    own = (await other.post("/recommend/ann", {"scenario": "home", "n": ITEMS, "explore": "none"})).json
    assert (len(own["items"]), "seed" in own) == (ITEMS, False)
    assert len((await other.get("/popular?scenario=home")).json["items"]) == 4
    for wrong in ({"n": 0}, {"explore": "much"}, {"explore": "thompson", "per_category": 2}):
        is_problem(await client.ask("PUT", "/scenarios/home", json=wrong), 422, "invalid_rule")
    assert (await other.get("/scenarios")).json == {"scenarios": ["home"]}
    assert (await other.ask("DELETE", "/scenarios/home")).json == {"deleted": 1}
    for worker in (client, other):
        for path in ("/recommend/ann?scenario=home", "/scenarios/home"):
            assert is_problem(await worker.get(path), 404, "unknown_scenario")
    assert is_problem(await other.ask("DELETE", "/scenarios/home"), 404, "unknown_scenario")


async def test_wrong_rules_are_named(client: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for body, field in WRONG:
        assert is_problem(await client.post("/recommend/ann", body), 422, "invalid_rule", field=field)
        assert is_problem(await client.post("/recommend", {"ratings": [], **body}), 422, "invalid_rule")
    assert is_problem(await client.ask("PUT", "/scenarios/home", json=WRONG[0][0]), 422, "invalid_rule")
    assert is_problem(await client.ask("PUT", "/scenarios/a%20b", json={}), 400, "invalid_parameter")
    monkeypatch.setattr("featurestore.catalogue.scenarios.MOST_SCENARIOS", 1)
    assert (await client.ask("PUT", "/scenarios/home", json={})).status == 200
    assert (await client.ask("PUT", "/scenarios/home", json={"per_category": 2})).status == 200
    assert is_problem(await client.ask("PUT", "/scenarios/more", json={}), 422, "too_many_scenarios")
    # Foreign bytes under its name are told, and can be replaced.
    await store.scenarios.put(b"home", b"\xff{")
    for path in ("/recommend/ann?scenario=home", "/scenarios/home"):
        assert is_problem(await client.get(path), 503, "data_damaged")
    # An attribute that it may name stays as it was.
    assert is_problem(await client.ask("DELETE", "/schema/items/year"), 503, "data_damaged")
    assert (await client.post("/recommend/ann", {"filter": OLD})).status == 200
    assert (await client.ask("PUT", "/scenarios/home", json={})).status == 200


@pytest.mark.parametrize("off_the_loop", [False, True])
async def test_lists_about_no_user(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch, off_the_loop: bool
) -> None:
    if off_the_loop:
        monkeypatch.setattr(lists, "_QUICK_ROWS", 0)
    behaviour = await scores_of(client, "/similar/item-3?n=100")
    assert behaviour == await scores_of(client, "/similar/item-3?n=100&by=behaviour")
    assert 3 not in behaviour
    content = await scores_of(client, "/similar/item-3?n=100&by=content")
    # Both texts; then one of three, by row.
    assert content == {0: 1.0, 1: 0.333333, 2: 0.333333, 6: 0.333333, 9: 0.333333}
    assert list(content) == [0, 1, 2, 6, 9]
    both = await scores_of(client, "/similar/item-3?n=100&by=both")
    expected = {
        row: ((content.get(row) or 0.0) + max(behaviour.get(row) or 0.0, 0.0)) / 2
        for row in {*content, *behaviour}
    }
    assert both == pytest.approx(expected, abs=2e-6)
    scores = [score or 0.0 for score in both.values()]
    assert scores == sorted(scores, reverse=True)
    assert set(await listed(client, "/similar/item-3?n=100&by=content&category=drama")) == {0, 6, 9}
    loved = await listed(client, "/popular?n=100")
    assert await listed(client, "/popular?n=100&category=drama") == [row for row in loved if row % 3 == 0]
    assert 3 not in await listed(client, "/popular?n=100&exclude_items=item-3")
    # By POST all rules, by whichever page, and without what a user has seen.
    new = [row for row in loved if row > 2]
    assert await listed(client, "/popular?n=100&user_id=ann") == new
    assert await listed(client, "/popular", user_id="ann", filter=OLD) == [row for row in new if row < 6]
    assert await listed(client, "/popular", user_id="ann", exclude_seen=False, n=3, offset=2) == loved[2:5]
    assert await listed(client, "/similar/item-3", by="content", user_id="ann") == [6, 9]
    for path, body in (
        ("/latest", {"boosts": []}),
        ("/trending", {"order": "score"}),
        ("/popular", {"by": "x"}),
    ):
        code = "invalid_rule" if "boosts" in body else "invalid_body"
        assert is_problem(await client.post(path, body), 422, code)
    # The latest come first; without a time the last row does.
    assert await listed(client, "/latest?n=100") == list(range(ITEMS))[::-1]
    now = time.time()
    times = {2: now - 60, 5: now - 3600, 7: now - 60, 9: now + 3600}
    await put(store, *(film(row, available_from=at) for row, at in times.items()))
    latest = await scores_of(client, "/latest?n=100")
    rest = [row for row in range(ITEMS) if row not in times][::-1]
    assert list(latest) == [7, 2, 5, *rest]
    assert list(latest.values())[:4] == pytest.approx([now - 60, now - 60, now - 3600, None])
    # An item that has never been rated is like others by content alone, and can be pinned.
    await put(store, CatalogueItem("item-99", "New", ["drama"]))
    assert set(await listed(client, "/similar/item-99?by=content")) == {0, 3, 6}
    assert await listed(client, "/similar/item-99") == []
    is_problem(await client.get("/similar/nothing"), 404, "unknown_item")
    others = partial(listed, client, "/similar/item-3?n=100&by=both")
    await wait_until_async(others, "the new item has a row in the lists of others", lambda rows: 99 in rows)
    pinned = [{"item_id": "item-10", "position": 1}, {"item_id": "item-3", "position": 2}]
    assert (await client.ask("PUT", "/scenarios/shop", json={"pinned": pinned})).status == 200
    for path in ("/similar/item-3?n=3", "/similar/item-3?n=3&by=both", "/popular?n=3", "/latest?n=3"):
        plain, found = await listed(client, path), await listed(client, f"{path}&scenario=shop")
        # An item is not like itself, wherever it is pinned.
        first = [10] if path.startswith("/similar") else [10, 3]
        assert found == [*first, *[row for row in plain if row not in first]][:3], path


async def test_what_is_rated_of_late_comes_first(store: Store) -> None:
    now, week = time.time(), 7 * 86_400.0
    times = [[now - 4 * week] * 5, [now] * 2, [], [now]]
    indptr = np.cumsum([0, *map(len, times), 0, 0, 0, 0]).astype(np.int64)
    activity = activity_to_bytes(indptr, np.concatenate([np.array(each) for each in times]), now_s=now)
    await store.items(1).register([b"item-%d" % row for row in range(8)])
    lease = await lead(store)
    written = await publish(store, lease, n_items=8, activity=activity)
    await put(store, *map(film, range(8)))
    async with serving(store.settings, live=written.writer.number) as (client, _):
        trending = await scores_of(client, "/trending")
        assert trending == pytest.approx({1: 1.0, 3: 1 / 2, 0: 5 / 32}, rel=1e-3)
        assert list(trending) == [1, 3, 0]
        dramas = await scores_of(client, "/trending?category=drama")
        assert list(dramas) == [3, 0]
        assert dramas == pytest.approx({3: 1.0, 0: 5 / 16}, rel=1e-3)
        assert await scores_of(client, "/trending?category=drama&offset=1") == {0: dramas[0]}
        # Hidden ones and deleted ones are in no list, and the next in their place.
        assert (await client.ask("PATCH", "/items/item-1", json={"hidden": True})).status == 200
        assert (await client.ask("DELETE", "/items/item-3")).status == 200
        assert await listed(client, "/trending") == [0]
        older = await publish(store, lease, n_items=8)
        await serves(client, older.writer.number)
        reply = await client.get("/trending")
        assert (reply.json["items"], reply.json["reason"]) == ([], lists.NO_ACTIVITY)
