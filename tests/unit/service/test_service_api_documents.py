"""The description, the routes and docs/api.md name the same calls and codes."""

import re
from pathlib import Path

import msgspec

from service.http.problems import KINDS
from service.routes import ROUTES, describe

API = Path(__file__).resolve().parents[3] / "docs/api.md"


def plain(path: str) -> str:
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


def calls() -> set[tuple[str, str]]:
    return {(route.method, plain(route.path)) for route in ROUTES}


def test_what_is_routed_is_described_and_nothing_else() -> None:
    described = msgspec.json.decode(describe(1.0, 5.0))
    found = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert found == calls()


def test_references_of_the_description_resolve() -> None:
    text = describe(1.0, 5.0).decode()
    schemas = msgspec.json.decode(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)


def test_every_call_and_code_is_in_the_manual() -> None:
    manual = API.read_text("utf-8")
    missing = {f"{method} {path}" for method, path in calls() if f"{method} {path}" not in manual}
    assert missing == set()
    assert {code for code in KINDS if f"`{code}`" not in manual} == set()
