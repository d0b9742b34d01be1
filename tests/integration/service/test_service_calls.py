"""Every call against a real store with a published generation: what is right, and what is wrong."""

import asyncio
import gzip
import io
import math
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from featurestore.codecs import pack_histories
from featurestore.keys import digest_of
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service import app as service_app
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish, publish_for_ann, rating
from tests.support.serving import BOTH_WAYS, JSON, LINES, Client, is_problem, send_raw, serves, serving
from tests.support.waiting import wait_until_async

ITEMS = 12


@pytest.fixture
async def published(store: Store) -> Written:
    """A generation that knows user `ann`."""
    return await publish_for_ann(store, {"item-0": 5.0, "item-1": 1.0, "item-2": 4.0}, ITEMS)


@pytest.fixture
async def client(store_settings: StoreSettings, published: Written) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        await serves(client, published.writer.number)
        yield client


async def expected(store: Store, written: Written, user: str, row: int) -> float:
    """The rating that the generation gives by folding in the history as it is."""
    _, history = await store.users.history(1, user.encode())
    return written.rating_of(pack_histories([history]), row)


@BOTH_WAYS
async def test_predict_is_what_the_generation_gives(client: Client, store: Store, published: Written) -> None:
    reply = await client.get("/predict?user_id=ann&item_id=item-5")
    assert reply.status == 200
    assert reply.json["rating"] == pytest.approx(await expected(store, published, "ann", 5), abs=1e-5)
    assert (reply.json["generation"], reply.json["basis"]) == (published.writer.number, "user+item")
    assert reply.json["std"] > 0
    for path in (
        "/predict?user=ann&item=item-5",
        "/predict?item=item-5&user=ann",
        "/predict?user=a%6en&item=item-5",
    ):
        assert (await client.get(path)).json == reply.json
    for body in (
        {"user_id": "ann", "item_id": "item-5"},
        {"user_id": "ann", "item_ids": ["item-5"]},
        {"pairs": [["ann", "item-5"]]},
    ):
        answer = (await client.post("/predict", body)).json
        assert answer.get("predictions", [answer])[0]["rating"] == reply.json["rating"]


@BOTH_WAYS
async def test_no_user_is_refused_for_being_unknown(client: Client) -> None:
    for path, basis in (
        ("/predict?user_id=unknown&item_id=item-1", "item"),
        ("/predict?user_id=unknown&item_id=nothing", "prior"),
        ("/predict?user_id=ann&item_id=nothing", "user"),
    ):
        reply = await client.get(path)
        assert (reply.status, reply.json["basis"]) == (200, basis)
    assert (await client.get("/recommend/unknown")).status == 200
    assert (await client.get("/explain/unknown/nothing")).json["parts"] == []


@BOTH_WAYS
async def test_a_distribution_needs_steps_and_adds_up(store_settings: StoreSettings, client: Client) -> None:
    is_problem(await client.get("/predict?user=ann&item=item-1&distribution=true"), 400, "invalid_parameter")
    timed = await client.get("/predict?user=ann&item=item-1&timestamp=1700000000.5")
    assert timed.status == 200


@BOTH_WAYS
async def test_what_was_rated_is_known_at_once(client: Client, store: Store, published: Written) -> None:
    for step, value in enumerate((1.0, 5.0, 2.0)):
        reply = await client.post("/ratings", {"user_id": "eve", "item_id": f"item-{step}", "rating": value})
        assert (reply.status, reply.json["accepted"]) == (200, 1)
        answer = (await client.get("/predict?user_id=eve&item_id=item-7")).json
        assert answer["rating"] == pytest.approx(await expected(store, published, "eve", 7), abs=1e-5)
        assert (await client.get("/users/eve")).json["ratings"] == step + 1
    # A new item is registered by being rated, and has the prior until it is folded in.
    await client.post("/ratings", {"user_id": "eve", "item_id": "brand new", "rating": 4})
    assert (await client.get("/predict?user_id=eve&item_id=brand+new")).json["basis"] == "user"
    assert (await client.get("/items/brand%20new")).json["ratings"] == 0


