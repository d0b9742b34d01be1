"""Holds the code to the rules of CONTRIBUTING.md, and docs/architecture.md to the code."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import house

ROOT = house.ROOT
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")
PACKAGES = house.packages(ROOT)
WALK_STEPS = 20
GLOSSARY_TERMS = 40
# Loop nests that numba compiles whole: what is read of a row stays in registers for all that is done with it.
LOOP_NESTS = {"solve_rows", "score_entries"}
# Each has a term of the field, or the subject itself, in its place.
PRIVATE_WORDS = re.compile(
    r"\b(nobody|whoever|somebody|patiently|leftout|seteffects?|periodgroups?|shortway|storedrows|duties)\b",
    re.I,
)


def test_no_module_imports_itself_through_others() -> None:
    assert house.cycle_of(house.imports(house.all_modules(ROOT))) == []


def test_no_room_imports_itself_through_others() -> None:
    assert house.cycle_of(house.by_room(house.imports(house.all_modules(ROOT)))) == []


def test_a_folder_can_be_taken_in_at_a_glance() -> None:
    assert house.crowded_folders(ROOT) == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_and_functions_are_short(package: str) -> None:
    found = house.modules(ROOT, package)
    long = [f"{module.path}: {module.lines} lines" for module in found if module.lines > house.MODULE_LINES]
    long += [
        f"{module.path}:{line} {name}: {length} lines"
        for module in found
        for line, name, length in house.long_functions(module)
        if name not in LOOP_NESTS
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_numeric_constant_has_its_reason(package: str) -> None:
    bare = [
        f"{module.path}:{line} {name}"
        for module in house.modules(ROOT, package)
        for line, name, reason in house.numeric_constants(module)
        if not reason
    ]
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_word_is_private_to_this_project(package: str) -> None:
    found = [
        f"{module.path}:{number} {match.group()}"
        for module in house.modules(ROOT, package)
        for number, line in enumerate(module.text.splitlines(), 1)
        if (match := PRIVATE_WORDS.search(line))
    ]
    assert not found, "\n".join(found)


def section(title: str) -> str:
    """The text of a section of the architecture."""
    assert f"\n## {title}\n" in ARCHITECTURE, title
    return ARCHITECTURE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


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


def missing_names(text: str) -> list[str]:
    """Every `file:name` in a text that the code does not have."""
    return [
        f"{file}:{name}"
        for file, name in re.findall(r"`([\w/]+\.(?:py|lua)):([\w.]+)`", text)
        if not (ROOT / file).is_file() or name not in definitions(ROOT / file)
    ]


@pytest.mark.parametrize("title", ["Follow one rating", "Follow one prediction"])
def test_a_walk_is_short_and_its_steps_exist(title: str) -> None:
    text = section(title)
    steps = re.findall(r"^\d+\. .*", text, re.M)
    assert 5 <= len(steps) <= WALK_STEPS
    assert [step for step in steps if not re.search(r"`[\w/]+\.(?:py|lua):[\w.]+`", step)] == []
    assert missing_names(text) == []


def test_the_glossary_is_short_and_its_terms_are_in_the_code() -> None:
    text = section("Words")
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    terms = [term for term, _, _ in rows]
    assert 20 <= len(terms) <= GLOSSARY_TERMS
    assert len(set(terms)) == len(terms)
    assert [term for term, _, where in rows if not re.search(r"`[\w/]+\.(?:py|lua):[\w.]+`", where)] == []
    assert missing_names(text) == []


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document: Path) -> None:
    """Files and modules of this repository, and the headings that links lead to."""
    text = document.read_text("utf-8")
    files = re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|lua|md|yml))(?::[\w.]+)?`", text)
    missing = [file for file in files if not (ROOT / file).is_file()]
    for name in re.findall(r"python -m ([\w.]+)", text):
        module = ROOT / name.replace(".", "/")
        if not (module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()):
            missing.append(name)
    for target, heading in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        linked = document.parent / target if target else document
        if not linked.exists():
            missing.append(target)
        elif heading and heading not in {slug(line) for line in linked.read_text("utf-8").splitlines()}:
            missing.append(f"{target}#{heading}")
    assert not missing


def slug(line: str) -> str:
    """The anchor that a Markdown heading gets, empty for any other line."""
    title = re.match(r"#+ (.*)", line)
    return re.sub(r"[^\w -]", "", title[1]).lower().replace(" ", "-") if title else ""


def test_the_measure_finds_what_it_should(tmp_path: Path) -> None:
    package = tmp_path / "rooms"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(
        "import rooms.two\n# Why so.\nA = 1\nB = 2\n\nC = -3\nD = (1, 2.5)\nE = 'x'\nF = True\n"
    )
    (package / "two.py").write_text("from rooms import one\n\n\ndef long():\n" + "    pass\n" * 61)
    found = house.modules(tmp_path, "rooms")
    constants = {name: reason for module in found for _, name, reason in house.numeric_constants(module)}
    assert constants == {"A": True, "B": True, "C": False, "D": False}
    assert [name for module in found for _, name, _ in house.long_functions(module)] == ["long"]
    assert set(house.cycle_of(house.imports(found))) == {"rooms.one", "rooms.two"}
    assert [house.code_lines(module) for module in found] == [0, 7, 63]
    assert house.packages(tmp_path) == ["rooms"]
