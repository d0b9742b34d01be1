"""Holds the code to the rules of CONTRIBUTING.md, documents to the code; shows that each rule can fail."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import house

ROOT = house.ROOT
WALK_STEPS = range(5, 21)
GLOSSARY_TERMS = range(20, 41)
WALKS = ("Follow one rating", "Follow one prediction")
# A step or a term says where in the code it is.
PLACE = re.compile(r"`([\w/]+\.(?:py|lua)):([\w.]+)`")

# Of Redis, of Docker, of OpenTelemetry, and volumes with the name that Compose gives them.
NAMES_OF_OTHERS = {
    *("aof_rewrite_in_progress", "cpu_shares", "parentbased_traceidratio"),
    *("foldin_archive", "foldin_redis"),
}
# What a rule reads of any checkout.
DOCUMENTS = dict.fromkeys(("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"), "")

Rule = Callable[[Path], list[str]]


def section(root: Path, title: str) -> str:
    """The text of a section of the architecture, empty where there is none."""
    text = (root / "docs/architecture.md").read_text("utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


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
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(text).body, "")
    return found


def missing_names(root: Path, text: str) -> list[str]:
    """Every `file:name` in a text that the code does not have."""
    return [
        f"{file}:{name}"
        for file, name in PLACE.findall(text)
        if not (root / file).is_file() or name not in definitions(root / file)
    ]


def broken_walks(root: Path) -> list[str]:
    """Walks that are missing or long, steps without a place, places that are not there."""
    found = []
    for title in WALKS:
        text = section(root, title)
        steps = re.findall(r"^\d+\. .*", text, re.M)
        if len(steps) not in WALK_STEPS:
            found.append(f"{title}: {len(steps)} steps")
        found += [step for step in steps if not PLACE.search(step)]
        found += missing_names(root, text)
    return found


def broken_glossary(root: Path) -> list[str]:
    """Terms that are too many, stand twice, have no place, or one that is not there."""
    text = section(root, "Words")
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    terms = [term for term, _, _ in rows]
    found = [] if len(terms) in GLOSSARY_TERMS else [f"{len(terms)} terms"]
    found += sorted({f"{term} stands twice" for term in terms if terms.count(term) > 1})
    found += [f"{term} has no place" for term, _, where in rows if not PLACE.search(where)]
    return found + missing_names(root, text)


def ambiguous_classes(root: Path) -> list[str]:
    """Classes that have the name of one in the glossary and are another thing."""
    named = set(re.findall(r"`[\w/]+\.py:([A-Z]\w+)", section(root, "Words")))
    places: dict[str, list[str]] = {}
    for module in house.all_modules(root):
        # The client has the types of the service under the names that the description has.
        for node in () if module.is_made else module.tree.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(str(module.path))
    return [f"{name}: {', '.join(places[name])}" for name in sorted(named) if len(places.get(name, ())) > 1]


def twin_tests(root: Path) -> list[str]:
    """Test modules of one name in two folders, which pytest cannot collect together: `name: folders`."""
    folders: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        folders.setdefault(path.name, []).append(path.parent.relative_to(root).as_posix())
    return [f"{name}: {', '.join(where)}" for name, where in folders.items() if len(where) > 1]


def dangling_references(root: Path) -> list[str]:
    """Files and modules that a document names and that are not there, and links that lead nowhere."""
    found = []
    for document in (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))):
        text = document.read_text("utf-8")
        files = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|lua|md|yml))(?::[\w.]+)?`", text)
        missing = [file for file in files if not (root / file).is_file()]
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


def unknown_names(root: Path) -> list[str]:
    """Names with an underscore, in a document's code or picture, that are nowhere in the code."""
    suffixes = {".py", ".lua", ".js", ".html", ".yml", ".toml"}
    folders = [*house.packages(root), "clients", "tests", "deploy"]
    files = [*root.glob("*"), *(path for folder in folders for path in (root / folder).rglob("*"))]
    known = set(NAMES_OF_OTHERS)
    for path in files:
        if path.suffix in suffixes:
            known.update((path.stem, *re.findall(r"\w+", path.read_text("utf-8"))))
    found = []
    for document in (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))):
        text = document.read_text("utf-8")
        spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```\n(.*?)^```", text, re.S | re.M)
        # In lower case, of two letters and more: mathematics has the others.
        names = {name for span in spans for name in re.findall(r"\b[a-z]{2,}(?:_[a-z]{2,})+\b", span)}
        # Counters get the suffix when they are written out.
        unknown = [name for name in sorted(names - known) if name.removesuffix("_total") not in known]
        found += [f"{document.relative_to(root)}: {name}" for name in unknown]
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
    house.crowded_folders: (
        {f"rooms/full/m{number}.py": "" for number in range(house.FOLDER_MODULES + 1)},
        ["rooms/full: 15 modules"],
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
    house.uncommented_packages: (
        {
            "rooms/one.py": "# Why so.\n" + "pass\n" * 25,
            "halls/__init__.py": "# Why so.\n" + "pass\n" * 24,
        },
        ["rooms: 1 comments in 26 lines"],
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
    broken_walks: (
        {
            "rooms/one.py": "class C:\n    def m(self): ...\n",
            "docs/architecture.md": "\n## Follow one rating\n\n"
            + "1. `rooms/one.py:C.m`\n" * 21
            + "\n## Follow one prediction\n\n"
            + "1. `rooms/one.py:C`\n" * 3
            + "2. `rooms/one.py:C.n`\n3. It comes.\n4. `rooms/two.py:f`\n",
        },
        ["Follow one rating: 21 steps", "3. It comes.", "rooms/one.py:C.n", "rooms/two.py:f"],
    ),
    broken_glossary: (
        {
            "rooms/one.lua": "function here()\n",
            "docs/architecture.md": "\n## Words\n\n"
            "| **a** | b | `rooms/one.lua:here` |\n"
            "| **a** | b | `rooms/one.lua:there` |\n"
            "| **c** | d | there |\n",
        },
        ["3 terms", "a stands twice", "c has no place", "rooms/one.lua:there"],
    ),
    ambiguous_classes: (
        {
            "rooms/one.py": "class Term: ...\n",
            "rooms/two.py": "class _Term: ...\nclass Other: ...\n",
            "rooms/three.py": "class Other: ...\n",
            "docs/architecture.md": "\n## Words\n\n| **term** | t | `rooms/one.py:Term.run` |\n",
        },
        ["Term: rooms/one.py, rooms/two.py"],
    ),
    twin_tests: (
        dict.fromkeys(("tests/unit/test_one.py", "tests/fault/test_one.py", "tests/fault/test_two.py"), ""),
        ["test_one.py: tests/fault, tests/unit"],
    ),
    dangling_references: (
        {
            "rooms/__main__.py": "",
            "docs/one.md": "# Its Own: Head\n"
            "`rooms/__main__.py` `rooms/gone.py:f` `python -m rooms` `python -m gone`\n"
            "[a](one.md#its-own-head) [b](#head) [c](../gone.md) [d](../README.md)\n",
        },
        ["docs/one.md: rooms/gone.py", "docs/one.md: gone", "docs/one.md: #head", "docs/one.md: ../gone.md"],
    ),
    unknown_names: (
        {
            "rooms/one.py": "take_it = 1\n",
            "docs/one.md": "`take_it(x_i)` gone_there `Gone.gone_here`\n```\ntake_it ─► gone_far\n```\n",
        },
        ["docs/one.md: gone_far", "docs/one.md: gone_here"],
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


def test_what_the_type_checker_alone_imports_is_no_cycle(tmp_path: Path) -> None:
    text = "if TYPE_CHECKING:\n    from rooms import two\nelse:\n    import rooms.two\n"
    house.write_tree(tmp_path, {"rooms/__init__.py": "", "rooms/one.py": text, "rooms/two.py": ""})
    one = next(module for module in house.modules(tmp_path, "rooms") if module.name == "rooms.one")
    assert {(entry.line, entry.when) for entry in house.imported(one)} == {(2, "typing"), (4, "load")}


def test_lines_of_code_are_counted_without_comments_and_docstrings(tmp_path: Path) -> None:
    text = '"""It\n\nhas.\n"""\n\n# Why so.\nA = 1\n\nB = (\n    2,\n)  # two\n'
    house.write_tree(tmp_path, {"rooms/__init__.py": "", "rooms/one.py": text})
    assert house.packages(tmp_path) == ["rooms"]
    assert [house.code_lines(module) for module in house.modules(tmp_path, "rooms")] == [0, 4]
