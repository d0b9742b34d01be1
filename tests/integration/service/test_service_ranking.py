"""Lists by the ranking head, asked of workers over one store."""

import numpy as np
import pytest

from factors import RankingHead, Scorer, item_statistics, posterior_of
from factors.model.layout import COUNT
from factors.ranking.blending import blended
from featurestore.codecs import pack_histories
from featurestore.store import Store
from tests.support.factories import Written, lead, make_head, publish_for_ann
from tests.support.serving import Client, is_problem, serves
from tests.support.waiting import wait_until_async

ITEMS = 40
RATED = {"item-0": 5.0, "item-1": 1.0, "item-7": 4.0}


@pytest.fixture(scope="module")
def head() -> RankingHead:
    return make_head(ITEMS)


@pytest.fixture
async def published(store: Store, head: RankingHead) -> Written:
    return await publish_for_ann(store, RATED, ITEMS, head=head)


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
    client: Client, other: Client, store: Store, published: Written, head: RankingHead
) -> None:
    before = (await other.get("/recommend/ann?n=5")).json
    best = before["items"][0]["item_id"]
    assert (await client.post("/ratings", {"user_id": "ann", "item_id": best, "rating": 5})).status == 200
    after = (await other.get("/recommend/ann?n=5")).json
    assert best not in {item["item_id"] for item in after["items"]}
    # As folding the history in by hand has it, not as some worker may still remember.
    expected = await by_hand(store, published, head)
    for item in after["items"]:
        parts = (item["score"], item["relevance"], item["rating"])
        assert parts == pytest.approx(expected[item["item_id"]], rel=1e-4, abs=1e-6)
    assert (await client.get("/recommend/ann?n=5")).json["items"] == after["items"]
    # A call may say how much more the latest events count.
    expected = await by_hand(store, published, head.with_recency(9.0))
    latest = (await other.post("/recommend/ann", {"n": 5, "recency": 9})).json["items"]
    for item in latest:
        assert item["relevance"] == pytest.approx(expected[item["item_id"]][1], rel=1e-4, abs=1e-6)
    assert (await client.get("/recommend/ann?n=5&recency=9")).json["items"] == latest != after["items"]
    is_problem(await client.get("/recommend/ann?recency=17"), 422, "invalid_rule")
    # And taken back.
    assert (await other.ask("DELETE", f"/ratings/ann/{best}")).status == 200
    assert (await client.get("/recommend/ann?n=5")).json["items"] == before["items"]


async def test_until_the_head_is_there_lists_go_by_how_often_items_are_chosen(
    client: Client, store: Store
) -> None:
    written = await publish_for_ann(store, RATED, ITEMS, head_waits=True)
    number = written.writer.number
    await serves(client, number)
    counts = item_statistics(written.items).count.astype(np.float64)
    popularity = RankingHead.of_popularity(counts, 1)
    expected = await by_hand(store, written, popularity)
    reply = (await client.get("/recommend/ann?n=1000")).json
    assert reply["order"] == "score"
    for item in reply["items"]:
        row = int(item["item_id"].removeprefix("item-"))
        assert (item["relevance"], item["basis"]) == (pytest.approx(counts[row]), "user+item")
        assert item["score"] == pytest.approx(expected[item["item_id"]][0], rel=1e-4)
    scores = [item["score"] for item in reply["items"]]
    assert scores == sorted(scores, reverse=True)
    status = (await client.get("/status")).json
    assert status["lists"] == f"by popularity until generation {number + 1} (about 30 s)"
    # What is rated now counts, before any fit.
    lease, rows = await lead(store), np.array([39], np.int32)
    await store.generations.claim_deltas(lease, 1, number)
    vectors = written.items[rows].copy()
    vectors[:, COUNT] = 1e4
    await store.generations.push_delta(lease, 1, number, rows, vectors)

    async def first() -> str:
        return str((await client.get("/recommend/ann?n=1")).json["items"][0]["item_id"])

    await wait_until_async(first, "the item of the most ratings comes first", lambda item: item == "item-39")


@pytest.fixture(params=[False, True], ids=["on_the_loop", "off_the_loop"])
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr("service.ranking_queue._QUICK", 0)


