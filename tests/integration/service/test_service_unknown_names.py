"""Nothing unknown is ignored: a name that a call does not have is refused, and nothing is done."""

import json
import re
import time
from typing import Any

from service.routes import ROUTES
from tests.support.serving import LINES, Client, is_problem

# Filled into addresses: what they name need not be there, for names are looked at first.
IN_PATH = {"generation": "1", "field": "mood", "path": "x"}


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
        waiting += each.get("anyOf", []) + each.get("oneOf", [])
        waiting += [each["items"]] if "items" in each else []
    return None


async def test_each_call_refuses_names_that_it_does_not_have(client: Client) -> None:
    document = (await client.get("/openapi.json")).json
    bodies = 0
    for route in ROUTES:
        if route.needs == "public":
            continue
        path = re.sub(r"\{(\w+)\}", lambda found: IN_PATH.get(found[1], "a"), route.path)
        reply = await client.ask(route.method, f"{path}?nonsense=1", json={})
        assert is_problem(reply, 422, "unknown_parameter", says="nonsense")
        described = document["paths"][route.path][route.method.lower()]
        if struct_body(described, document["components"]["schemas"]) is not None:
            bodies += 1
            reply = await client.ask(route.method, path, json={"nonsense": 1})
            is_problem(reply, 422, "invalid_body")
            assert "nonsense" in reply.text or "is missing" in reply.text, (route.path, reply.text)
    assert bodies >= 9


async def test_a_typing_error_is_named_with_the_nearest_name_and_nothing_is_done(client: Client) -> None:
    rules: tuple[tuple[dict[str, Any], str], ...] = (
        ({"filters": {}}, "filter"),
        ({"exclude_item": ["a"]}, "exclude_items"),
        ({"per_catgory": 1}, "per_category"),
        ({"diversity": {"lamda": 0.5}}, "lambda"),
    )
    for body, meant in rules:
        for method, path in (("POST", "/recommend/ann"), ("PUT", "/scenarios/home")):
            assert is_problem(await client.ask(method, path, json=body), 422, "invalid_body", says=meant)
    is_problem(await client.get("/scenarios/home"), 404, "unknown_scenario")
    for path, meant in (
        ("/recommend/ann?categories=x", "category"),
        ("/popular?limit=3", "n"),
        ("/predict?user_id=a&item_id=b&time=3", "timestamp"),
    ):
        assert is_problem(await client.get(path), 422, "unknown_parameter", says=meant)
    good = {"user_id": "a", "item_id": "b", "rating": 3}
    rows = [good, {**good, "ratng": 3}]
    for data in (rows[1], rows):
        reply = await client.post("/ratings", data)
        assert is_problem(reply, 422, "invalid_body", says="rating", field="ratng")
    lines = "\n".join(map(json.dumps, rows)).encode()
    is_problem(await client.post("/ratings", lines, headers=LINES), 422, "invalid_body")
    is_problem(await client.get("/users/a/ratings"), 404, "unknown_user")


async def test_a_time_that_is_none_or_has_not_been_is_refused_and_its_unit_named(client: Client) -> None:
    now_s = time.time()
    for path, more in (("/ratings", {"rating": 3.0}), ("/events", {"type": "view"})):
        row: dict[str, Any] = {"user_id": "a", "item_id": "b", **more}
        for sent, said in ((now_s * 1000, "milliseconds"), (now_s + 90_000, "ahead"), ("soon", "ISO 8601")):
            reply = await client.post(path, [row, {**row, "timestamp": sent}])
            assert is_problem(reply, 422, "invalid_body", says=said, field="timestamp", row=1)
        for given in (now_s + 3_600, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+01:00", 0):
            assert (await client.post(path, {**row, "timestamp": given})).ok.json