async def test_an_array_and_lines_are_taken(client: Client) -> None:
    rows = [{"user_id": 7, "item_id": n, "rating": 3.5, "timestamp": 10.0 + n} for n in range(3)]
    assert (await client.post("/ratings", rows)).json["accepted"] == 3
    lines = b'{"user_id": 7, "item_id": 8, "rating": 1}\n\n{"user_id": "7", "item_id": 9, "rating": 2}\n'
    assert (await client.post("/ratings", lines, headers=LINES)).json["accepted"] == 2
    page = (await client.get("/users/7/ratings?limit=2&offset=2")).json
    assert (page["total"], [each["item_id"] for each in page["ratings"]]) == (5, ["2", "1"])
    assert page["ratings"][0] == {"item_id": "2", "rating": 3.5, "timestamp": 12.0}


@BOTH_WAYS
async def test_taking_a_rating_back_undoes_it(client: Client) -> None:
    before = (await client.get("/predict?user_id=ann&item_id=item-7")).json["rating"]
    await client.post("/ratings", {"user_id": "ann", "item_id": "item-3", "rating": 1})
    assert (await client.get("/predict?user_id=ann&item_id=item-7")).json["rating"] != before
    reply = await client.ask("DELETE", "/ratings/ann/item-3")
    assert (reply.status, reply.json["deleted"]) == (200, 1)
    after = (await client.get("/predict?user_id=ann&item_id=item-7")).json["rating"]
    assert after == pytest.approx(before, abs=1e-5)
    is_problem(await client.ask("DELETE", "/ratings/ann/item-3"), 404, "unknown_rating")
    is_problem(await client.ask("DELETE", "/ratings/unknown/item-3"), 404, "unknown_rating")


