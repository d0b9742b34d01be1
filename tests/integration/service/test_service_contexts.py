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
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import Written, make_model, publish_for_ann
from tests.support.serving import Client, is_problem, serving

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
    return await publish_for_ann(store, {}, ITEMS, model=model)


@pytest.fixture
async def client(written: Written, store_settings: StoreSettings) -> AsyncIterator[Client]:
    async with serving(store_settings, live=written.writer.number) as (client, _):
        schema = {"hour": {"kind": "number"}, "device": {"kind": "category", "categories": ["phone", "tv"]}}
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
    posterior = posterior_of(written.model)
    rows, values, contexts = zip(*rated, strict=True)
    columns = np.array(rows, np.int32), np.array(values), np.full(len(rated), 1e9)
    history = Histories(np.array([0, len(rated)]), *columns, context=np.array(contexts, np.float32))
    users = posterior.fold_in_users(written.items, history)
    scorer = Scorer(posterior, written.items)
    context = np.array([now], dtype=np.float32)
    return float(scorer.score(users, np.zeros(1, np.int64), np.array([item]), context=context).rating[0])


async def test_what_one_worker_took_in_a_context_the_other_answers_with(
    client: Client, written: Written, store_settings: StoreSettings
) -> None:
    async with serving(store_settings, live=written.writer.number) as (other, _):
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
        found = [(each["item_id"], each.get("context")) for each in page]
        assert found == [("item-0", None), ("item-1", MORNING)]


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
        total = why["base"] + sum(part["contribution"] for part in why["parts"])
        assert total == pytest.approx(why["rating"])
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


async def test_a_moment_counts_in_every_form_of_a_prediction(
    store: Store, store_settings: StoreSettings
) -> None:
    parameters = from_model(make_model())
    layout = replace(parameters.users.layout, slots=4)
    users = replace(parameters.users, layout=layout, session_length=3600.0, session_variance=0.5)
    model = to_model(replace(parameters, users=users))
    written = await publish_for_ann(store, {}, ITEMS, model=model)
    async with serving(store_settings, live=written.writer.number) as (client, _):
        rated = [row("ann", item, 5 - 4 * item, timestamp=1e9 + item * 1e5) for item in (0, 1)]
        assert (await client.post("/ratings", rated)).status == 200
        moments: list[float | str | None] = [1e9, "2001-09-10T05:33:20Z", None]
        numbers = []
        for at in moments:
            when = "" if at is None else f"&timestamp={at}"
            numbers.append((await client.get(pair("ann", 4) + when)).json["rating"])
            body = {"user_id": "ann", "item_id": "item-4", "timestamp": at}
            assert (await client.post("/predict", body)).json["rating"] == numbers[-1]
        assert len(set(numbers)) == 3, "sessions move this model"
        for many in ({"user_id": "ann", "item_ids": ["item-4"] * 3}, {"pairs": [["ann", "item-4"]] * 3}):
            for sent, wanted in ((moments, numbers), (1e9, numbers[:1] * 3)):
                found = await client.post("/predict", {**many, "timestamp": sent})
                assert [each["rating"] for each in found.json["predictions"]] == wanted
            for wrong, at in ((["soon", 1, 2], 0), ([1e9], None)):
                reply = await client.post("/predict", {**many, "timestamp": wrong})
                assert is_problem(reply, 422, "invalid_body", field="timestamp", row=at)


async def test_a_field_that_was_not_named_is_refused_wherever_it_is_given(client: Client) -> None:
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
        await client.post("/ratings", row("u", 1, 5, {"day": 3})),
    ):
        assert is_problem(reply, 422, "unknown_context_field", field="context.day", says="hour, device")
        assert "row" not in reply.json
    several = {"pairs": [["u", "i"]] * 2, "context": [None, {"day": 3}]}
    assert (await client.post("/predict", several)).json["row"] == 1
    assert is_problem(await client.get("/predict?user_id=u&item_id=i&context=%7B"), 400, "invalid_parameter")
    assert (await client.get("/users/u/ratings")).status == 404
    # One that is deleted is none, and its name is free: nothing of before comes back under it.
    assert (await client.post("/ratings", row("ann", 1, 5, EVENING))).status == 200
    left = (await client.ask("DELETE", "/schema/context/device")).json["context"]
    assert left == {"hour": {"kind": "number"}}
    again = await client.ask("PUT", "/schema", json={"context": {"device": {"kind": "number"}}})
    assert again.json["context"]["device"] == {"kind": "number"}
    assert (await client.get("/users/ann/ratings")).json["ratings"][0]["context"] == {"hour": 20}
