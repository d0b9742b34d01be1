"""Nothing unknown is ignored: a name that a call does not have is refused, and nothing is done."""

import json
import re
import time
from typing import Any

import pytest

from featurestore.settings import StoreSettings
from service.routes import ROUTES
from tests.support.serving import is_problem, serving

# Filled into addresses: what they name need not be there, for names are looked at first.
IN_PATH = {"generation": "1", "field": "mood", "path": "x"}


def address(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: IN_PATH.get(found[1], "a"), path)


def struct_body(described: Any, schemas: Any) -> dict[str, Any] | None:
    """Return the schema of the object that a call takes; None where it takes none, or any names."""
    content = described.get("requestBody", {}).get("content", {})
    found = content.get("application/json", {}).get("schema", {})
    waiting = [found]
    while waiting:
        each = waiting.pop(0)
        if "$ref" in each:
            each = schemas[each["$ref"].rpartition("/")[2]]
        if each.get("properties"):
            return each if each.get("additionalProperties") is False else None
        waiting += (
            each.get("anyOf", []) + each.get("oneOf", []) + ([each["items"]] if "items" in each else [])
        )
    return None


async def test_each_call_refuses_names_that_it_does_not_have(store_settings: StoreSettings) -> None:
    async with serving(store_settings) as (client, _):
        document = (await client.get("/openapi.json")).json
        bodies = 0
        for route in ROUTES:
            if route.needs == "public":
                continue
            path = address(route.path)
            reply = await client.ask(route.method, f"{path}?nonsense=1", json={})
            is_problem(reply, 422, "unknown_parameter")
            assert "nonsense" in reply.json["detail"]
            body = struct_body(
                document["paths"][route.path][route.method.lower()], document["components"]["schemas"]
            )
            if body is not None:
                bodies += 1
                reply = await client.ask(route.method, path, json={"nonsense": 1})
                is_problem(reply, 422, "invalid_body")
                assert "nonsense" in reply.text or "is missing" in reply.text, (route.path, reply.text)
        assert bodies >= 9


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ({"filters": {}}, "filter"),
        ({"exclude_item": ["a"]}, "exclude_items"),
        ({"per_catgory": 1}, "per_category"),
        ({"diversity": {"lamda": 0.5}}, "lambda"),
    ],
)
async def test_a_typing_error_in_a_rule_is_named_with_the_nearest_rule(
    store_settings: StoreSettings, body: dict[str, Any], meant: str
) -> None:
    async with serving(store_settings) as (client, _):
        for method, path in (("POST", "/recommend/ann"), ("PUT", "/scenarios/home")):
            reply = await client.ask(method, path, json=body)
            is_problem(reply, 422, "invalid_body")
            assert meant in reply.json["detail"], reply.text
        reply = await client.get("/scenarios/home")
        is_problem(reply, 404, "unknown_scenario")


@pytest.mark.parametrize("path", ["/ratings", "/events"])
async def test_a_time_that_is_none_or_has_not_been_is_refused_and_its_unit_named(
    store_settings: StoreSettings, path: str
) -> None:
    row: dict[str, Any] = {"user_id": "a", "item_id": "b"}
    row |= {"rating": 3.0} if path == "/ratings" else {"type": "view"}
    async with serving(store_settings) as (client, _):
        now_s = time.time()
        for sent, said in ((now_s * 1000, "milliseconds"), (now_s + 90_000, "ahead"), ("soon", "ISO 8601")):
            reply = await client.post(path, [row, {**row, "timestamp": sent}])
            is_problem(reply, 422, "invalid_body")
            assert said in reply.json["detail"]
            assert (reply.json["field"], reply.json["row"]) == ("timestamp", 1)
        for given in (now_s + 3_600, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+01:00", 0):
            reply = await client.post(path, {**row, "timestamp": given})
            assert reply.status == 200, reply.text


async def test_a_parameter_and_a_row_are_named_with_the_nearest(store_settings: StoreSettings) -> None:
    async with serving(store_settings) as (client, _):
        for path, meant in (
            ("/recommend/ann?categories=x", "category"),
            ("/popular?limit=3", "n"),
            ("/predict?user_id=a&item_id=b&time=3", "timestamp"),
        ):
            reply = await client.get(path)
            is_problem(reply, 422, "unknown_parameter")
            assert meant in reply.json["detail"], reply.text
        rows = [
            {"user_id": "a", "item_id": "b", "rating": 3},
            {"user_id": "a", "item_id": "b", "ratng": 3, "rating": 3},
        ]
        for data in (rows[1], rows):
            reply = await client.post("/ratings", data)
            is_problem(reply, 422, "invalid_body")
            assert "rating" in reply.json["detail"]
            assert reply.json["field"] == "ratng"
        lines = "\n".join(map(json.dumps, rows)).encode()
        reply = await client.post("/ratings", lines, headers={"Content-Type": "application/x-ndjson"})
        is_problem(reply, 422, "invalid_body")
        reply = await client.get("/users/a/ratings")
        is_problem(reply, 404, "unknown_user")
