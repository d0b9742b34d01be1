"""Python of the description: types, exceptions by code, and a method for each call."""

import textwrap
from collections.abc import Iterable
from graphlib import TopologicalSorter
from inspect import cleandoc
from keyword import iskeyword
from pathlib import Path
from runpy import run_path
from typing import Any

from clients.generator.document import Document, Operation, Parameter, Schema, reference, references

HEAD = "# Made by `make clients` of the service's description: change that, not this.\n"
ERRORS = Path(__file__).resolve().parents[1] / "python/foldin_client/errors.py"
PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
# Bodies of several shapes, or answers, which their methods in client.py make one of.
BY_HAND = {"predictMany"}
# The line length of this code without the indentation of a docstring.
_WIDTH = 100


def models(document: Document) -> str:
    """Return the module of all structs."""
    parts = [
        f'{HEAD}"""The types of the API: what is sent, and what is answered."""\n',
        "from typing import Any, Literal\n\nimport msgspec\nfrom msgspec import UNSET, Struct, UnsetType\n",
    ]
    # Lists, not sets: their order is the same in every run.
    graph = {name: sorted(set(references(schema))) for name, schema in sorted(document.schemas.items())}
    parts += [
        _struct(name, document.schemas[name], is_answer=name in document.answered)
        for name in TopologicalSorter(graph).static_order()
    ]
    return "\n\n".join(parts)


def problems(document: Document) -> str:
    """Return the module of the exceptions."""
    found = {code: (_error_name(code), each) for code, each in sorted(document.problems.items())}
    bases = sorted({_base(each["status"]) for _, each in found.values()})
    lines = [
        f'{HEAD}"""An exception for each `code` of the service, and which it is."""\n',
        f"from foldin_client.errors import ProblemError, {', '.join(bases)}\n",
    ]
    for name, each in found.values():
        lines.append(f'\nclass {name}({_base(each["status"])}):\n    """{each["title"]}."""\n')
    listed = "".join(f'    "{code}": {name},\n' for code, (name, _) in found.items())
    lines.append(f"\nBY_CODE: dict[str, type[ProblemError]] = {{\n{listed}}}\n")
    return "\n".join(lines)


def operations(document: Document) -> str:
    """Return the module of the asynchronous methods."""
    return "\n".join(
        [
            f'{HEAD}"""Every call of the API as a method, as its description has it."""\n',
            "from collections.abc import AsyncIterator, Mapping, Sequence\nfrom typing import Any, Literal\n",
            "from msgspec import UNSET, UnsetType\n",
            "from foldin_client import models",
            "from foldin_client.asynchronous.transport import AsyncTransport",
            "from foldin_client.rows import AsyncRows",
            "from foldin_client.wire import Call, encoded, given, given_any, part\n\n",
            'class AsyncOperations(AsyncTransport):\n    """The calls. Each raises FoldinError."""\n',
            *(_method(each) for each in document.operations if each.name not in BY_HAND),
        ]
    )


def type_of(  # noqa: PLR0911  # a line a kind
    schema: Schema, *, given: bool = False, is_answer: bool = False
) -> str:
    """Return the type of a schema. `given`: of an argument, which may be less strict; `is_answer`: a later
    service may answer with more words than it has now.
    """
    if "$ref" in schema:
        name = reference(schema)
        return f"models.{name} | Mapping[str, Any]" if given else name
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return union(type_of(each, given=given, is_answer=is_answer) for each in parts)
    if "x-list" in schema:
        return "str | Sequence[str]"
    if "enum" in schema:
        return "str" if is_answer else f"Literal[{', '.join(map(repr, schema['enum']))}]"
    kind = schema.get("type")
    if isinstance(kind, list):
        return union(type_of({**schema, "type": each}, given=given) for each in kind)
    if kind == "array":
        inside = type_of(schema["items"], given=given, is_answer=is_answer) if "items" in schema else "Any"
        return f"{'Sequence' if given else 'list'}[{inside}]"
    if kind == "object":
        values = schema.get("additionalProperties")
        inside = type_of(values, given=given, is_answer=is_answer) if isinstance(values, dict) else "Any"
        return f"{'Mapping' if given else 'dict'}[str, {inside}]"
    # A KeyError: there is no type for it.
    return PLAIN[kind or ""]


def union(kinds: Iterable[str]) -> str:
    """Return a type that is any of these; None stands last."""
    parts = list(dict.fromkeys(part for kind in kinds for part in _split(kind)))
    return " | ".join(sorted(parts, key=lambda part: part == "None"))


def _split(kind: str) -> list[str]:
    # Not at a bar inside brackets.
    parts, depth = [""], 0
    for each in kind:
        depth += (each == "[") - (each == "]")
        if each == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += each
    return [part.strip() for part in parts]


def _struct(name: str, schema: Schema, *, is_answer: bool) -> str:
    lines = [
        f"class {name}(Struct, frozen=True, kw_only=True, omit_defaults=True):",
        _docstring(schema["description"], 4),
    ]
    required = set(schema["required"])
    for field_name, each in schema["properties"].items():
        kind = type_of(each, is_answer=is_answer)
        own = f"{field_name}_" if iskeyword(field_name) else field_name
        renamed = own != field_name
        if field_name in required:
            default = f' = msgspec.field(name="{field_name}")' if renamed else ""
        elif "default" in each:
            default = f" = {_default(each['default'])}"
        else:
            kind, default = union([kind, "UnsetType"]), " = UNSET"
        lines.append(f"    {own}: {kind}{default}")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    return f"msgspec.field(default_factory={type(value).__name__})" if value in ([], {}) else repr(value)


