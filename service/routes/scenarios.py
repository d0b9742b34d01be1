"""Scenarios: the rules of a list under a name, which front-ends ask for.

Invariant: what is stored was checked against the catalogue as it was then.
"""

import re

import msgspec
from aiohttp import web

from featurestore.errors import StoreRefused
from service.call_rules import checked_fields
from service.context import CONTEXT
from service.http.parsing import Body, path_id
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, STORE, WRITES, Route, parameter, request_body
from service.rules.request import MAX_NAME, RuleFields
from service.rules.scenarios import decoded

NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")
NAME_SCHEMA = {"type": "string", "pattern": f"^{NAME.pattern}$"}
NAME_IN_PATH = parameter("name", "path", NAME_SCHEMA, "Letters, digits and `_.-`", required=True)
_BODY: Body[RuleFields] = Body(RuleFields)
_EXAMPLE = {
    "filter": {"must_not": [{"key": "categories", "match": {"value": "horror"}}]},
    "per_category": 3,
}
# Many lists of ids would make a store of them.
_MOST_BYTES = 1_000_000


class Scenario(RuleFields, kw_only=True):
    """A scenario and its name."""

    name: str


class ScenarioNames(msgspec.Struct):
    """The names of all scenarios, in order."""

    scenarios: list[str]


class ScenarioDeleted(msgspec.Struct):
    """How many were deleted."""

    deleted: int


@Route("GET", "/scenarios", "Rules", ScenarioNames, STORE, needs="read", operation_id="getScenarios")
async def get_scenarios(request: web.Request) -> web.StreamResponse:
    """The names of all scenarios."""
    names = await request.app[CONTEXT].store.scenarios.names()
    return json_answer(ScenarioNames([name.decode("utf-8", "replace") for name in names]))


@Route(
    *("GET", "/scenarios/{name}", "Rules", Scenario),
    ("invalid_parameter", "unknown_scenario", "data_damaged", "not_found", *STORE),
    needs="read",
    operation_id="getScenario",
    parameters=(NAME_IN_PATH,),
)
async def get_scenario(request: web.Request) -> web.StreamResponse:
    """The rules of a scenario."""
    name = named_in(request)
    value = await request.app[CONTEXT].store.scenarios.get(name.encode())
    if value is None:
        raise Problem("unknown_scenario", f"there is no scenario {name!r}", field="name")
    return json_answer(_named(name, decoded(name, value)))


@Route(
    *("PUT", "/scenarios/{name}", "Rules", Scenario),
    (*BODY, "invalid_parameter", "invalid_rule", "too_many_scenarios", "not_found", *WRITES),
    needs="operate",
    operation_id="putScenario",
    parameters=(NAME_IN_PATH,),
    body=request_body(RuleFields, _EXAMPLE),
)
async def put_scenario(request: web.Request) -> web.StreamResponse:
    """Store rules under a name, in place of those before."""
    context, name = request.app[CONTEXT], named_in(request)
    async with context.bodies.read(request, context.imports, limit_bytes=_MOST_BYTES) as received:
        fields = await _BODY.decode_off_loop(received.raw)
        # A front-end would else find out what its editor did wrong.
        await checked_fields(context, fields, len(received.raw))
        try:
            await context.store.scenarios.put(name.encode(), msgspec.json.encode(fields))
        except StoreRefused as exc:
            raise Problem("too_many_scenarios", str(exc)) from exc
    return json_answer(_named(name, fields))


@Route(
    *("DELETE", "/scenarios/{name}", "Rules", ScenarioDeleted),
    ("invalid_parameter", "unknown_scenario", "not_found", *WRITES),
    needs="operate",
    operation_id="deleteScenario",
    parameters=(NAME_IN_PATH,),
)
async def delete_scenario(request: web.Request) -> web.StreamResponse:
    """Delete a scenario."""
    name = named_in(request)
    if not await request.app[CONTEXT].store.scenarios.delete(name.encode()):
        raise Problem("unknown_scenario", f"there is no scenario {name!r}", field="name")
    return json_answer(ScenarioDeleted(1))


def named_in(request: web.Request) -> str:
    """Return the name in the path. Raises `invalid_parameter`."""
    name = path_id(request.rel_url.raw_path, 1, "name").decode()
    if not NAME.fullmatch(name):
        detail = f"name must have 1 to {MAX_NAME} letters, digits and any of _.-, and begin with one of these"
        raise Problem("invalid_parameter", detail, field="name")
    return name


def _named(name: str, fields: RuleFields) -> Scenario:
    return Scenario(name=name, **msgspec.structs.asdict(fields))
