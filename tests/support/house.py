"""Finds what breaks the rules of CONTRIBUTING.md: import cycles, private words. A rule gives what it
finds in a checkout, one line each.
"""

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
# A distribution of its own, with its package in it.
CLIENT = "clients/python"
# Of a checkout alone: neither in the wheel nor imported by what is.
BESIDE = {"benchmarks", "torture"}
# Each has a term of the field, or the subject itself, in its place.
PRIVATE_WORDS = re.compile(
    r"(?<![a-z])"
    r"(nobody|whoever|somebody|patiently|leftout|seteffects?|periodgroups?|shortway|storedrows|duties"
    # A field of the store has the name `loose`, in quotes: it is stored.
    r"|askers?|wish(?:es)?|(?<![\"'`])loose)"
    r"(?![a-z])",
    re.I,
)
# They have the words as a rule and as an example.
_ABOUT_WORDS = {"tests/support/house.py", ".ci/rules.py"}
_READ_BY_PEOPLE = {".py", ".lua", ".js", ".html", ".css", ".md", ".svg", ".yml"}


@dataclass(frozen=True, slots=True)
class Module:
    """One file of product code. `name` is dotted, that of a package without `__init__`."""

    name: str
    path: Path
    text: str
    tree: ast.Module


def packages(root: Path) -> list[str]:
    found = (*root.glob("*/__init__.py"), *root.glob(f"{CLIENT}/*/__init__.py"))
    return sorted(path.parent.name for path in found if path.parent.name != "tests")


def base_of(root: Path, package: str) -> Path:
    return root if (root / package).is_dir() else root / CLIENT


@cache
def modules(root: Path, package: str) -> list[Module]:
    found = []
    base = base_of(root, package)
    for path in sorted((base / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text("utf-8")
        found.append(Module(dotted, path.relative_to(root), text, ast.parse(text)))
    return found


def all_modules(root: Path) -> list[Module]:
    return [module for package in packages(root) for module in modules(root, package)]


@dataclass(frozen=True, slots=True)
class Import:
    """A dotted name that a module imports. `when`: as it loads, in a function, or for the type checker."""

    name: str
    line: int
    when: Literal["load", "call", "typing"]


@cache
def imported(module: Module) -> tuple[Import, ...]:
    return tuple(_imported(module))


def _imported(module: Module) -> Iterator[Import]:
    found: list[tuple[ast.AST, Literal["load", "call", "typing"]]] = [(module.tree, "load")]
    while found:
        node, when = found.pop()
        match node:
            case ast.Import():
                yield from (Import(alias.name, node.lineno, when) for alias in node.names)
            case ast.ImportFrom():
                origin = "." * node.level + (f"{node.module}." if node.module else "")
                yield from (Import(origin + alias.name, node.lineno, when) for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name, node.lineno, when)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                found += [(child, "typing") for child in node.body]
                found += [(child, when) for child in node.orelse]
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if when == "load":
                when = "call"
        found += [(child, when) for child in ast.iter_child_nodes(node)]


def imports(found: list[Module], *, when: Collection[str] = ("load", "call")) -> dict[str, set[str]]:
    """Which of the modules each of them imports, `when` they are loaded and in functions."""
    names = {module.name for module in found}
    graph: dict[str, set[str]] = {}
    for module in found:
        wanted = {entry.name for entry in imported(module) if entry.when in when}
        # What is imported from a module is a module itself, or a name in it.
        graph[module.name] = {
            name if name in names else name.rpartition(".")[0] for name in wanted
        } & names - {module.name}
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def by_room(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between rooms: a folder inside a package is one, a module beside it another."""
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        room = _room(name)
        rooms.setdefault(room, set()).update({_room(other) for other in others} - {room})
    return rooms


def _room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def module_cycles(root: Path) -> list[str]:
    return cycle_of(imports(all_modules(root)))


def room_cycles(root: Path) -> list[str]:
    return cycle_of(by_room(imports(all_modules(root))))


def private_words(root: Path) -> list[str]:
    """Words that only this project has: in code of any language, tests, and documents for people of today."""
    folders = [*packages(root), "clients", "tests", "docs", "deploy"]
    files = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")]
    files += [path for folder in folders for path in sorted((root / folder).rglob("*"))]
    return [
        f"{path.relative_to(root)}:{number} {match.group()}"
        for path in files
        if (path.suffix in _READ_BY_PEOPLE or path.name == "Makefile") and path.is_file()
        if str(path.relative_to(root)) not in _ABOUT_WORDS
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (match := PRIVATE_WORDS.search(line))
    ]