def _docstring(text: str, indentation: int, *, more: str = "", told: Iterable[Parameter] = ()) -> str:
    space = " " * indentation
    paragraphs = [" ".join(each.split()) for each in cleandoc(text).split("\n\n")]
    if more:
        paragraphs.append(more)
    wrapped = [textwrap.fill(each, _WIDTH - indentation) for each in paragraphs]
    lines = [
        textwrap.fill(
            f"{each.name}: {each.text.rstrip('.')}.", _WIDTH - indentation, subsequent_indent="    "
        )
        for each in told
        if each.text
    ]
    wrapped += ["\n".join(lines)] if lines else []
    whole = "\n\n".join(wrapped).replace("\\", "\\\\")
    if "\n" not in whole and len(whole) < _WIDTH - indentation - 4:
        return f'{space}"""{whole}"""'
    return textwrap.indent(f'"""{whole}\n"""', space, lambda line: bool(line.strip()))


def _error_name(code: str) -> str:
    return "".join(word.capitalize() for word in code.removesuffix("_error").split("_")) + "Error"


def _base(status: int) -> str:
    # By its file: the package needs what is made here.
    name: str = run_path(str(ERRORS))["class_of"](status).__name__
    return name


def _method(operation: Operation) -> str:
    arguments, named = _arguments(operation)
    star = ["*"] if named else []
    signature = ", ".join(["self", *arguments, *star, *named])
    kinds = {
        status: f"models.{reference(each)}" if "$ref" in each else type_of(each)
        for status, each in operation.answers.items()
    }
    answer = " | ".join(dict.fromkeys(kinds.values())) or "str"
    says = f"`{operation.method} {operation.path}`; needs the role `{operation.role}`."
    if operation.role == "public":
        says = f"`{operation.method} {operation.path}`; needs no key."
    told = (*operation.in_path, *operation.fields, *operation.in_query)
    body = [_docstring(operation.summary, 8, more=says, told=told)]
    call = _call(operation)
    if operation.line is not None:
        line = f"models.{reference(operation.line)}"
        body.append(f"        return self._ask_lines({call}, {line})")
        return f"    def {operation.words}({signature}) -> AsyncIterator[{line}]:\n" + "\n".join(body) + "\n"
    if operation.rows is not None:
        again = f"is_repeatable={operation.is_idempotent}"
        body.append(f'        return await self._send_rows("{operation.path}", rows, {answer}, {again})')
    elif not kinds:
        body.append(f"        return await self._ask_text({call})")
    elif len(set(kinds.values())) == 1:
        body.append(f"        return await self._ask({call}, {answer})")
    else:
        by_status = "{" + ", ".join(f"{status}: {kind}" for status, kind in kinds.items()) + "}"
        body += [
            f"        answer: {answer} = await self._ask_either({call}, {by_status})",
            "        return answer",
        ]
    return f"    async def {operation.words}({signature}) -> {answer}:\n" + "\n".join(body) + "\n"


def _arguments(operation: Operation) -> tuple[list[str], list[str]]:
    """Return the arguments by position, and those by name."""
    places = [f"{each.name}: {_path_type(each)}" for each in operation.in_path]
    places += [f"{each.name}: {_path_type(each)}" for each in operation.in_query if each.required]
    if operation.rows is not None:
        places.append(f"rows: AsyncRows[models.{operation.rows}]")
    if operation.body is not None:
        places.append(f"{_body_name(operation)}: {type_of(operation.body, given=True)}")
    named = []
    for each in operation.fields:
        kind = type_of(each.schema, given=True)
        needed = each.required and operation.needs_body
        text = f"{each.name}: {kind}" if needed else f"{each.name}: {union([kind, 'UnsetType'])} = UNSET"
        named.append((not needed, text))
    named += [
        (True, f"{each.name}: {type_of(each.schema, given=True)} | None = None")
        for each in operation.in_query
        if not each.required
    ]
    return places, [text for _, text in sorted(named, key=lambda each: each[0])]


def _path_type(parameter: Parameter) -> str:
    if parameter.name.endswith("_id"):
        return "str | int"
    kind = parameter.schema["type"]
    # Which files there are changes with each release.
    return PLAIN[kind]


def _body_name(operation: Operation) -> str:
    return operation.path.rpartition("/")[2]


def _call(operation: Operation) -> str:
    path = operation.path
    for each in operation.in_path:
        path = path.replace(f"{{{each.name}}}", f"{{part({each.name})}}")
    parts = [f'"{operation.method}"', f'f"{path}"' if operation.in_path else f'"{path}"']
    if operation.in_query:
        parts.append(f"query={_mapping(each.name for each in operation.in_query)}")
    if operation.fields:
        made = "given" if operation.needs_body else "given_any"
        parts.append(f"body={made}({', '.join(f'{each.name}={each.name}' for each in operation.fields)})")
    elif operation.body is not None:
        parts.append(f"body=encoded({_body_name(operation)})")
    if operation.is_idempotent:
        # What a list has shown would be counted twice.
        parts.append(f"is_repeatable={'impressions is not True' if operation.shows else True}")
    if operation.waits:
        # As long as the service waits unasked.
        parts.append("longer_s=60.0 if wait is None else float(wait)")
    return f"Call({', '.join(parts)})"


def _mapping(names: Iterable[str]) -> str:
    return "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"
