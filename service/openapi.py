"""The description of the API: each handler has its part beside it (`Route`), and `document` joins them.

Invariant: it cannot say other than the code. Schemas come from the types that decode and encode the bodies; a
test holds the addresses against the routes, another asks a running service everything that is allowed.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from importlib.metadata import version
from inspect import cleandoc
from typing import Any

import msgspec
from aiohttp import web

from service.http.access import LEVELS, Need
from service.http.parsing import TEXT_ID_SCHEMA
from service.http.problems import CONTENT_TYPE as PROBLEM_TYPE
from service.http.problems import KINDS

# JSON Schema. A struct type may stand where a schema does; `document` makes it a reference.
Schema = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The problems of each call that asks the store, or the store and the model, or that has a body; of any call.
STORE = ("store_unavailable",)
WRITES = ("store_unavailable", "store_full", "disk_full", "worker_full")
MODEL = ("store_unavailable", "no_generation")
BODY = ("malformed_json", "body_too_large", "unsupported_media_type", "invalid_body", "request_timeout")
_ANYWHERE = (
    "malformed_request",
    "method_not_allowed",
    "internal_error",
    "overloaded",
    "cross_site",
    "quota_exceeded",
    "unknown_parameter",
)
_WITH_KEY = ("unauthorized", "forbidden")
# Either of these.
_KEYS: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class ProblemOut(msgspec.Struct, omit_defaults=True):
    """What went wrong, by RFC 9457. `code` is stable; `field` and `row` (from 0) tell where the input is
    wrong.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    field: str | None = None
    row: int | None = None


async def _no_handler(request: web.Request) -> web.StreamResponse:
    """Stand for the handler that a `Route` has not got yet."""
    raise web.HTTPNotFound


@dataclass(frozen=True, slots=True)
class Route:
    """An address, what the description says of it, and its handler, which it decorates.

    `answer`: the struct of a 200, or its content by media type. `problems`: the codes that this call may be
    answered with. `needs`: the role of a key that may ask. `parameters`: those of the query; of the path,
    those that are no ids. `accepts`: the struct of a 202, of what is done after the answer. `deep`: the last
    parameter of the path, where that may have slashes, or be empty. `repeatable`: see `x-idempotent` in
    docs/api.md. `undescribed`: names that the query may have besides those of `parameters`.
    """

    method: str
    path: str
    tag: str
    answer: type | Schema
    problems: Sequence[str] = ()
    _: KW_ONLY
    # Without a default: a new route cannot be open because its role was forgotten.
    needs: Need
    operation_id: str | None = None
    parameters: Sequence[Schema] = ()
    body: Schema | None = None
    accepts: type | None = None
    deep: str | None = None
    # Whether to send it twice does as little harm as once; of a POST or PATCH only where that is said.
    repeatable: bool | None = None
    undescribed: Sequence[str] = ()
    handler: Handler = _no_handler

    def __call__(self, handler: Handler) -> "Route":
        """Return this route with its handler."""
        return replace(self, handler=handler)

    def ids(self) -> list[str]:
        """Return the parameters of the path that are ids."""
        named = {parameter["name"] for parameter in self.parameters}
        return [name for name in re.findall(r"\{(\w+)\}", self.path) if name not in named]

    def in_query(self) -> frozenset[str]:
        """Return the names that the query of a request may have."""
        described = {each["name"] for each in self.parameters if each["in"] == "query"}
        return frozenset(described.union(self.undescribed))

    @property
    def level(self) -> int:
        """What `Access.admit` asks of a request of this route."""
        return LEVELS[self.needs]

    @property
    def is_repeatable(self) -> bool:
        """Whether the call may be sent again by a client that does not know what became of it."""
        return self.method in {"GET", "PUT", "DELETE"} if self.repeatable is None else self.repeatable

    def description(self, *, with_keys: bool) -> Schema:
        """Return the Operation Object, with or without what it says of keys. The summary is the first
        paragraph of the handler's docstring.
        """
        summary = " ".join(cleandoc(self.handler.__doc__ or "").partition("\n\n")[0].split())
        described: Schema = {
            "summary": summary,
            "tags": [self.tag],
            "responses": self._responses(with_keys=with_keys),
            # Clients send a call again by it.
            "x-idempotent": self.is_repeatable,
        }
        if self.operation_id is not None:
            described["operationId"] = self.operation_id
        text = "1 to 256 bytes of UTF-8, percent-encoded"
        ids = [parameter(name, "path", TEXT_ID_SCHEMA, text, required=True) for name in self.ids()]
        if parameters := [*ids, *self.parameters]:
            described["parameters"] = parameters
        if self.body is not None:
            described["requestBody"] = self.body
        if with_keys:
            described["x-role"] = self.needs
            described["security"] = [] if self.needs == "public" else [{name: []} for name in _KEYS]
        return described

    def _responses(self, *, with_keys: bool) -> Schema:
        answer = content(self.answer) if isinstance(self.answer, type) else self.answer
        responses: Schema = {"200": {"description": "Done", "content": answer}}
        if self.accepts is not None:
            responses["202"] = {"description": "Accepted", "content": content(self.accepts)}
        by_status: dict[int, list[str]] = {}
        keys = _WITH_KEY if with_keys and self.needs != "public" else ()
        for code in (*self.problems, *_ANYWHERE, *keys):
            by_status.setdefault(KINDS[code].status, []).append(code)
        for status, codes in sorted(by_status.items()):
            response = responses[str(status)] = {
                "description": ", ".join(f"`{code}`" for code in codes),
                "content": content(ProblemOut, PROBLEM_TYPE),
            }
            if status in (429, 503, 507):
                retry_after = {"schema": {"type": "integer"}, "description": "Seconds to wait"}
                response["headers"] = {"Retry-After": retry_after}
        return responses


