"""The modules of a checkout, and what each imports."""

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from runpy import run_path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
# A distribution of its own, with its package in it.
CLIENT = "clients/python"
# Of a checkout alone: neither in the wheel nor imported by what is.
BESIDE = {"benchmarks", "torture"}


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


if __name__ == "__main__":
    run_path(str(ROOT / ".ci/house.py"), run_name="__main__")
