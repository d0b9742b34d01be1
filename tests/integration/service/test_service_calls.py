"""Every call that asks or rates: what is right, and what is wrong."""

import asyncio
import gzip
import io
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from featurestore.codecs import pack_histories
from featurestore.store import Store
from service.context import CONTEXT
from service.scoring import require_live
from tests.support.factories import Written, rating
from tests.support.serving import JSON, LINES, SHARED, Client, Served, is_problem, send_raw

pytestmark = SHARED
ITEMS = 12
PAIR = "/predict?user_id=ann&item_id=item-5"


@pytest.fixture(scope="module")
def client(asked: Served) -> Client:
    return asked[0]


async def expected(store: Store, written: Written, user: str, row: int) -> float:
    _, history = await store.users.history(1, user.encode())
    return written.rating_of(pack_histories([history]), row)


async def test_a_pair_is_the_same_each_way(both: list[Client], shared_store: Store, shared: Written) -> None:
    wanted = await expected(shared_store, shared, "ann", 5)
    for client in both:
        reply = await client.get(PAIR)
        assert (reply.status, reply.json["generation"]) == (200, shared.writer.number)
        assert reply.json["basis"] == "user+item"
        assert reply.json["rating"] == pytest.approx(wanted, abs=1e-5)
        assert reply.json["std"] > 0
        for path in ("?user=ann&item=item-5", "?item=item-5&user=ann", "?user=a%6en&item=item-5"):
            assert (await client.get(f"/predict{path}")).json == reply.json
        for at in ("1700000000.5", "2023-11-14T22:13:20.5Z"):
            assert (await client.get(f"{PAIR}&timestamp={at}")).json["rating"] == reply.json["rating"]
        for body in (
            {"user_id": "ann", "item_id": "item-5"},
            {"user_id": "ann", "item_ids": ["item-5"]},
            {"pairs": [["ann", "item-5"]]},
        ):
            answer = (await client.post("/predict", body)).json
            assert answer.get("predictions", [answer])[0]["rating"] == reply.json["rating"]
        for user, item, basis in (
            ("unknown", "item-1", "item"),
            ("unknown", "nothing", "prior"),
            ("ann", "nothing", "user"),
        ):
            reply = await client.get(f"/predict?user_id={user}&item_id={item}")
            assert (reply.status, reply.json["basis"]) == (200, basis)


async def test_a_rating_is_known_everywhere(both: list[Client], shared_store: Store, shared: Written) -> None:
    one, other = both
    for step, value in enumerate((1.0, 5.0, 2.0)):
        reply = await one.post("/ratings", {"user_id": "eve", "item_id": f"item-{step}", "rating": value})
        assert (reply.status, reply.json["accepted"]) == (200, 1)
        wanted = await expected(shared_store, shared, "eve", 7)
        for client in both:
            answer = (await client.get("/predict?user_id=eve&item_id=item-7")).json
            assert answer["rating"] == pytest.approx(wanted, abs=1e-5)
        assert (await other.get("/users/eve")).json["ratings"] == step + 1
    # One is taken back.
    before = (await one.get("/predict?user_id=eve&item_id=item-7")).json["rating"]
    await other.post("/ratings", {"user_id": "eve", "item_id": "item-3", "rating": 1})
    assert (await one.get("/predict?user_id=eve&item_id=item-7")).json["rating"] != before
    reply = await other.ask("DELETE", "/ratings/eve/item-3")
    assert (reply.status, reply.json["deleted"]) == (200, 1)
    after = (await one.get("/predict?user_id=eve&item_id=item-7")).json["rating"]
    assert after == pytest.approx(before, abs=1e-5)
    for path in ("/ratings/eve/item-3", "/ratings/unknown/item-3"):
        is_problem(await one.ask("DELETE", path), 404, "unknown_rating")
    # A new item is registered by being rated, and has the prior until it is folded in.
    await one.post("/ratings", {"user_id": "eve", "item_id": "brand new", "rating": 4})
    assert (await one.get("/predict?user_id=eve&item_id=brand+new")).json["basis"] == "user"
    assert (await one.get("/items/brand%20new")).json["ratings"] == 0


