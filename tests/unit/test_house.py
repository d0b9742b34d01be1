"""Holds the code to the rules of CONTRIBUTING.md, documents to the code; shows that each rule can fail."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import house

ROOT = house.ROOT
# Where in the code something is.
PLACE = re.compile(r"`([\w/]+\.(?:py|lua)):([\w.]+)`")

# What a rule reads of any checkout.
DOCUMENTS = dict.fromkeys(("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"), "")

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


def twin_tests(root: Path) -> list[str]:
    """Test modules of one name in two folders, which pytest cannot collect together: `name: folders`."""
    folders: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        folders.setdefault(path.name, []).append(path.parent.relative_to(root).as_posix())
    return [f"{name}: {', '.join(where)}" for name, where in folders.items() if len(where) > 1]


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
    """The anchor that a Markdown heading gets, empty for any other line."""
    title = re.match(r"#+ (.*)", line)
    return re.sub(r"[^\w -]", "", title[1]).lower().replace(" ", "-") if title else ""


# Each rule with a small checkout that breaks it in every way, and what is found there.
RULES: dict[Rule, tuple[dict[str, str], list[str]]] = {
    house.module_cycles: (
        {
            "rooms/one.py": "def later():\n    from rooms import two\n",
            "rooms/two.py": "import rooms.one\n",
        },
        ["rooms.one", "rooms.two", "rooms.one"],
    ),
    house.room_cycles: (
        {
            "rooms/east/one.py": "from rooms.west.two import name\n",
            "rooms/east/four.py": "",
            "rooms/west/two.py": "name = 1\n",
            "rooms/west/three.py": "import_module('rooms.east.four')\n",
        },
        ["rooms.east", "rooms.west", "rooms.east"],
    ),
    house.long_modules: (
        {
            "rooms/long.py": "pass\n" * (house.MODULE_LINES + 1),
            "rooms/short.py": "pass\n" * house.MODULE_LINES,
        },
        ["rooms/long.py: 501 lines"],
    ),
    house.too_long_functions: (
        {"rooms/one.py": "class C:\n    async def long():\n" + "        pass\n" * house.FUNCTION_LINES},
        ["rooms/one.py:2 long: 61 lines"],
    ),
    house.bare_constants: (
        {
            "rooms/one.py": "# Why so.\nA = 1\nB = 2\nC = 3  # so\nD = -4\nE: float = 5 * 60\n'''So.'''\n"
            "_F = (6, 7)\n# Both.\nG, H = 1, 2\nI, J = 1, 2\nTEXT = 'x'\nFLAG = True\nvariable = 1\n"
        },
        [
            "rooms/one.py:3 B",
            "rooms/one.py:5 D",
            "rooms/one.py:8 _F",
            "rooms/one.py:11 I",
            "rooms/one.py:11 J",
        ],
    ),
    house.too_many_variables: (
        {
            "rooms/one.py": "# Why so.\n"
            + "".join(f"setting(1, variable='V{number}')\n" for number in range(46))
            + "setting(1, variable='V1')\n"
        },
        ["46 variables"],
    ),
    house.private_words: (
        {
            "rooms/one.py": "def wait_patiently(): ...\n",
            "rooms/two.lua": "-- Whoever comes.\n",
            "tests/test_one.py": "b'nobody'\n",
            "docs/words.md": "The duties.\n",
            "README.md": "somebody\n",
            "CONTRIBUTING.md": "Somebodys.\n",
            "Makefile": "# Wishes\n",
            "deploy/one.yml": "# what is 'loose'\n# is loose\n",
        },
        [
            *("README.md:1 somebody", "Makefile:1 Wishes"),
            *("rooms/one.py:1 patiently", "rooms/two.lua:1 Whoever"),
            *("tests/test_one.py:1 nobody", "docs/words.md:1 duties", "deploy/one.yml:2 loose"),
        ],
    ),
    twin_tests: (
        dict.fromkeys(("tests/unit/test_one.py", "tests/fault/test_one.py", "tests/fault/test_two.py"), ""),
        ["test_one.py: tests/fault, tests/unit"],
    ),
    dangling_references: (
        {
            "rooms/__main__.py": "class C:\n    def f(): ...\n",
            "docs/one.md": "# Its Own: Head\n"
            "`rooms/__main__.py:C.f` `rooms/gone.py:f` `rooms/__main__.py:g`\n"
            "`python -m rooms` `python -m gone`\n"
            "[a](one.md#its-own-head) [b](#head) [c](../gone.md) [d](../README.md)\n",
        },
        [
            f"docs/one.md: {each}"
            for each in ("rooms/gone.py", "rooms/__main__.py:g", "gone", "#head", "../gone.md")
        ],
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    found = rule(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_what_breaks_it(rule: Rule, tmp_path: Path) -> None:
    files, expected = RULES[rule]
    house.write_tree(tmp_path, {"rooms/__init__.py": "", **DOCUMENTS, **files})
    assert rule(tmp_path) == expected


def test_an_exception_from_a_rule_is_one_that_is_needed() -> None:
    long = {
        f"{module.path}:{name}"
        for module in house.all_modules(ROOT)
        for _, name, _ in house.long_functions(module)
    }
    assert long == house.LOOP_NESTS
