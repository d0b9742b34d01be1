"""The description, the routes, docs/api.md and the clients name the same calls and codes."""

import re
from pathlib import Path

import msgspec

from clients.generator import __main__ as generator
from service.http.problems import KINDS
from service.openapi import Route
from service.routes import ROUTES
from tests.support.examples import Example, examples, left_out

API = Path(__file__).resolve().parents[3] / "docs/api.md"


def test_what_is_made_of_the_description_is_made_of_the_one_of_now() -> None:
    assert generator.old() == [], "run `make clients`"


def test_every_call_and_code_is_in_the_manual() -> None:
    manual = API.read_text("utf-8")
    calls = {f"{route.method} {re.sub(r':[^}]*}', '}', route.path)}" for route in ROUTES}
    # Whole: `GET /items` does not stand there by `GET /items/{item_id}`.
    there = set(re.findall(r"\b(?:GET|PUT|POST|PATCH|DELETE) /[\w/{}.-]*", manual))
    assert calls - {call.rstrip(".") for call in there} == set()
    assert {code for code in KINDS if f"`{code}`" not in manual} == set()


def route_of(example: Example) -> Route:
    """The route that answers an example; a call with a body is a POST where nothing else is said."""
    path = "/" + example.path.partition("?")[0]
    method = "POST" if example.body and example.method == "GET" else example.method
    found = [
        route
        for route in ROUTES
        if route.method == method and re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", route.path), path)
    ]
    # What is spelled out goes before an id.
    return min(found, key=lambda route: route.path.count("{"))


def test_every_answer_in_the_manual_has_the_members_of_its_type_and_no_other() -> None:
    wrong, checked = [], 0
    for each in examples(API.read_text("utf-8")):
        route = route_of(each)
        types = [kind for kind in (route.answer, route.accepts) if isinstance(kind, type)]
        # Those of /predict are written without a type, for speed.
        if each.shown is not None and types:
            why = [misfit(each.shown, kind) for kind in types]
            checked += 1
            wrong += [(route.method, each.path, why)] if all(why) else []
    assert wrong == []
    assert checked > 30


def misfit(shown: object, kind: type) -> str:
    try:
        made: object = msgspec.convert(shown, kind)
    except msgspec.ValidationError as exc:
        return str(exc)
    lost = left_out(shown, made)
    return f"there is no {lost}" if lost else ""