@pytest.mark.usefixtures("_where")
async def test_a_list_is_every_item_in_the_order_of_its_score_which_its_parts_explain(
    client: Client, other: Client, store: Store, published: Written, head: RankingHead
) -> None:
    expected = await by_hand(store, published, head)
    reply = (await client.get("/recommend/ann?n=1000")).json
    assert (reply["order"], len(reply["items"])) == ("score", ITEMS - len(RATED))
    order = sorted(set(expected) - set(RATED), key=lambda item: expected[item], reverse=True)
    scores = [item["score"] for item in reply["items"]]
    assert scores == pytest.approx([expected[item][0] for item in order], rel=1e-4, abs=1e-6)
    assert (await client.get("/recommend/ann?n=3&offset=2")).json["items"] == reply["items"][2:5]
    body = {"ratings": [{"item_id": item, "rating": value} for item, value in RATED.items()], "n": 1000}
    anonymous = (await client.post("/recommend", body)).json
    assert [item["item_id"] for item in anonymous["items"]] == [item["item_id"] for item in reply["items"]]
    # Events of a guest count as those that are stored.
    events = [{"item_id": item, "type": "like"} for item in ("item-3", "item-9", "gone", "item-3")]
    assert (await client.post("/events", [{"user_id": "bo", **each} for each in events[:2]])).status == 200
    guest = (await other.post("/recommend", {"events": events[1:], "n": 1000})).json
    stored = (await other.get("/recommend/bo?n=1000")).json
    assert (guest["items"], guest["ignored"], len(guest["items"])) == (stored["items"], 1, ITEMS - 2)
    events = [{"item_id": "item-3", "type": "likes"}]
    assert is_problem(await client.post("/recommend", {"events": events}), 422, "unknown_event_type")
    by_rating = (await client.get("/recommend/ann?n=1000&order=rating")).json
    assert by_rating["order"] == "rating"
    assert all(item["score"] == item["rating"] and "relevance" not in item for item in by_rating["items"])
    ratings = [item["rating"] for item in by_rating["items"]]
    assert ratings == pytest.approx(sorted((expected[item][2] for item in order), reverse=True), abs=1e-5)
    # Caps and boosts are about the score of the head.
    boosts = [{"filter": {"must": [{"has_id": [order[-1]]}]}, "multiply": 10.0}]
    (last,) = (await client.post("/recommend/ann", {"candidate_items": order[-1:], "boosts": boosts})).json[
        "items"
    ]
    assert last["score"] == pytest.approx(10.0 * scores[-1], abs=1e-5)
    # A draw is repeatable, and tells the expected numbers.
    draws = [(await each.get("/recommend/ann?n=10&explore=thompson&seed=1")).json for each in (client, other)]
    assert draws[0]["items"] == draws[1]["items"]
    drawn = [
        [
            each["item_id"]
            for each in (await client.get(f"/recommend/ann?explore=thompson{more}")).json["items"]
        ]
        for more in ("&seed=1&n=10", "&seed=1&n=20", "&seed=2&n=20")
    ]
    assert drawn[1][:10] == drawn[0]
    assert drawn[2] != drawn[1]
    for item in draws[0]["items"]:
        parts = (item["score"], item["relevance"], item["rating"])
        assert parts == pytest.approx(expected[item["item_id"]], rel=1e-4, abs=1e-6)
    for item in reply["items"][::6]:
        why = (await other.get(f"/explain/ann/{item['item_id']}")).json
        parts = why["relevance"]["parts"]
        total = why["relevance"]["base"] + sum(part["contribution"] for part in parts)
        assert round(total, 6) == why["relevance"]["value"] == round(why["relevance"]["value"], 6)
        assert why["relevance"]["value"] == pytest.approx(item["relevance"], rel=1e-4, abs=2e-6)
        assert why["score"] == pytest.approx(item["score"], rel=1e-4, abs=2e-6)
        assert {part["item_id"] for part in parts} == set(RATED)
        rated = why["base"] + sum(part["contribution"] for part in why["parts"])
        assert round(rated, 6) == why["rating"] == pytest.approx(item["rating"], abs=1e-5)
        some = (await other.get(f"/explain/ann/{item['item_id']}?n=1")).json["relevance"]
        assert some["parts"] == parts[:1]
        assert round(some["base"] + parts[0]["contribution"] + some["rest"], 6) == some["value"]


@pytest.mark.usefixtures("published")
async def test_a_list_says_what_it_is_asked_to_include(client: Client, other: Client) -> None:
    described = {"title": "Emma", "image": "e.png", "attributes": {"year": 1815, "tone": "light"}}
    first = (await client.get("/recommend/ann?n=1")).json["items"][0]["item_id"]
    for item_id in (first, *RATED):
        assert (await client.ask("PUT", f"/items/{item_id}", json=described)).status == 200
    told = {"title": "Emma", "attributes": {"year": 1815}}
    assert (await client.ask("PATCH", "/items/item-0", json={"hidden": True})).status == 200
    for order, part in (("score", "relevance"), ("rating", None)):
        address = f"/recommend/ann?n=5&order={order}&include=title,attributes.year,reasons"
        for item in (await other.get(address)).json["items"]:
            why = (await other.get(f"/explain/ann/{item['item_id']}")).json
            parts = sorted((why[part] if part else why)["parts"], key=lambda each: -each["contribution"])
            parts = [each for each in parts if each["item_id"] != "item-0"]
            wanted = [each for each in parts[:2] if each["contribution"] > 0]
            for said, known in zip(item["reasons"], wanted, strict=True):
                moved = pytest.approx(known["contribution"], abs=1e-4)
                assert said == {"item_id": known["item_id"], "contribution": moved} | told
            assert item["item_id"] != first or told.items() <= item.items()
    # A body takes what the query takes, and the number of items from the address.
    by_text = (await client.post("/recommend/ann?n=2", {"include": "title,attributes.year"})).ok.json["items"]
    by_list = (await client.post("/recommend/ann", {"n": 2, "include": ["title", "attributes.year"]})).ok.json
    assert by_text == by_list["items"] != (await client.get("/recommend/ann?n=2")).ok.json["items"]
    assert len(by_text) == 2
    assert (await client.ask("PUT", "/scenarios/shown", json={"include": ["image"]})).status == 200
    for address in ("/recommend/ann?", "/latest?"):
        items = (await other.get(f"{address}n=100&scenario=shown")).json["items"]
        assert first in [each["item_id"] for each in items if each.get("image") == "e.png"]
    for wrong in ("popular?include=reasons", "latest?include=attributes.x", "latest?n=101&include=title"):
        is_problem(await client.get(f"/{wrong}"), 422, "invalid_rule")
