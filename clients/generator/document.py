"""The description of the service, as what makes the clients looks at it.

Invariant: what a client cannot express stops the making; nothing of the description is left out in silence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from service.routes import describe

Schema = dict[str, Any]
JSON, LINES = "application/json", "application/x-ndjson"
# JSON objects in a query, which the description leaves out: a client that draws any would be refused.
WITH_CONTEXT = {"predict", "recommend", "explain"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the path, the query or the body. `text`: its description, if there is one."""

    name: str
    schema: Schema
    required: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `fields`: of its body, which is one object; `rows`: the schema of a row, where the body is
    many; `body`: any other. `answers`: schema by status, of JSON; `line`: schema of a line of an answer of
    lines; without either the answer is text.
    """

    name: str
    method: str
    path: str
    summary: str
    role: str
    is_idempotent: bool
    in_path: list[Parameter]
    in_query: list[Parameter]
    fields: list[Parameter]
    needs_body: bool
    rows: str | None
    body: Schema | None
    answers: dict[int, Schema]
    line: Schema | None

    @property
    def words(self) -> str:
        """The name with underscores."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name).lower()

    @property
    def shows(self) -> bool:
        """Whether the call can record impressions, which a repeat would record twice."""
        return any(each.name == "impressions" for each in (*self.in_query, *self.fields))

    @property
    def waits(self) -> bool:
        """Whether the service may be told how long to wait before it answers."""
        return any(each.name == "wait" for each in self.in_query)


@dataclass(frozen=True, slots=True)
class Document:
    """The description. `answered`: names of the schemas that answers have. `problems`: status and title by
    code.
    """

    operations: list[Operation]
    schemas: dict[str, Schema]
    answered: set[str]
    problems: dict[str, Schema]


def read() -> Document:
    """Return the description of the service of this checkout."""
    described = msgspec.json.decode(describe(1.0, 5.0, with_keys=True))
    schemas: dict[str, Schema] = described["components"]["schemas"]
    # A body's field says what the parameter of a like call does; of many values it has a list.
    texts = {
        (path.split("/")[1], each["name"]): each["description"].replace(", with commas between", "")
        for path, methods in described["paths"].items()
        for each in methods.get("get", {}).get("parameters", [])
    }
    found = [
        _operation(path, method, each, schemas, texts)
        for path, methods in described["paths"].items()
        for method, each in methods.items()
    ]
    roots = [schema for each in found for schema in (*each.answers.values(), each.line or {})]
    answered = set[str]()
    waiting = [name for root in roots for name in references(root)]
    while waiting:
        name = waiting.pop()
        if name not in answered:
            answered.add(name)
            waiting += references(schemas[name])
    return Document(found, schemas, answered, described["x-problems"])


def references(schema: Any) -> Iterator[str]:
    """Yield the names of the schemas that one refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield reference(schema)
        for part in schema.values():
            yield from references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from references(part)


def reference(schema: Schema) -> str:
    """Return the name of the schema that is referred to."""
    return str(schema["$ref"]).rpartition("/")[2]


def _schema(parameter: Schema) -> Schema:
    # One with content is sent as JSON.
    schema = parameter["schema"] if "schema" in parameter else parameter["content"][JSON]["schema"]
    return cast("Schema", schema)


def _operation(
    path: str,
    method: str,
    described: Schema,
    schemas: dict[str, Schema],
    texts: dict[tuple[str, str], str],
) -> Operation:
    if "operationId" not in described:
        raise ValueError(f"{method.upper()} {path} has no operation_id: clients name their methods by it")
    parameters = described.get("parameters", [])
    in_path, in_query = (
        [
            # Clients encode by themselves.
            Parameter(
                each["name"],
                _schema(each),
                each["required"],
                each["description"].removesuffix(", percent-encoded"),
            )
            for each in parameters
            if each["in"] == where
        ]
        for where in ("path", "query")
    )
    if described["operationId"] in WITH_CONTEXT:
        in_query.append(
            Parameter("context", {"type": "object"}, required=False, text="The context, by field")
        )
    fields: list[Parameter] = []
    rows = body = None
    sent = described.get("requestBody", {"content": {}})
    if LINES in sent["content"]:
        rows = reference(sent["content"][JSON]["schema"]["anyOf"][0])
    elif "$ref" in (schema := sent["content"].get(JSON, {}).get("schema", {})):
        struct = schemas[reference(schema)]
        required = set(struct["required"])
        fields = [
            Parameter(
                name,
                each,
                name in required,
                each.get("description", "") or texts.get((path.split("/")[1], name), ""),
            )
            for name, each in struct["properties"].items()
        ]
    elif schema:
        body = schema
        if described["operationId"] == "predictMany":
            for each in schema["oneOf"]:
                each["properties"]["context"] = {"anyOf": [{"type": "object"}, {"type": "array"}]}
    answers: dict[int, Schema] = {}
    line = None
    for status, answer in described["responses"].items():
        contents = answer["content"] if int(status) < 300 else {}
        if JSON in contents:
            answers[int(status)] = contents[JSON]["schema"]
        elif LINES in contents:
            line = contents[LINES]["schema"]["x-line"]
    return Operation(
        name=described["operationId"],
        method=method.upper(),
        path=path,
        summary=described["summary"],
        role=described["x-role"],
        is_idempotent=described["x-idempotent"],
        in_path=in_path,
        in_query=in_query,
        fields=fields,
        needs_body=bool(sent.get("required")),
        rows=rows,
        body=body,
        answers=answers,
        line=line,
    )