async def test_an_array_and_lines_are_taken_and_ids_come_back_as_they_were(client: Client) -> None:
    rows = [{"user_id": 7, "item_id": n, "rating": 3.5, "timestamp": 10.0 + n} for n in range(3)]
    assert (await client.post("/ratings", rows)).json["accepted"] == 3
    lines = b'{"user_id": 7, "item_id": 8, "rating": 1}\n\n{"user_id": "7", "item_id": 9, "rating": 2}\n'
    assert (await client.post("/ratings", lines, headers=LINES)).json["accepted"] == 2
    page = (await client.get("/users/7/ratings?n=2&offset=2")).json
    assert (page["total"], [each["item_id"] for each in page["ratings"]]) == (5, ["2", "1"])
    assert page["ratings"][0] == {"item_id": "2", "rating": 3.5, "timestamp": 12.0}
    for raw, path in (
        ("é/☃", "%C3%A9%2F%E2%98%83"),
        ("a b+c", "a%20b+c"),
        ("%41", "%2541"),
        ("\x00{}", "%00%7B%7D"),
    ):
        assert (await client.post("/ratings", {"user_id": raw, "item_id": raw, "rating": 4})).status == 200
        assert (await client.get(f"/users/{path}")).json["user_id"] == raw
        assert (await client.get(f"/users/{path}/ratings")).json["ratings"][0]["item_id"] == raw