def content(schema: type | Schema, media_type: str = "application/json") -> Schema:
    """Return the content of a body of one media type."""
    return {media_type: {"schema": schema}}


def lines_of(row: type) -> Schema:
    """Return the content of an answer of one object of a type a line. JSON Schema knows no lines: the type
    stands beside it.
    """
    return content({"type": "string", "x-line": row}, "application/x-ndjson")


def request_body(
    schema: type | Schema, example: Any, *, required: bool = True, lines: bool = False
) -> Schema:
    """Return a Request Body Object; `lines`: NDJSON is taken too."""
    media_types: Schema = {"application/json": {"schema": schema, "example": example}}
    if lines:
        media_types["application/x-ndjson"] = {"schema": {"type": "string"}}
    return {"required": required, "content": media_types}


def parameter(name: str, where: str, schema: Schema, text: str, *, required: bool = False) -> Schema:
    """Return a Parameter Object; `where`: `path` or `query`."""
    return {"name": name, "in": where, "required": required, "schema": schema, "description": text}


def query_parameter(name: str, schema: Schema, text: str) -> Schema:
    """Return a parameter of the query that may be left out."""
    return parameter(name, "query", schema, text)


def json_parameter(name: str, schema: type | Schema, text: str) -> Schema:
    """Return a parameter of the query that may be left out, and whose text is JSON."""
    told: Schema = {"name": name, "in": "query", "required": False, "description": text}
    return {**told, "content": content(schema)}


def whole(low: int, high: int, default: int | None = None) -> Schema:
    """Return the schema of a whole number."""
    schema: Schema = {"type": "integer", "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


def list_of(schema: type | Schema, at_most: int) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": schema, "maxItems": at_most}


def document(
    routes: Iterable[Route], low: float, high: float, *, has_steps: bool = True, with_keys: bool = False
) -> bytes:
    """Return the description of `routes`, for a service whose ratings are from `low` to `high`, in steps or
    not, and that asks for keys or not.
    """
    structs: dict[str, type] = {}

    def referring(value: Any) -> Any:
        """Return `value` with a reference for each struct in it, which is added to `structs`."""
        if isinstance(value, type):
            structs[value.__name__] = value
            return {"$ref": f"#/components/schemas/{value.__name__}"}
        if isinstance(value, Mapping):
            return {name: referring(part) for name, part in value.items()}
        return [referring(part) for part in value] if isinstance(value, list | tuple) else value

    # In the order of the routes, which is that of the page.
    paths: dict[str, Schema] = {}
    for route in routes:
        described = referring(route.description(with_keys=with_keys))
        if not has_steps and "parameters" in described:
            # There is no distribution without steps.
            described["parameters"] = [
                each for each in described["parameters"] if each["name"] != "distribution"
            ]
        paths.setdefault(route.path, {})[route.method.lower()] = described
    _, schemas = msgspec.json.schema_components(structs.values(), ref_template="#/components/schemas/{name}")
    # The scale is a setting of the store, which no type knows.
    rating = {"type": "number", "minimum": low, "maximum": high}
    schemas["RatingIn"]["properties"]["rating"] = rating
    schemas["AnonymousRating"]["properties"]["rating"] = rating
    schemas["TrainBody"]["properties"]["rating_history"]["items"] = rating
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Foldin",
                "version": version("foldin"),
                "license": {"name": "MIT", "identifier": "MIT"},
                "description": "Predicts ratings and learns from every rating the moment it arrives. "
                "Errors are `application/problem+json` with a stable `code`.",
            },
            "paths": paths,
            "components": {"schemas": schemas, **({"securitySchemes": _KEYS} if with_keys else {})},
            # An extension of this service, for the page that lists the codes.
            "x-problems": {
                code: {"status": kind.status, "title": kind.title} for code, kind in KINDS.items()
            },
        }
    )
