"""Measures how the code is built: sizes, comments, constants, import cycles.

`python -m tests.support.house [CHECKOUT]` prints the figures.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER_MODULES = 14
MODULE_LINES = 500
FUNCTION_LINES = 60
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
_LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}
_DIRECTIVE = re.compile(r"#\s*(noqa|type:)")


@dataclass(frozen=True, slots=True)
class Module:
    """One file of product code. `name` is dotted, that of a package without `__init__`."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """Number of lines."""
        return len(self.text.splitlines())


def packages(root: Path) -> list[str]:
    """Names of the packages of product code: top-level folders with an `__init__.py`, without the tests."""
    return sorted(path.parent.name for path in root.glob("*/__init__.py") if path.parent.name != "tests")


@cache
def modules(root: Path, package: str) -> list[Module]:
    """The modules of a package, parsed."""
    found = []
    for path in sorted((root / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text("utf-8")
        found.append(Module(dotted, path.relative_to(root), text, ast.parse(text)))
    return found


def all_modules(root: Path) -> list[Module]:
    """The modules of all packages."""
    return [module for package in packages(root) for module in modules(root, package)]


def comment_lines(module: Module) -> set[int]:
    """Lines with a comment for people."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    comments = (token for token in tokens if token.type == tokenize.COMMENT)
    return {token.start[0] for token in comments if not _DIRECTIVE.match(token.string)}


def code_lines(module: Module) -> int:
    """Number of lines with code: not blank, no comment alone, no docstring."""
    found, docstrings = set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in _LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found - docstrings)


def numeric_constants(module: Module) -> Iterator[tuple[int, str, bool]]:
    """Line and name of each module-level constant that is a number, and whether a reason stands with it.

    A reason is a comment on its line, above it or above the constants directly before it, or a docstring
    below.
    """
    comments, explained = comment_lines(module), set[int]()
    for node, below in zip_longest(module.tree.body, module.tree.body[1:]):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None or not _numeric(node.value):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        names = [name.id for name in ast.walk(target) if isinstance(name, ast.Name)]
        if not all(map(_CONSTANT.fullmatch, names)):
            continue
        last = node.end_lineno or node.lineno
        reason = (
            bool(comments & set(range(node.lineno - 1, last + 1)))
            or node.lineno - 1 in explained
            or (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
        )
        if reason:
            explained.add(last)
        for name in names:
            yield node.lineno, name, reason


def _numeric(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.UnaryOp(operand=operand):
            return _numeric(operand)
        case ast.BinOp(left=left, right=right):
            return _numeric(left) and _numeric(right)
        case ast.Tuple(elts=elements):
            return bool(elements) and all(map(_numeric, elements))
    return False


def long_functions(module: Module) -> Iterator[tuple[int, str, int]]:
    """Line, name and length of each function over `FUNCTION_LINES` lines."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield node.lineno, node.name, length


def imports(found: list[Module]) -> dict[str, set[str]]:
    """Which modules each module imports when it is loaded."""
    names = {module.name for module in found}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for module in found:
        for node in module.tree.body:
            if isinstance(node, ast.Import):
                graph[module.name] |= {alias.name for alias in node.names} & names
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    graph[module.name] |= {submodule if submodule in names else node.module} & names
        graph[module.name].discard(module.name)
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of the graph, empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def by_room(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between rooms: a folder inside a package is one, a module beside it another."""
    rooms: dict[str, set[str]] = {}
    for name, imported in graph.items():
        room = _room(name)
        rooms.setdefault(room, set()).update({_room(other) for other in imported} - {room})
    return rooms


def _room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def crowded_folders(root: Path) -> dict[str, int]:
    """Folders of product code with more than `FOLDER_MODULES` modules."""
    sizes: dict[str, int] = {}
    for module in all_modules(root):
        if module.path.name != "__init__.py":
            folder = str(module.path.parent)
            sizes[folder] = sizes.get(folder, 0) + 1
    return {folder: size for folder, size in sizes.items() if size > FOLDER_MODULES}


def main() -> None:
    """Print the figures of each package of a checkout, and their sums."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    head = f"{'package':14}{'modules':>9}{'lines':>8}{'code':>8}{'largest':>9}{'comments/100':>14}"
    print(f"{head}{'constants':>11}{'bare':>6}{'long':>6}")
    for name in [*packages(root), ""]:
        found = modules(root, name) if name else all_modules(root)
        lines = sum(module.lines for module in found)
        code = sum(map(code_lines, found))
        comments = sum(len(comment_lines(module)) for module in found)
        constants = [reason for module in found for _, _, reason in numeric_constants(module)]
        long = sum(1 for module in found for _ in long_functions(module))
        largest = max(module.lines for module in found)
        row = f"{name or 'all':14}{len(found):9}{lines:8}{code:8}{largest:9}{100 * comments / lines:14.1f}"
        print(f"{row}{len(constants):11}{constants.count(False):6}{long:6}")
    lua = sum(len(path.read_text("utf-8").splitlines()) for path in root.glob("featurestore/**/*.lua"))
    print(f"Lua {lua} lines; folders over {FOLDER_MODULES} modules: {crowded_folders(root) or 'none'}")


if __name__ == "__main__":
    main()
