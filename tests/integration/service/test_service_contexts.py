"""Contexts of ratings and of questions, from the call to the answer."""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from factors import Histories, Scorer, posterior_of
from factors.model.context import ContextEffects, ContextEncoding
from factors.model.parameters import from_model, to_model
from featurestore.errors import StoreUnavailable
from featurestore.ratings.context_schema import ContextField, ContextSchema
from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from tests.support.factories import Written, lead, make_model, publish
from tests.support.serving import LINES, Client, is_problem, serving

ITEMS = 8
EVENING = {"hour": 20, "device": "tv"}
MORNING = {"hour": 8, "device": "phone"}


@pytest.fixture
async def written(store: Store) -> Written:
    """A generation in which the hour (field 0, 14 on average) and the device (field 1) move ratings."""
    parameters = from_model(make_model())
    encoding = ContextEncoding(np.array([[0.0, 14.0, 6.0]]), np.array([[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]))
    effects = np.random.default_rng(1).normal(0.0, 0.4, (3, parameters.users.layout.dim))
    model = to_model(replace(parameters, context=ContextEffects(encoding, effects)))
    await store.items(1).register([b"item-%d" % row for row in range(ITEMS)])
    return await publish(store, await lead(store), n_items=ITEMS, users=[], model=model)


@pytest.fixture
async def client(written: Written, store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings) as (client, _):
        schema = {
            "hour": {"kind": "number"},
            "device": {"kind": "category", "categories": ["phone", "tv"]},
        }
        reply = await client.ask("PUT", "/schema", json={"context": schema})
        assert (reply.status, reply.json["context"]) == (200, schema)
        yield client


def pair(user: str, item: int, context: object = None) -> str:
    asked = "" if context is None else f"&context={quote(json.dumps(context))}"
    return f"/predict?user_id={user}&item_id=item-{item}{asked}"


def row(user: str, item: int, value: float, context: object = None, **more: object) -> dict[str, Any]:
    return {"user_id": user, "item_id": f"item-{item}", "rating": value, "context": context, **more}


def expected(
    written: Written, rated: list[tuple[int, float, list[float]]], item: int, now: list[float]
) -> float:
    """The rating of an item in the context `now`, of a user who rated in contexts, by `factors` alone."""
    posterior = posterior_of(written.model)
    history = Histories(
        np.array([0, len(rated)]),
        np.array([each[0] for each in rated], dtype=np.int32),
        np.array([each[1] for each in rated]),
        np.full(len(rated), 1e9),
        context=np.array([each[2] for each in rated], dtype=np.float32),
    )
    users = posterior.fold_in_users(written.items, history)
    scorer = Scorer(posterior, written.items)
    context = np.array([now], dtype=np.float32)
    return float(scorer.score(users, np.zeros(1, np.int64), np.array([item]), context=context).rating[0])


async def test_what_one_worker_took_in_a_context_the_other_answers_with(
    client: Client, written: Written, store_settings: StoreSettings
) -> None:
    async with serving(store_settings) as (other, _):
        body = [row("ann", 0, 5, EVENING, timestamp=1e9), row("ann", 1, 1, MORNING, timestamp=1e9)]
        assert (await client.post("/ratings", body)).json["accepted"] == 2
        rated = [(0, 5.0, [20.0, 1.0]), (1, 1.0, [8.0, 0.0])]
        for now, as_sent in (([20.0, 1.0], EVENING), ([8.0, math.nan], {"hour": 8, "device": "car"})):
            answer = (await other.get(pair("ann", 5, as_sent))).json
            assert answer["rating"] == pytest.approx(expected(written, rated, 5, now), abs=2e-3)
        # One that takes the place of another has its own context, and counts from the next answer on.
        again = row("ann", 0, 5, timestamp=1e9 + 1)
        assert (await other.post("/ratings", again)).status == 200
        rated[0] = (0, 5.0, [math.nan, math.nan])
        answer = (await client.get(pair("ann", 5, MORNING))).json
        assert answer["rating"] == pytest.approx(expected(written, rated, 5, [8.0, 0.0]), abs=2e-3)
        page = (await other.get("/users/ann/ratings")).json["ratings"]
        assert [(each["item_id"], each.get("context")) for each in page] == [
            ("item-0", None),
            ("item-1", MORNING),
        ]


async def test_every_answer_about_a_pair_is_the_same_number(client: Client) -> None:
    assert (await client.post("/ratings", [row("ann", 0, 5, EVENING), row("ann", 1, 2)])).status == 200
    numbers = {}
    for name, context in (("evening", EVENING), ("morning", MORNING), ("none", None)):
        got = (await client.get(pair("ann", 4, context))).json
        body: dict[str, Any] = {"user_id": "ann", "item_id": "item-4", "context": context}
        assert (await client.post("/predict", body)).json["rating"] == got["rating"]
        asked = "" if context is None else f"?context={quote(json.dumps(context))}"
        why = (await client.get(f"/explain/ann/item-4{asked}")).json
        assert (why["rating"], why["std"]) == (got["rating"], got["std"])
        assert why["base"] + sum(part["contribution"] for part in why["parts"]) == pytest.approx(
            why["rating"]
        )
        with_steps = (await client.get(pair("ann", 4, context) + "&timestamp=1e9")).json
        assert with_steps["rating"] == got["rating"]
        for listed in (
            await client.get(f"/recommend/ann{asked}"),
            await client.post("/recommend/ann", {} if context is None else {"context": context}),
        ):
            ratings = {each["item_id"]: each["rating"] for each in listed.json["items"]}
            assert ratings["item-4"] == pytest.approx(got["rating"], abs=1e-4)
        numbers[name] = got["rating"]
    assert len(set(numbers.values())) == 3, "contexts move this model"
    pairs = [["ann", "item-4"]] * 3
    for contexts in ([EVENING, MORNING, None], EVENING):
        found = (await client.post("/predict", {"pairs": pairs, "context": contexts})).json["predictions"]
        names = ["evening", "morning", "none"] if isinstance(contexts, list) else ["evening"] * 3
        assert [each["rating"] for each in found] == [numbers[name] for name in names]


async def test_someone_who_is_not_stored_may_have_contexts(client: Client) -> None:
    ratings = [row("ann", 0, 5, EVENING), row("ann", 1, 2, MORNING)]
    assert (await client.post("/ratings", ratings)).status == 200
    stored = (await client.post("/recommend/ann", {"context": EVENING, "n": 5})).json["items"]
    anonymous = [{key: each[key] for key in ("item_id", "rating", "context")} for each in ratings]
    answer = await client.post("/recommend", {"ratings": anonymous, "context": EVENING, "n": 5})
    assert [each["item_id"] for each in answer.json["items"]] == [each["item_id"] for each in stored]
    assert answer.json["items"][0]["rating"] == pytest.approx(stored[0]["rating"], abs=1e-3)
    anonymous[1]["context"] = {"day": 1}
    refused = await client.post("/recommend", {"ratings": anonymous})
    assert is_problem(refused, 422, "unknown_context_field")
    assert (refused.json["field"], refused.json["row"]) == ("ratings.context.day", 1)


BAD: dict[str, tuple[object, str]] = {
    "another kind": ({"hour": "noon"}, "context.hour"),
    "a number for a category": ({"device": 3}, "context.device"),
    "a list": ({"hour": [1]}, "context.hour"),
    "an object": ({"new": {"a": 1}}, "context.new"),
    "past float32": ({"hour": 1e39}, "context.hour"),
    "a long text": ({"new": "x" * 65}, "context.new"),
    "a long name": ({"n" * 65: 1}, f"context.{'n' * 64}"),
    "33 fields": ({f"v{number}": 1 for number in range(31)}, "context.v30"),
    "a megabyte in a text": ({"new": "x" * 1_000_000}, "context.new"),
    "a megabyte of fields": ({f"v{number}": 1 for number in range(80_000)}, "context.v30"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
async def test_a_context_that_cannot_be_taken_is_named_and_nothing_is_stored(
    client: Client, store: Store, name: str
) -> None:
    context, field = BAD[name]
    before = await store.contexts.fresh()
    rows = [row("ann", 0, 5, MORNING), row("ann", 1, 5, context)]
    for body, headers in (
        (json.dumps(rows).encode(), {"Content-Type": "application/json"}),
        (b"\n".join(json.dumps(each).encode() for each in rows), LINES),
    ):
        reply = await client.post("/ratings", body, headers=headers)
        assert is_problem(reply, 422, "invalid_context"), reply.text
        assert (reply.json["field"], reply.json["row"]) == (field, 1)
    assert await store.contexts.fresh() == before
    assert (await client.get("/users/ann")).status == 404


async def test_numbers_that_json_does_not_have_are_named(client: Client) -> None:
    good = json.dumps(row("ann", 0, 5, MORNING))
    for text in ("NaN", "1e400", "-Infinity"):
        bad = good.replace('"hour": 8', f'"hour": {text}')
        reply = await client.post("/ratings", f"[{good},{bad}]".encode())
        assert is_problem(reply, 422, "invalid_body")
        assert (reply.json["field"], reply.json["row"]) == ("context.hour", 1)
    assert (await client.get("/users/ann")).status == 404


async def test_the_257th_category_is_refused_and_the_others_stay(client: Client) -> None:
    texts = [f"d{number}" for number in range(254)]
    rows = [row("ann", number % ITEMS, 3, {"device": text}) for number, text in enumerate(texts)]
    assert (await client.post("/ratings", rows)).status == 200
    reply = await client.post(
        "/ratings", [row("bob", 0, 3, EVENING), row("bob", 1, 3, {"device": "one more"})]
    )
    assert is_problem(reply, 422, "invalid_context")
    assert (reply.json["field"], reply.json["row"]) == ("context.device", 1)
    # As a question it is not given.
    asked = [
        (await client.get(pair("ann", 3, context))).json["rating"] for context in ({"device": "new"}, None)
    ]
    assert asked[0] == asked[1]
    assert len((await client.get("/schema")).json["context"]["device"]["categories"]) == 256


async def test_a_field_that_no_rating_has_is_refused_in_every_question(client: Client) -> None:
    asked = quote('{"day": 3}')
    body = {"context": {"day": 3}}
    for reply in (
        await client.get(f"/predict?user_id=u&item_id=i&context={asked}"),
        await client.post("/predict", {"user_id": "u", "item_id": "i", **body}),
        await client.post("/predict", {"pairs": [["u", "i"]], **body}),
        await client.get(f"/recommend/u?context={asked}"),
        await client.post("/recommend/u", body),
        await client.post("/recommend", {"ratings": [], **body}),
        await client.get(f"/explain/u/item-1?context={asked}"),
    ):
        assert is_problem(reply, 422, "unknown_context_field")
        assert reply.json["field"] == "context.day"
        assert "hour, device" in reply.json["detail"]
        assert "row" not in reply.json
    several = {"pairs": [["u", "i"]] * 2, "context": [None, {"day": 3}]}
    assert (await client.post("/predict", several)).json["row"] == 1
    is_problem(await client.get("/predict?user_id=u&item_id=i&context=%7B"), 400, "invalid_parameter")


async def test_a_field_of_a_moment_ago_is_known_to_another_worker(
    client: Client, store_settings: StoreSettings
) -> None:
    async with serving(store_settings) as (other, _):
        # It has a copy of the schema now.
        assert (await other.get(pair("ann", 1, MORNING))).status == 200
        assert (await client.post("/ratings", row("ann", 0, 5, {"weather": "rain"}))).status == 200
        assert (await other.get(pair("ann", 1, {"weather": "rain"}))).status == 200
        assert (await other.get("/users/ann/ratings")).json["ratings"][0]["context"] == {"weather": "rain"}


async def test_events_that_are_ratings_have_contexts(client: Client) -> None:
    event = {"user_id": "ann", "item_id": "item-0"}
    rated = {**event, "type": "rating", "value": 4, "context": EVENING}
    assert (await client.post("/events", [rated, {**event, "type": "view"}])).status == 200
    assert (await client.get("/users/ann/ratings")).json["ratings"][0]["context"] == EVENING
    reply = await client.post("/events", [rated, {**event, "type": "view", "context": EVENING}])
    assert is_problem(reply, 422, "invalid_context")
    assert (reply.json["field"], reply.json["row"]) == ("context", 1)


async def test_a_schema_that_cannot_be_told_is_refused_whole(client: Client) -> None:
    for told, field in (
        ({"hour": {"kind": "category"}}, "context.hour"),
        ({"age": {"kind": "number", "categories": ["old"]}}, "context.age"),
        ({f"v{number}": {"kind": "number"} for number in range(31)}, "context.v30"),
    ):
        reply = await client.ask("PUT", "/schema", json={"items": {"year": "number"}, "context": told})
        assert is_problem(reply, 422, "invalid_context")
        assert reply.json["field"] == field
    schema = (await client.get("/schema")).json
    assert (schema["items"], [*schema["context"]]) == ({}, ["hour", "device"])


async def test_what_is_wrong_with_a_schema_is_named(client: Client) -> None:
    for told, field in (
        ({"context": {"day": {"kind": "number"}, "mood": {"kind": "text"}}}, "context.mood.kind"),
        ({"context": {"day": {}}}, "context.day.kind"),
        ({"context": {"day": {"kind": "category", "categories": ["a", 1]}}}, "context.day.categories"),
        ({"context": {"day": 5}}, "context.day"),
        ({"items": {"year": "time", "title": "words"}}, "items.title"),
        ({"users": []}, "users"),
    ):
        reply = await client.ask("PUT", "/schema", json=told)
        assert is_problem(reply, 422, "invalid_body"), reply.text
        assert reply.json["field"] == field
        assert reply.json["detail"].startswith(field)


async def test_a_field_is_retired_and_comes_back(client: Client, store_settings: StoreSettings) -> None:
    assert (await client.post("/ratings", row("ann", 0, 5, {**EVENING, "houre": 8}))).status == 200

    async def shown() -> Any:
        return (await client.get("/users/ann/ratings")).json["ratings"][0].get("context")

    reply = await client.ask("DELETE", "/schema/context/houre")
    assert (reply.status, [*reply.json["context"]]) == (200, ["hour", "device"])
    reply = await client.ask("DELETE", "/schema/context/device/tv")
    assert (reply.status, reply.json["context"]["device"]["categories"]) == (200, ["phone"])
    assert await shown() == {"hour": 20}
    for address in ("houre", "none", "device/tv", "device/none", "hour/1", "%FF"):
        reply = await client.ask("DELETE", f"/schema/context/{address}")
        assert reply.status in (400, 404), reply.text
    reply = await client.post("/ratings", [row("bob", 0, 5), row("bob", 1, 5, {"houre": 1})])
    assert is_problem(reply, 422, "invalid_context")
    assert (reply.json["field"], reply.json["row"]) == ("context.houre", 1)
    assert "PUT /schema" in reply.json["detail"]
    assert is_problem(await client.get(pair("ann", 1, {"houre": 1})), 422, "unknown_context_field")
    # As a category that no rating was given with.
    plain, asked = [(await client.get(pair("ann", 1, each))).json for each in (None, {"device": "tv"})]
    assert plain == asked
    async with serving(store_settings) as (other, _):
        assert (await other.get(pair("ann", 1, MORNING))).status == 200
        told = {"houre": {"kind": "number"}, "device": {"kind": "category", "categories": ["tv"]}}
        assert (await client.ask("PUT", "/schema", json={"context": told})).status == 200
        assert await shown() == {**EVENING, "houre": 8}
        assert (await other.post("/ratings", row("ann", 1, 5, {**EVENING, "houre": 1}))).status == 200


@pytest.mark.slow
async def test_ratings_that_are_refused_leave_no_field(
    written: Written, store: Store, store_settings: StoreSettings
) -> None:
    async with serving(replace(store_settings, stream_limit=10), history_entries=1) as (client, _):
        assert (await client.post("/ratings", row("ann", 0, 5))).status == 200
        first = {**row("bob", 0, 5, {"typo": 1}), "item_id": "new"}
        assert (await client.post("/ratings", first)).status == 200
        for rows, code in (
            (row("ann", 0, 5, {"one": 1}), "too_many_ratings"),
            ([row(f"u{k}", 0, 5, {"three": k}) for k in range(60)], "stream_full"),
        ):
            reply = await client.post("/ratings", rows)
            assert reply.json["code"] == code, reply.text
        assert [each.name for each in (await store.contexts.fresh()).fields] == ["typo"]
        # The history is not replaced unasked, and its fields are not told.
        history = {
            "user_history": [0],
            "item_history": [0],
            "rating_history": [3],
            "variables_history": [[1]],
        }
        reply = await client.post("/train", {"nb_users": 1, "nb_items": 1, **history})
        assert is_problem(reply, 409, "ratings_would_be_lost")
        assert [each.name for each in (await store.contexts.fresh()).fields] == ["typo"]


async def test_damaged_fields_are_told_and_plain_questions_go_on(client: Client, store: Store) -> None:
    await store.redis.set(store.keys.contexts, b"{")
    is_problem(await client.get("/schema"), 503, "data_damaged")
    is_problem(await client.post("/ratings", row("ann", 0, 5, {"new": 1})), 503, "data_damaged")
    assert (await client.post("/ratings", row("ann", 0, 5))).status == 200
    for context in (None, MORNING):
        assert (await client.get(pair("ann", 1, context))).status == 200


async def test_a_retired_field_is_taken_by_no_worker(client: Client, store_settings: StoreSettings) -> None:
    async with serving(store_settings) as (other, _):
        for context, address in (({"houre": 1}, "houre"), ({"device": "tv"}, "device/tv")):
            # The other one has read just now what there is.
            assert (await other.post("/ratings", row("ann", 0, 5, context))).status == 200
            assert (await client.ask("DELETE", f"/schema/context/{address}")).status == 200
            reply = await other.post("/ratings", row("ann", 1, 5, context))
            assert is_problem(reply, 422, "invalid_context")


async def test_a_schema_is_told_whole_or_not_at_all(
    written: Written, store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another call fixes a type between the look and the write, and where the store goes away there."""
    told: dict[str, Any] = {
        "items": {"price": "number", "year": "number"},
        "users": {"age": "number"},
        "context": {"device": {"kind": "category", "categories": ["phone", "tv"]}},
    }
    async with serving(store_settings) as (client, app):
        schema = app[CONTEXT].store.catalogue.schema
        hold_all = schema.hold_all

        async def later(types: Any) -> None:
            monkeypatch.setattr(schema, "hold_all", hold_all)
            await schema.hold("items", {"year": "text"})
            await hold_all(types)

        monkeypatch.setattr(schema, "hold_all", later)
        reply = await client.ask("PUT", "/schema", json=told)
        assert is_problem(reply, 422, "invalid_body")
        assert reply.json["field"] == "items.year"
        left = {"items": {"year": "text"}, "users": {}, "context": {}}
        assert (await client.get("/schema")).json == left
        told["items"]["year"] = "text"

        async def away(types: Any) -> None:
            raise StoreUnavailable("it is away", 0.1)

        monkeypatch.setattr(schema, "hold_all", away)
        is_problem(await client.ask("PUT", "/schema", json=told), 503, "store_unavailable")
        assert (await client.get("/schema")).json == left
        monkeypatch.setattr(schema, "hold_all", hold_all)
        assert (await client.ask("PUT", "/schema", json=told)).json == told


async def test_names_of_categories_are_composed_and_trimmed(client: Client, store: Store) -> None:
    for context in (
        {"place": " caf\u0065\u0301 "},
        {"place": "caf\u00e9"},
        {"place": "home\n"},
        {"place": "home"},
    ):
        assert (await client.post("/ratings", row("ann", 0, 5, context))).status == 200
        # The latest of an item holds.
        shown = (await client.get("/users/ann/ratings")).json["ratings"][0]["context"]
        assert shown in ({"place": "caf\u00e9"}, {"place": "home"})
    place = (await client.get("/schema")).json["context"]["place"]
    assert place == {"kind": "category", "categories": ["caf\u00e9", "home"]}
    # What is empty then is not given, be it of a field that is not there.
    for context in ({"place": "  "}, {"place": ""}, {"none": " \t"}):
        assert (await client.post("/ratings", row("ann", 1, 5, context))).status == 200
        assert (await client.get(pair("ann", 1, context))).status == 200
    assert "none" not in (await client.get("/schema")).json["context"]
    reply = await client.post("/ratings", row("ann", 1, 5, {"hour": ""}))
    assert is_problem(reply, 422, "invalid_context")
    # The limit is one of the name that is kept.
    assert (await client.post("/ratings", row("ann", 1, 5, {"place": f" {'x' * 64} "}))).status == 200
    told = {"place": {"kind": "category", "categories": [" caf\u00e9", "home ", "work "]}}
    reply = await client.ask("PUT", "/schema", json={"context": told})
    assert reply.json["context"]["place"]["categories"] == ["caf\u00e9", "home", "x" * 64, "work"]
    told["place"]["categories"] = ["  "]
    reply = await client.ask("PUT", "/schema", json={"context": told})
    assert is_problem(reply, 422, "invalid_context")
    assert (await client.ask("DELETE", "/schema/context/place/%20home")).status == 200
    for text in ("home", " home"):
        reply = await client.post("/ratings", row("ann", 1, 5, {"place": text}))
        assert is_problem(reply, 422, "invalid_context")


async def test_names_that_were_stored_before_stay_readable(client: Client, store: Store) -> None:
    old = ContextSchema((ContextField("place", "category", (" home", "", "home")),))
    await store.contexts.change(lambda before: before.merged(old))
    wanted = [(" home", " home"), ("", ""), ("home ", "home"), ("home", "home")]
    for item, (text, _) in enumerate(wanted):
        assert (await client.post("/ratings", row("ann", item, 5, {"place": text}))).status == 200
    shown = (await client.get("/users/ann/ratings")).json["ratings"][::-1]
    assert [each["context"]["place"] for each in shown] == [name for _, name in wanted]

    # What GET says is taken as it is.
    schema = (await client.get("/schema")).json
    assert (await client.ask("PUT", "/schema", json=schema)).json == schema

    async def retired(query: str) -> Any:
        reply = await client.ask("DELETE", f"/schema/context/place?{query}")
        assert reply.status == 200, reply.text
        return reply.json["context"]["place"].get("categories")

    assert await retired("category=") == [" home", "home"]
    reply = await client.ask("DELETE", "/schema/context/place?category=")
    assert is_problem(reply, 404, "not_found")
    # The same as the address of the category; the field stays.
    assert await retired("category=home") == [" home"]
    assert await retired("category=%20home") is None
