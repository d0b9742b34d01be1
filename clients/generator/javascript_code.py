"""JavaScript of the description: a table of the calls, and what TypeScript knows of them."""

import json
import re
from typing import Any

from clients.generator.document import Document, Operation, Parameter, Schema, reference

HEAD = "// Made by `make clients` of the service's description: change that, not this.\n"
PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def operations(document: Document) -> str:
    """Return the module with the table."""
    rows = "".join(f"  {each.name}: {json.dumps(_row(each))},\n" for each in document.operations)
    says = "// What each call is made of; `foldin.js` makes the methods."
    return f"{HEAD}\n{says}\nexport const OPERATIONS = {{\n{rows}}};\n"


def declarations(document: Document, written: str) -> str:
    """Return the declarations: what is `written` by hand, the types, and a method for each call."""
    types = [_interface(name, document.schemas[name]) for name in sorted(document.schemas)]
    codes = "\n".join(f'  | "{code}"' for code in sorted(document.problems))
    methods = "\n".join(_method(each) for each in document.operations)
    client = f"export interface Foldin {{\n{methods}\n}}\n"
    # A code of a later service is a text, too.
    listed = f"export type Code =\n{codes}\n  | (string & {{}});\n"
    return "\n".join([HEAD, written, listed, client, *types])


def type_of(schema: Schema, *, is_answer: bool = False) -> str:  # noqa: PLR0911  # a line a kind
    """Return the TypeScript of a schema."""
    if "$ref" in schema:
        return reference(schema)
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(dict.fromkeys(type_of(each, is_answer=is_answer) for each in parts))
    if "x-list" in schema:
        return "string | Array<string>"
    if "enum" in schema:
        listed = " | ".join(json.dumps(each) for each in schema["enum"])
        return f"{listed} | (string & {{}})" if is_answer else listed
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(type_of({**schema, "type": each}) for each in kind)
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(map(type_of, schema['prefixItems']))}]"
        inside = type_of(schema["items"], is_answer=is_answer) if "items" in schema else "unknown"
        return f"Array<{inside}>"
    return _object(schema, is_answer=is_answer) if kind == "object" else PLAIN[kind or ""]


def _object(schema: Schema, *, is_answer: bool) -> str:
    if "properties" in schema:
        members = _members(schema, is_answer=is_answer)
        return "{ " + " ".join(members) + " }"
    values = schema.get("additionalProperties")
    return f"Record<string, {type_of(values, is_answer=is_answer) if isinstance(values, dict) else 'any'}>"


def _members(schema: Schema, *, is_answer: bool) -> list[str]:
    required = set(schema.get("required", ()))
    return [
        f"{name}{'' if name in required else '?'}: {type_of(each, is_answer=is_answer)};"
        for name, each in schema["properties"].items()
    ]


def _interface(name: str, schema: Schema) -> str:
    text = " ".join(schema["description"].split())
    members = "\n".join(f"  {each}" for each in _members(schema, is_answer=True))
    return f"/** {text} */\nexport interface {name} {{\n{members}\n}}\n"


def _row(operation: Operation) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": operation.method,
        "path": operation.path,
        "positional": [each.name for each in _positional(operation)],
    }
    if operation.in_query:
        row["query"] = [each.name for each in operation.in_query]
    if operation.body is not None:
        row["body"] = True
    if operation.fields:
        # Whether there is a body without any of them, too.
        row["fields"] = operation.needs_body
    if operation.rows is not None:
        row["rows"] = True
    if operation.is_idempotent:
        row["again"] = True
    if operation.waits:
        row["waits"] = True
    row["answer"] = "lines" if operation.line else "json" if operation.answers else "text"
    return row


def _positional(operation: Operation) -> list[Parameter]:
    return [*operation.in_path, *(each for each in operation.in_query if each.required)]


def _method(operation: Operation) -> str:
    arguments = [f"{each.name}: {_given(each)}" for each in _positional(operation)]
    if operation.rows is not None:
        arguments.append(f"rows: Rows<{operation.rows}>")
    if operation.body is not None:
        arguments.append(f"body: {type_of(operation.body)}")
    named = [each for each in (*operation.fields, *operation.in_query) if each not in _positional(operation)]
    if named:
        needs = any(each.required for each in named) and operation.needs_body
        members = " ".join(
            f"{each.name}{'' if each.required and operation.needs_body else '?'}: {type_of(each.schema)};"
            for each in named
        )
        arguments.append(f"options{'' if needs else '?'}: {{ {members} }}")
    if operation.line is not None:
        answer = f"AsyncGenerator<{reference(operation.line)}, void, undefined>"
    else:
        kinds = [type_of(each) for each in operation.answers.values()] or ["string"]
        answer = f"Promise<{' | '.join(dict.fromkeys(kinds))}>"
    summary = re.sub(r"\*/", "", operation.summary)
    says = f"`{operation.method} {operation.path}`; role `{operation.role}`."
    return f"  /** {summary} {says} */\n  {operation.name}({', '.join(arguments)}): {answer};"


def _given(parameter: Parameter) -> str:
    return "string | number" if parameter.name.endswith("_id") else PLAIN[parameter.schema["type"]]