async def test_lists_and_explanations(client: Client) -> None:
    # Of items that are there from the beginning: others come with the ratings of other tests.
    known = [f"item-{n}" for n in range(ITEMS)]
    reply = (await client.post("/recommend/ann", {"n": 1000, "candidate_items": known})).json
    names = [each["item_id"] for each in reply["items"]]
    assert sorted(names) == sorted(known[3:])
    scores = [each["score"] for each in reply["items"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx((await client.get(f"/predict?user=ann&item={names[0]}")).json["rating"])
    page = await client.post("/recommend/ann", {"n": 3, "offset": 2, "candidate_items": known})
    assert [each["item_id"] for each in page.json["items"]] == names[2:5]
    every = {"n": 1000, "exclude_seen": False, "candidate_items": known}
    assert len((await client.post("/recommend/ann", every)).json["items"]) == ITEMS
    drawn = {"explore": "thompson", "seed": 1, "candidate_items": known}
    draws = [(await client.post("/recommend/ann", drawn)).json for _ in range(2)]
    # Each answer has an id of its own.
    assert len({each.pop("recommendation_id") for each in draws}) == 2
    assert draws[0] == draws[1]
    # For someone who is not stored.
    unknown = {"ratings": [{"item_id": "who?", "rating": 3}], "explore": "thompson"}
    assert (await client.post("/recommend", unknown)).json["ignored"] == 1
    assert (await client.get("/recommend/unknown")).status == 200
    why = (await client.get("/explain/ann/item-9")).json
    total = why["base"] + sum(part["contribution"] for part in why["parts"])
    assert total == pytest.approx(why["rating"], abs=1e-6)
    assert why["rating"] == (await client.get("/predict?user_id=ann&item_id=item-9")).json["rating"]
    parts = {part["item_id"]: part["rating"] for part in why["parts"]}
    assert parts == {"item-0": 5, "item-1": 1, "item-2": 4}
    assert (await client.get("/explain/unknown/nothing")).json["parts"] == []


BAD_QUERIES = [
    ("/predict", "missing_parameter", "user_id"),
    ("/predict?user_id=ann", "missing_parameter", "item_id"),
    ("/predict?user_id=u&item_id=%ff", "invalid_parameter", "item_id"),
    (f"/predict?user_id={'x' * 257}&item_id=i", "invalid_parameter", "user_id"),
    ("/predict?user_id=u&item_id=i&timestamp=nan", "invalid_parameter", "timestamp"),
    ("/recommend/u?n=0", "invalid_parameter", "n"),
    ("/recommend/u?explore=all", "invalid_parameter", "explore"),
    ("/popular?n=1e3", "invalid_parameter", "n"),
    ("/users/u/ratings?n=0", "invalid_parameter", "n"),
]


async def test_bad_queries_name_their_field(both: list[Client]) -> None:
    for client in both:
        for path, code, field in BAD_QUERIES:
            assert is_problem(await client.get(path), 400, code, field=field)


NINES = b"9" * 4_301
BAD_BODIES: list[tuple[str, bytes, str, str | None, int | None]] = [
    ("/predict", b"{}", "invalid_body", "item_id", None),
    ("/predict", b'{"pairs": [["u", "i"], ["u"]]}', "invalid_body", "pairs", 1),
    ("/predict", b'{"user_id": "u", "item_ids": ["i", 1.5]}', "invalid_body", "item_ids", 1),
    ("/predict", b'{"user_id": NaN, "item_id": 1}', "invalid_body", "user_id", None),
    ("/predict", b'{"pairs": [' + b'["u","i"],' * 10_000 + b'["u","i"]]}', "too_many_rows", "pairs", None),
    ("/recommend", b'{"ratings": [{"item_id": 1, "rating": 9}]}', "invalid_body", "ratings.rating", 0),
    ("/recommend", b'{"ratings": [], "order": "best"}', "invalid_rule", "/order", None),
    ("/recommend/ann", b'{"scenario": "gone"}', "unknown_scenario", "scenario", None),
    ("/recommend/ann", b'{"filter":' * 5_000, "malformed_json", None, None),
    ("/ratings", b'[{"user_id":"u","item_id":"i","rating":3},{"user_id":"u"}]', "invalid_body", "item_id", 1),
    ("/ratings", b'{"user_id":1,"item_id":1,"rating":' + NINES + b"}", "invalid_body", "rating", None),
    ("/train", b'{"nb_users": 1}', "invalid_body", "nb_items", None),
]
PAIRS: dict[str, Any] = {"user_history": [0, 1], "item_history": [0, 1], "rating_history": [1, 5]}
HISTORY: dict[str, Any] = {"nb_users": 2, "nb_items": 2} | PAIRS


async def test_bad_bodies_name_field_and_row_and_change_nothing(client: Client, shared_store: Store) -> None:
    before = await shared_store.stream.lag(1)
    status = {"malformed_json": 400, "unknown_scenario": 404}
    for path, body, code, field, row in BAD_BODIES:
        assert is_problem(await client.post(path, body), status.get(code, 422), code, field=field, row=row)
    for change, field, row in (
        ({"nb_users": 0}, "nb_users", None),
        ({"user_history": [0]}, "user_history", None),
        ({"user_history": [0, 2]}, "user_history", 1),
        ({"item_history": [-1, 0]}, "item_history", 0),
        ({"rating_history": [3, "4"]}, "rating_history", 1),
        ({"user_history": [], "item_history": [], "rating_history": []}, "rating_history", None),
    ):
        reply = await client.post("/train", {**HISTORY, **change})
        assert is_problem(reply, 422, "invalid_body", field=field, row=row)
    # What is wrong is said in the words of JSON.
    wrong: Any
    for wrong, says in (
        ([], "the body: must be an object, not a list"),
        ({"n": "5"}, "n: must be a whole number or null, not text"),
        ({"n": 1.5}, "n: must be a whole number or null, not a number with a decimal point"),
        ({"recency": True}, "recency: must be a number or null, not true or false"),
        ({"exclude_items": "dune"}, "exclude_items: must be a list or null, not text"),
    ):
        assert is_problem(await client.post("/recommend", wrong), 422, "invalid_body", says)
    # The row of a large one is found, too.
    good = b'{"user_id": "u", "item_id": "i", "rating": 3}'
    body = b"[" + b",".join([good] * 5000 + [good.replace(b"3", b"NaN")] + [good] * 10) + b"]"
    assert is_problem(await client.post("/ratings", body), 422, "invalid_body", field="rating", row=5000)
    assert await shared_store.stream.lag(1) == before
    assert (await shared_store.generations.live()).pending == 0


async def test_wrong_methods_and_types(client: Client) -> None:
    for method, path in (("PUT", "/predict"), ("DELETE", "/generations"), ("TRACE", "/ratings")):
        reply = await client.ask(method, path)
        assert is_problem(reply, 405, "method_not_allowed")
        assert method not in reply.headers["Allow"].split(", ")
        options = await client.ask("OPTIONS", path)
        assert (options.status, options.text) == (204, "")
        assert options.headers["Allow"] == reply.headers["Allow"]
    body = b'{"user_id": "typed", "item_id": "item-1", "rating": 3}'
    # A parser of e-mail headers takes seconds for some of these, and all of the stack for others.
    for kind in ("text/plain", "", "application/json; charset=utf-16", "(" * 8_000, '"' * 8_000):
        reply = await client.post("/ratings", body, headers={"Content-Type": kind})
        is_problem(reply, 415, "unsupported_media_type")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await client.post("/ratings", body, headers=form)
    assert is_problem(reply, 415, "unsupported_media_type", "-H 'content-type: application/json'")
    for kind in ('Application/JSON ;x=y; charset="UTF-8"', "application/vnd.ratings+json;charset=utf8"):
        assert (await client.post("/ratings", body, headers={"Content-Type": kind})).status == 200
    for path in ("/predict", "/recommend", "/train"):
        is_problem(await client.post(path, b"{}\n", headers=LINES), 415, "unsupported_media_type")
    # Nothing is inflated: a few hundred bytes would be work of seconds.
    for path in ("/ratings", "/predict", "/train"):
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        reply = await client.post(path, gzip.compress(body), headers=headers)
        assert is_problem(reply, 415, "unsupported_media_type", says="Content-Encoding")
    # Without any type, as a form of another site sends it.
    for path in ("/ratings", "/train", "/recommend"):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        found = await asyncio.to_thread(send_raw, client.port, head.encode() + body)
        assert found.split()[1] == b"415", path


async def test_bodies_are_bounded(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 2**20

    for path in ("/ratings", "/items", "/users"):
        for data in (io.BytesIO(b"x" * (11 * 2**20)), chunks()):
            assert is_problem(await client.ask("POST", path, data=data, headers=JSON), 413, "body_too_large")
    assert (await client.get("/livez")).status == 200


async def test_pages_and_probes(client: Client, shared: Written) -> None:
    assert (await client.get("/livez")).json == {"alive": True}
    assert (await client.get("/readyz")).json["generation"] == shared.writer.number
    for path in ("/", "/docs", "/static/style.css", "/static/app/main.js", "/static/docs.js"):
        page = (await client.get(path)).ok
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page.text
        # A browser that has it gets nothing again.
        again = await client.get(path, headers={"If-None-Match": page.headers["ETag"]})
        assert (again.status, again.text) == (304, "")


async def test_a_rating_is_predicted_by_what_was_known_before_it_and_counted(
    asked: Served, shared_store: Store, shared: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, app = asked
    counts, errors, wanted = app[CONTEXT].counts, app[CONTEXT].rating_errors, 0.0
    follower = app[CONTEXT].follower
    await errors.count()
    before = counts.squared_error.count, counts.squared_error.sum, counts.ratings
    # In one round trip: the user is not read besides.
    monkeypatch.setattr(app[CONTEXT].store.users, "lookup", None)
    await shared_store.ratings.append([rating("judge", "item-0", 5.0)])
    for row, given in ((5, 1), (6, 5), (7, 2)):
        # As where items have changed since the fit.
        live = require_live(follower)
        follower.live = replace(live, items=live.items.copy())
        wanted += (given - await expected(shared_store, shared, "judge", row)) ** 2
        sent = {"user_id": "judge", "item_id": f"item-{row}", "rating": given}
        assert (await client.post("/ratings", sent)).status == 200
    await errors.count()
    assert counts.squared_error.count - before[0] == 3
    assert counts.squared_error.sum - before[1] == pytest.approx(wanted, rel=1e-4)
    # What is damaged of a user keeps no rating back, and nothing is predicted from it.
    await shared_store.redis.append(shared_store.keys.history(1, b"judge"), b"torn")
    for user in ("juror", "judge"):
        sent = {"user_id": user, "item_id": "item-1", "rating": 4}
        assert (await client.post("/ratings", sent)).status == 200
    await errors.count()
    assert counts.squared_error.count - before[0] == 4
    assert counts.ratings - before[2] == 5
    status = (await client.get("/status")).json
    assert (status["generation"], status["accepted_ratings"]) == (shared.writer.number, counts.ratings)
    assert math.isfinite(status["rmse"])
    text = (await client.get("/metrics")).text
    for line in (
        f"foldin_rating_squared_error_count {float(counts.squared_error.count)}",
        f"foldin_ratings_total {float(counts.ratings)}",
        f'foldin_generation{{worker="0"}} {shared.writer.number}.0',
        "foldin_store_up 1.0",
    ):
        assert line in text, line
