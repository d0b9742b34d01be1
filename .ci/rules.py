"""Hold the code to the rules of CONTRIBUTING.md, and documents to the code.

Prints what breaks one; code 1 where anything does.
"""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import house

ROOT = house.ROOT
# Where in the code something is.
PLACE = re.compile(r"`([\w/]+\.(?:py|lua)):([\w.]+)`")

Rule = Callable[[Path], list[str]]


def definitions(path: Path) -> set[str]:
    """Dotted names that a file defines: functions, classes and their members, assigned names."""
    text = path.read_text("utf-8")
    if path.suffix == ".lua":
        return set(re.findall(r"^(?:local )?function (\w+)", text, re.M))
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = (name for target in targets for name in ast.walk(target))
                found.update(prefix + name.id for name in names if isinstance(name, ast.Name))

    visit(ast.parse(text).body, "")
    return found


def dangling_references(root: Path) -> list[str]:
    """Files, names in them and modules of a document that are not there, and links that lead nowhere."""
    found = []
    for document in (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))):
        text = document.read_text("utf-8")
        files = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|lua|md|yml))(?::[\w.]+)?`", text)
        missing = [file for file in files if not (root / file).is_file()]
        missing += [
            f"{file}:{name}"
            for file, name in PLACE.findall(text)
            if (root / file).is_file() and name not in definitions(root / file)
        ]
        for name in re.findall(r"python -m ([\w.]+)", text):
            # In the wheel the packages are under `foldin`.
            modules = [root / each.replace(".", "/") for each in (name, name.removeprefix("foldin."))]
            if not any(
                module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
                for module in modules
            ):
                missing.append(name)
        for target, heading in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            linked = document.parent / target if target else document
            if not linked.exists():
                missing.append(target)
            elif heading and heading not in map(slug, linked.read_text("utf-8").splitlines()):
                missing.append(f"{target}#{heading}")
        found += [f"{document.relative_to(root)}: {name}" for name in missing]
    return found


def slug(line: str) -> str:
    title = re.match(r"#+ (.*)", line)
    return re.sub(r"[^\w -]", "", title[1]).lower().replace(" ", "-") if title else ""


RULES: tuple[Rule, ...] = (
    house.module_cycles,
    house.room_cycles,
    house.private_words,
    dangling_references,
)


if __name__ == "__main__":
    broken = [f"{rule.__name__}: {each}" for rule in RULES for each in rule(ROOT)]
    print(*broken, sep="\n", end="\n" * bool(broken))
    sys.exit(bool(broken))
