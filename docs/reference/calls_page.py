"""The page of all calls, written from the description that the service gives of itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

try:
    from service.routes import describe
except ImportError:
    # In the image the wheel is installed, whose packages are below its own.
    from foldin.service.routes import describe

METHODS = ("get", "put", "post", "patch", "delete")
BOUNDS = {"minimum": "from", "maximum": "to"}
# A longer list of names says less than the type.
MOST_NAMED = 6
INTRODUCTION = """\
# Calls

Every call, as `/openapi.json` describes it for a service that asks for keys, and whose ratings are from 1
to 5. [The API](../api.md) has the rules and an example of each.
"""


def kind_of(schema: Mapping[str, Any]) -> str:
    """What a value of a schema is, in a word or a few."""
    match schema:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": parts}:
            return " or ".join(dict.fromkeys(map(kind_of, parts)))
        case {"enum": values} if len(values) <= MOST_NAMED:
            return ", ".join(f"`{each}`" for each in values)
        case {"type": "array", "items": items}:
            return f"list of {kind_of(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {kind_of(values)}"
    kind = schema.get("type", "any value")
    words = [kind if isinstance(kind, str) else " or ".join(kind)]
    words += [f"{name} {schema[key]:g}" for key, name in BOUNDS.items() if key in schema]
    return " ".join(words)


def bodies(part: Mapping[str, Any]) -> str:
    """The bodies of a request or an answer, by media type where that is not JSON."""
    return "; ".join(
        kind_of(each.get("schema", {})) + ("" if media.endswith("json") else f" (`{media}`)")
        for media, each in part["content"].items()
    )


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(map(cell, row)) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parameter_kind(told: Mapping[str, Any]) -> str:
    """What a parameter is, and what it is when it is left out."""
    if "schema" not in told:
        return bodies(told)
    default = told["schema"].get("default")
    return kind_of(told["schema"]) + ("" if default is None else f", {default} if left out")


def call_text(method: str, path: str, call: Mapping[str, Any]) -> str:
    """One call."""
    role = {"public": "anyone"}.get(call["x-role"], f"a key with the role `{call['x-role']}`")
    text = f"### {method.upper()} {path}\n\n{call['summary']} For {role}.\n\n"
    if parameters := call.get("parameters"):
        text += (
            table(
                ("parameter", "in", "is", "means"),
                (
                    (
                        f"`{each['name']}`" + (", required" if each["required"] else ""),
                        each["in"],
                        parameter_kind(each),
                        each["description"],
                    )
                    for each in parameters
                ),
            )
            + "\n"
        )
    if "requestBody" in call:
        text += f"Body: {bodies(call['requestBody'])}.\n\n"
    answers = call["responses"].items()
    for status, answer in answers:
        if status.startswith("2"):
            text += f"Answer {status}: {bodies(answer)}.\n\n"
    problems = [
        f"{status} {answer['description']}" for status, answer in answers if not status.startswith("2")
    ]
    return text + f"Problems: {'; '.join(problems)}.\n"


def calls_page() -> str:
    """The page of all calls, of a service that asks for keys, with ratings from 1 to 5."""
    document = msgspec.json.decode(describe(1.0, 5.0, with_keys=True))
    text = INTRODUCTION
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                by_tag.setdefault(methods[method]["tags"][0], []).append(
                    call_text(method, path, methods[method])
                )
    for tag, calls in by_tag.items():
        text += f"\n## {tag}\n\n" + "\n".join(calls)
    text += "\n## Types\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        about = cell(schema.get("description", ""))
        text += f"\n### {name}\n\n" + (f"{about}\n\n" if about else "")
        required = schema.get("required", ())
        rows = [
            (f"`{field}`" + (", required" if field in required else ""), kind_of(each))
            for field, each in schema.get("properties", {}).items()
        ]
        text += table(("field", "is"), rows) if rows else f"{kind_of(schema)}\n"
    return text