async def test_recommendations(client: Client) -> None:
    reply = (await client.get("/recommend/ann?n=1000")).json
    names = [each["item_id"] for each in reply["items"]]
    assert sorted(names) == sorted(f"item-{n}" for n in range(3, ITEMS))
    scores = [each["score"] for each in reply["items"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx((await client.get(f"/predict?user=ann&item={names[0]}")).json["rating"])
    shifted = (await client.get("/recommend/ann?n=3&offset=2")).json["items"]
    assert [each["item_id"] for each in shifted] == names[2:5]
    everything = (await client.get("/recommend/ann?n=100&exclude_seen=false")).json["items"]
    assert len(everything) == ITEMS
    draws = [(await client.get(f"/recommend/ann?explore=thompson&seed={seed}")).json for seed in (1, 1, 2)]
    # Each answer has an id of its own.
    assert len({each.pop("recommendation_id") for each in draws}) == 3
    assert draws[0] == draws[1]
    assert draws[0]["seed"] == 1
    assert not {"item-0", "item-1", "item-2"} & {each["item_id"] for each in draws[2]["items"]}
    assert (await client.get("/recommend/ann?explore=thompson")).json["seed"] >= 0


async def test_recommendations_for_someone_who_is_not_stored(client: Client) -> None:
    ratings = [{"item_id": f"item-{n}", "rating": value} for n, value in ((0, 5), (1, 1), (2, 4))]
    anonymous = (await client.post("/recommend", {"ratings": ratings, "n": 5})).json
    stored = (await client.get("/recommend/ann?n=5")).json
    assert [each["item_id"] for each in anonymous["items"]] == [each["item_id"] for each in stored["items"]]
    reply = (await client.post("/recommend", {"ratings": [{"item_id": "who?", "rating": 3}]})).json
    assert reply["ignored"] == 1
    assert (await client.post("/recommend", {"ratings": [], "explore": "thompson"})).status == 200


async def test_explanations_add_up(client: Client) -> None:
    reply = (await client.get("/explain/ann/item-9")).json
    total = reply["base"] + sum(part["contribution"] for part in reply["parts"])
    assert total == pytest.approx(reply["rating"], abs=1e-6)
    assert reply["rating"] == (await client.get("/predict?user_id=ann&item_id=item-9")).json["rating"]
    assert {part["item_id"]: part["rating"] for part in reply["parts"]} == {
        "item-0": 5,
        "item-1": 1,
        "item-2": 4,
    }


async def test_items_similar_popular(client: Client) -> None:
    item = (await client.get("/items/item-4")).json
    assert (item["ratings"], item["expected"]["basis"]) == (3, "item")
    assert 1 <= item["mean"] <= 5
    near = (await client.get("/similar/item-4?n=3")).json["items"]
    assert len(near) == 3
    assert "item-4" not in {each["item_id"] for each in near}
    loved = (await client.get("/popular?n=4")).json["items"]
    assert [each["score"] for each in loved] == sorted((each["score"] for each in loved), reverse=True)
    is_problem(await client.get("/items/nothing"), 404, "unknown_item")
    is_problem(await client.get("/similar/nothing"), 404, "unknown_item")


async def test_users(client: Client) -> None:
    user = (await client.get("/users/ann")).json
    assert (user["ratings"], user["events"]) == (3, 3)
    assert user["mean"] == pytest.approx(10 / 3)
    is_problem(await client.get("/users/unknown"), 404, "unknown_user")
    is_problem(await client.get("/users/unknown/ratings"), 404, "unknown_user")


async def test_forgetting_is_complete_at_once(store_settings: StoreSettings, published: Written) -> None:
    async with serving(store_settings, erase_wait_s=0.1) as (client, _):
        unknown = (await client.get("/predict?user_id=ghost&item_id=item-7")).json
        reply = await client.ask("DELETE", "/users/ann")
        assert (reply.status, reply.json["ratings"], reply.json["archive"]) == (200, 3, "pending")
        assert (await client.get("/predict?user_id=ann&item_id=item-7")).json == unknown
        is_problem(await client.get("/users/ann"), 404, "unknown_user")
        receipt = (await client.get(f"/receipts/{reply.json['receipt']}")).json
        assert receipt["archive"] == "pending"
        is_problem(await client.get("/receipts/none"), 404, "unknown_receipt")
        is_problem(await client.get(f"/receipts/{'0' * 32}"), 404, "unknown_receipt")


@BOTH_WAYS
async def test_ids_of_every_kind_come_back_as_they_were(client: Client) -> None:
    for raw, path in (
        ("é/☃", "%C3%A9%2F%E2%98%83"),
        ("a b+c", "a%20b+c"),
        ("%41", "%2541"),
        ("\x00{}", "%00%7B%7D"),
    ):
        assert (await client.post("/ratings", {"user_id": raw, "item_id": raw, "rating": 4})).status == 200
        assert (await client.get(f"/users/{path}")).json["user_id"] == raw
        assert (await client.get(f"/users/{path}/ratings")).json["ratings"][0]["item_id"] == raw


BAD_QUERIES = [
    ("/predict", "missing_parameter", "user_id"),
    ("/predict?user_id=ann", "missing_parameter", "item_id"),
    ("/predict?user_id=&item_id=i", "invalid_parameter", "user_id"),
    ("/predict?user_id=u&item_id=%ff", "invalid_parameter", "item_id"),
    (f"/predict?user_id={'x' * 257}&item_id=i", "invalid_parameter", "user_id"),
    ("/predict?user_id=u&item_id=i&timestamp=nan", "invalid_parameter", "timestamp"),
    ("/predict?user_id=u&item_id=i&distribution=maybe", "invalid_parameter", "distribution"),
    ("/recommend/u?n=0", "invalid_parameter", "n"),
    ("/recommend/u?n=1001", "invalid_parameter", "n"),
    ("/recommend/u?n=ten", "invalid_parameter", "n"),
    ("/recommend/u?offset=-1", "invalid_parameter", "offset"),
    ("/recommend/u?explore=all", "invalid_parameter", "explore"),
    ("/recommend/u?seed=1.5", "invalid_parameter", "seed"),
    ("/recommend/%ff", "invalid_parameter", "user_id"),
    ("/popular?n=1e3", "invalid_parameter", "n"),
    ("/users/", "invalid_parameter", "user_id"),
    (f"/users/{'x' * 257}", "invalid_parameter", "user_id"),
    ("/users/u/ratings?limit=0", "invalid_parameter", "limit"),
    ("/explain/u/%C3", "invalid_parameter", "item_id"),
    ("/items/", "invalid_parameter", "item_id"),
]


@BOTH_WAYS
async def test_bad_queries_name_their_field(client: Client) -> None:
    for path, code, field in BAD_QUERIES:
        reply = await client.get(path)
        assert is_problem(reply, 400, code)
        assert reply.json["field"] == field, path


BAD_BODIES: list[tuple[str, bytes, str, str | None, int | None]] = [
    ("/predict", b"{}", "invalid_body", "item_id", None),
    ("/predict", b'{"user_id": "u"}', "invalid_body", "item_id", None),
    ("/predict", b'{"item_id": "u"}', "invalid_body", "user_id", None),
    ("/predict", b'{"pairs": [["u", "i"], ["u"]]}', "invalid_body", "pairs", 1),
    ("/predict", b'{"pairs": [["u", "i"], ["u", true]]}', "invalid_body", "pairs", 1),
    ("/predict", b'{"pairs": [["u", "i"], ["u", ""]]}', "invalid_body", "pairs", 1),
    ("/predict", b'{"user_id": "u", "item_ids": ["i", 1.5]}', "invalid_body", "item_ids", 1),
    ("/predict", b'{"user_id": "u", "item_ids": ["i"], "pairs": []}', "invalid_body", "pairs", None),
    ("/predict", b'{"user_id": NaN, "item_id": 1}', "invalid_body", "user_id", None),
    ("/predict", b"[]", "invalid_body", None, None),
    ("/predict", b"", "malformed_json", None, None),
    ("/predict", b'{"pairs": [' + b'["u","i"],' * 10_000 + b'["u","i"]]}', "too_many_rows", "pairs", None),
    ("/recommend", b"{}", "invalid_body", "ratings", None),
    ("/recommend", b'{"ratings": [{"item_id": 1, "rating": 9}]}', "invalid_body", "ratings.rating", 0),
    ("/recommend", b'{"ratings": [{"item_id": 1, "rating": NaN}]}', "invalid_body", "ratings.rating", 0),
    ("/recommend", b'{"ratings": [], "n": 0}', "invalid_body", "n", None),
    ("/recommend", b'{"ratings": [], "explore": "all"}', "invalid_body", "explore", None),
    ("/recommend", b'{"ratings": [], "seed": -1}', "invalid_body", "seed", None),
    (
        "/ratings",
        b'[{"user_id": "u", "item_id": "i", "rating": 3}, {"user_id": "u"}]',
        "invalid_body",
        "item_id",
        1,
    ),
    ("/train", b"[]", "invalid_body", None, None),
    ("/train", b'{"nb_users": 1}', "invalid_body", "nb_items", None),
]
HISTORY: dict[str, Any] = {
    "nb_users": 2,
    "nb_items": 2,
    "user_history": [0, 1],
    "item_history": [0, 1],
    "rating_history": [1, 5],
}


async def test_bad_bodies_name_field_and_row_and_change_nothing(client: Client, store: Store) -> None:
    before = await store.stream.lag(1)
    for path, body, code, field, row in BAD_BODIES:
        reply = await client.post(path, body)
        assert is_problem(reply, 400 if code == "malformed_json" else 422, code), body[:80]
        assert (reply.json.get("field"), reply.json.get("row")) == (field, row), body[:80]
    for change, field, row in (
        ({"nb_users": 0}, "nb_users", None),
        ({"nb_items": 10**9}, "nb_items", None),
        ({"user_history": [0]}, "user_history", None),
        ({"item_history": [0, 1, 1]}, "item_history", None),
        ({"user_history": [0, 2]}, "user_history", 1),
        ({"item_history": [-1, 0]}, "item_history", 0),
        ({"item_history": [0, 10**30]}, "item_history", 1),
        ({"rating_history": [3, 6]}, "rating_history", 1),
        ({"rating_history": [3, "4"]}, "rating_history", 1),
        ({"user_history": [0, True]}, "user_history", 1),
        ({"user_history": [], "item_history": [], "rating_history": []}, "rating_history", None),
    ):
        reply = await client.post("/train", {**HISTORY, **change})
        assert is_problem(reply, 422, "invalid_body")
        assert (reply.json["field"], reply.json.get("row")) == (field, row), change
    assert await store.stream.lag(1) == before
    assert (await store.generations.live()).pending == 0


async def test_wrong_addresses_methods_and_types(client: Client) -> None:
    is_problem(await client.get("/nothing"), 404, "not_found")
    is_problem(await client.get("/static/nothing.css"), 404, "not_found")
    for method, path in (
        ("PUT", "/predict"),
        ("DELETE", "/generations"),
        ("POST", "/users/u"),
        ("TRACE", "/ratings"),
    ):
        reply = await client.ask(method, path)
        assert is_problem(reply, 405, "method_not_allowed")
        assert method not in reply.headers["Allow"].split(", ")
        options = await client.ask("OPTIONS", path)
        assert (options.status, options.text) == (204, "")
        assert options.headers["Allow"] == reply.headers["Allow"]
    body = b'{"user_id": "u", "item_id": "i", "rating": 3}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"):
        is_problem(
            await client.post("/ratings", body, headers={"Content-Type": kind}), 415, "unsupported_media_type"
        )
    # A parser of e-mail headers takes seconds for some of these, and all of the stack for others.
    for kind in ("(" * 8_000, "application/json; a=" + "(" * 8_000, '"' * 8_000, "text/plain, a/b+json", ""):
        reply = await client.post("/ratings", body, headers={"Content-Type": kind})
        assert reply.status in {200, 415}, kind[:30]
        assert (reply.status == 200) == kind.startswith("application/json;")
    for kind in ('Application/JSON ;x=y; charset="UTF-8"', "application/vnd.ratings+json;charset=utf8"):
        assert (await client.post("/ratings", body, headers={"Content-Type": kind})).status == 200
    for path in ("/predict", "/recommend", "/train"):
        is_problem(await client.post(path, b"{}\n", headers=LINES), 415, "unsupported_media_type")
    # Nothing is inflated: a few hundred bytes would be work of seconds.
    for path in ("/ratings", "/predict", "/train"):
        for encoding in ("gzip", "deflate", "br"):
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            reply = await client.post(path, gzip.compress(body), headers=headers)
            is_problem(reply, 415, "unsupported_media_type")
            assert "Content-Encoding" in reply.json["detail"]


async def test_bodies_are_bounded(client: Client) -> None:
    large = io.BytesIO(b"x" * (11 * 2**20))
    is_problem(await client.ask("POST", "/ratings", data=large, headers=JSON), 413, "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 2**20

    reply = await client.ask("POST", "/ratings", data=chunks(), headers=JSON)
    is_problem(reply, 413, "body_too_large")
    assert (await client.get("/livez")).status == 200


async def test_a_large_broken_body_names_its_row_too(client: Client) -> None:
    good = b'{"user_id": "u", "item_id": "i", "rating": 3}'
    body = b"[" + b",".join([good] * 5000 + [good.replace(b"3", b"NaN")] + [good] * 10) + b"]"
    reply = await client.post("/ratings", body)
    assert is_problem(reply, 422, "invalid_body")
    assert (reply.json["field"], reply.json["row"]) == ("rating", 5000)


@pytest.mark.slow
async def test_a_body_that_does_not_come_is_given_up(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings, body_timeout_s=0.2) as (client, _):
        port = int(client.url.rpartition(":")[2])
        head = b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: 9\r\n\r\n[{"
        assert b"HTTP/1.1 408" in await asyncio.to_thread(send_raw, port, head, 2.0)


@BOTH_WAYS
async def test_what_is_no_http_gets_a_problem(client: Client) -> None:
    port = int(client.url.rpartition(":")[2])
    for data in (
        b"GARBAGE\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
    ):
        found = await asyncio.to_thread(send_raw, port, data)
        assert found.startswith(b"HTTP/1.1 400")
        assert b'"code":"malformed_request"' in found
        assert b"Traceback" not in found


@BOTH_WAYS
async def test_answers_are_whole_for_every_kind_of_client(client: Client) -> None:
    port = int(client.url.rpartition(":")[2])
    path = b"/predict?user_id=ann&item_id=item-1"
    old = await asyncio.to_thread(send_raw, port, b"GET " + path + b" HTTP/1.0\r\n\r\n")
    assert b"Connection: close" in old
    assert old.endswith(b"}")
    kept = await asyncio.to_thread(
        send_raw, port, b"GET " + path + b" HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n"
    )
    assert b"Connection: keep-alive" in kept
    head = await asyncio.to_thread(
        send_raw, port, b"HEAD " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in head
    two = b"".join(
        b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path, last)
        for last in (b"", b"Connection: close\r\n")
    )
    assert (await asyncio.to_thread(send_raw, port, two)).count(b"HTTP/1.1 200 OK") == 2
    absolute = b"GET http://x%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path
    assert b"200 OK" in await asyncio.to_thread(send_raw, port, absolute)


@BOTH_WAYS
async def test_request_ids_are_sent_back_where_they_are_safe(client: Client) -> None:
    for path in ("/predict?user_id=ann&item_id=item-1", "/popular", "/nothing"):
        reply = await client.get(path, headers={"X-Request-ID": "abc-1.2"})
        assert reply.headers["X-Request-ID"] == "abc-1.2"
        reply = await client.get(path, headers={"X-Request-ID": 'a"b c'})
        assert reply.headers.get("X-Request-ID") != 'a"b c'
    assert "X-Request-ID" not in (await client.get("/popular")).headers


@BOTH_WAYS
async def test_generations_can_be_gone_back_to(client: Client, store: Store, published: Written) -> None:
    first = published.writer.number
    lease = await lead(store)
    second = (await publish(store, lease, n_items=ITEMS, users=[b"ann"], seed=1)).writer.number
    await serves(client, second)
    listed = (await client.get("/generations")).json
    assert [(each["generation"], each["live"]) for each in listed["generations"]] == [
        (second, True),
        (first, False),
    ]
    back = await client.post(f"/generations/{first}/activate")
    assert (back.status, back.json["generation"], back.json["held"], back.json["served"]) == (
        200,
        first,
        True,
        True,
    )
    assert (await client.get("/predict?user_id=ann&item_id=item-1")).json["generation"] == first
    forward = (await client.post(f"/generations/{second}/activate")).json
    assert (forward["generation"], forward["held"]) == (second, False)
    is_problem(await client.post("/generations/99/activate"), 404, "unknown_generation")
    for number in ("x", "-1", "1.0", "0"):
        is_problem(await client.post(f"/generations/{number}/activate"), 400, "invalid_parameter")


@BOTH_WAYS
async def test_operations(client: Client, published: Written) -> None:
    assert (await client.get("/livez")).json == {"alive": True}
    await client.post("/ratings", {"user_id": "ann", "item_id": "item-5", "rating": 5})
    await client.get("/predict?user_id=ann&item_id=item-5")
    text = (await client.get("/metrics")).text
    for line in (
        'foldin_http_requests_total{route="/predict",status="200"} 1.0',
        'foldin_http_requests_total{route="/ratings",status="200"} 1.0',
        "foldin_rating_squared_error_count 1.0",
        "foldin_ratings_total 1.0",
        f'foldin_generation{{worker="0"}} {published.writer.number}.0',
        "foldin_store_up 1.0",
    ):
        assert line in text, line
    status = (await client.get("/status")).json
    assert (status["generation"], status["accepted_ratings"]) == (published.writer.number, 1)
    assert math.isfinite(status["rmse"])
    for path in ("/", "/docs", "/static/style.css", "/static/app/main.js", "/static/docs.js"):
        page = await client.get(path)
        assert page.status == 200
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page.text
        # A browser that has it gets nothing again.
        again = await client.get(path, headers={"If-None-Match": page.headers["ETag"]})
        assert (again.status, again.text) == (304, "")


async def test_a_rating_is_predicted_by_what_was_known_before_it_in_one_round_trip(
    store_settings: StoreSettings, published: Written, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(store_settings) as (client, app):
        await serves(client, published.writer.number)
        counts, wanted = app[CONTEXT].counts, 0.0
        monkeypatch.setattr(app[CONTEXT].store.users, "lookup", None)
        # From the second one on the user's record is behind.
        for row, given in ((5, 1), (6, 5), (7, 2)):
            wanted += (given - await expected(store, published, "ann", row)) ** 2
            sent = {"user_id": "ann", "item_id": f"item-{row}", "rating": given}
            assert (await client.post("/ratings", sent)).status == 200
        assert sum(counts.squared_error.counts) == 3
        assert counts.squared_error.sum == pytest.approx(wanted, rel=1e-4)
        # What is damaged of a user keeps no rating back, and nothing is predicted from it.
        await store.redis.append(store.keys.history(1, b"ann"), b"torn")
        for user in ("bob", "ann"):
            sent = {"user_id": user, "item_id": "item-1", "rating": 4}
            assert (await client.post("/ratings", sent)).status == 200
        assert sum(counts.squared_error.counts) == 4
        assert counts.ratings == 5


async def test_a_full_stream_is_429_and_changes_nothing(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(replace(store_settings, stream_limit=5)) as (client, _):
        rows = [{"user_id": "u", "item_id": n, "rating": 3} for n in range(6)]
        is_problem(await client.post("/ratings", rows), 429, "stream_full")
        is_problem(await client.get("/users/u"), 404, "unknown_user")
        assert (await client.post("/ratings", rows[:2])).status in (200, 429)


async def test_a_full_catalogue_is_refused(store_settings: StoreSettings, published: Written) -> None:
    async with serving(replace(store_settings, max_items=ITEMS)) as (client, _):
        reply = await client.post("/ratings", {"user_id": "u", "item_id": "one more", "rating": 3})
        is_problem(reply, 422, "too_many_items")


@BOTH_WAYS
async def test_too_many_at_once_are_refused_at_once(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings, in_flight=4) as (client, _):
        path = "/predict?user_id=ann&item_id=item-1"
        replies = await asyncio.gather(*(client.get(path) for _ in range(64)))
        refused = [reply for reply in replies if reply.status != 200]
        for reply in refused:
            is_problem(reply, 503, "overloaded")
        assert (await client.get(path)).status == 200
        assert (await client.get("/livez")).status == 200


@BOTH_WAYS
async def test_before_the_first_generation(store_settings: StoreSettings, store: Store) -> None:
    async with serving(store_settings) as (client, _):
        for path in ("/predict?user_id=u&item_id=i", "/recommend/u", "/popular", "/users/u", "/readyz"):
            is_problem(await client.get(path), 503, "no_generation")
        is_problem(await client.post("/predict", {"user_id": "u", "item_id": "i"}), 503, "no_generation")
        reply = await client.post("/ratings", {"user_id": "u", "item_id": "i", "rating": 3})
        assert reply.json == {"accepted": 1, "generation": None}
        assert (await client.get("/users/u/ratings")).json["total"] == 1
        assert (await client.ask("DELETE", "/ratings/u/i")).status == 200
        assert (await client.get("/generations")).json["live"] == 0
        assert (await client.get("/metrics")).status == 200
        assert (await client.get("/status")).json["generation"] == 0
        await publish(store, await lead(store), n_items=1)

        async def ready() -> bool:
            return (await client.get("/readyz")).status == 200

        await wait_until_async(ready, "the first generation is served")


@BOTH_WAYS
async def test_each_request_is_counted_once_by_its_route(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings) as (client, app):
        await serves(client, published.writer.number)
        pair = {"user_id": "ann", "item_id": "item-1"}
        for reply in (
            await client.get("/predict?user_id=ann&item_id=item-1"),
            await client.get("/predict?user_id=a%6en&item_id=item-1&timestamp=1e9"),
            await client.post("/predict", pair),
            await client.post("/predict", {"pairs": [["ann", "item-1"]] * 3}),
        ):
            assert reply.status == 200
        assert (await client.get("/predict?user_id=ann")).status == 400
        context = app[CONTEXT]
        assert context.counts.requests["/predict"] == {"200": 4, "400": 1}
        assert context.counts.latency["/predict"].count == 5
        assert context.counts.predictions == 6
        assert context.traffic.in_flight == 0
        assert context.traffic.connections >= 1
        exposed = (await client.get("/metrics")).text
        connections = re.search(r"^foldin_connections\{.*\} (\S+)$", exposed, re.M)
        assert connections is not None
        assert float(connections[1]) >= 1
    assert context.traffic.connections == 0


async def test_counts_are_sampled_after_a_first_load_that_took_long(
    store_settings: StoreSettings, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_first = vars(service_app)["_load_first"]

    async def slow(*args: Any) -> None:
        # Ten samples would fall into it.
        await asyncio.sleep(0.1)
        await load_first(*args)

    monkeypatch.setattr(service_app, "_SAMPLE_S", 0.01)
    monkeypatch.setattr(service_app, "_load_first", slow)
    async with serving(store_settings) as (client, app):
        assert app[CONTEXT].follower.live is not None
        await client.post("/ratings", {"user_id": "eve", "item_id": "item-1", "rating": 3})
        assert (await client.get("/predict?user_id=eve&item_id=item-2")).status == 200
        counts = app[CONTEXT].counts
        # Only a sample takes this number over from the store.
        await wait_until_async(lambda: counts.folds == 1, "a sample is taken")


@pytest.mark.slow
@BOTH_WAYS
async def test_a_damaged_user_harms_no_other_of_the_batch(
    client: Client, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    users = [f"u{k}" for k in range(20)]
    await store.ratings.append([rating(user, "item-3", 4.0) for user in users])
    for user in users[::5]:
        await store.redis.append(store.keys.history(1, user.encode()), b"torn")
    # All are behind, and asked for at once.
    replies = await asyncio.gather(*[client.get(f"/predict?user_id={user}&item_id=item-5") for user in users])
    assert [reply.status for reply in replies] == [503, 200, 200, 200, 200] * 4
    assert is_problem(replies[0], 503, "data_damaged")
    for user in users[::5]:
        assert f":history:<blake2b {digest_of(user.encode()).hex()}>" in caplog.text
        assert user not in replies[0].text
    # What takes it away is what a person may do, and what a user may ask for.
    assert (await client.ask("DELETE", f"/users/{users[0]}")).status < 300
    assert (await client.get(f"/predict?user_id={users[0]}&item_id=item-5")).status == 200
