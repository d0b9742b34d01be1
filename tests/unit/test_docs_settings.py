"""docs/settings.md has every setting, its default and its meaning, and no other; shows that this can fail."""

import ast
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from foldin.reference import settings_reference
from processes.settings import HIDDEN, Setting, declarations, reference, setting, whole
from tests.support import house

ROOT = house.ROOT
DOCUMENT = (ROOT / "docs/settings.md").read_text("utf-8")
# These are no process of the product; the one variable that benchmarks read stands in docs/accuracy.md.
PACKAGES = [package for package in house.packages(ROOT) if package not in house.BESIDE]
# Made of the user's number and the machine's temporary folder.
DERIVED = {"ServiceSettings.cache_dir", "StoreSettings.partitions"}


def settings_classes() -> Iterator[type[Any]]:
    """Every class of the product with a field made by `setting(...)`, wherever it stands."""
    for module in (module for package in PACKAGES for module in house.modules(ROOT, package)):
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and any(
                isinstance(field, ast.AnnAssign)
                and isinstance(field.value, ast.Call)
                and isinstance(field.value.func, ast.Name)
                and field.value.func.id == "setting"
                for field in node.body
            ):
                yield getattr(import_module(module.name), node.name)


def tables(text: str) -> list[dict[tuple[str, ...], tuple[str, str]]]:
    """The tables of a document: default and explanation of each row, by the names in its first column."""
    row = re.compile(r"^\| (`[^|]+`) \| ([^|]*) \| ([^|]+) \|$", re.M)
    return [
        {
            tuple(re.findall("`([^`]+)`", names)): (default, words)
            for names, default, words in row.findall(part)
        }
        for part in text.split("\n## ")
    ]


def says(told: str, default: Any, declared: Setting, where: str) -> bool:
    """Whether what the document tells is the default: a process that reads it gets the same value."""
    if default in (None, ()) or default is MISSING or where in DERIVED:
        return told in {declared.shown, "none", ""}
    if default is False:
        return told == "off"
    try:
        return bool(declared.value_of(told.replace("`", "").replace(",", "")) == default)
    except ValueError:
        return False


def offences(text: str, classes: list[type[Any]]) -> list[str]:
    """Settings that a document lacks or tells otherwise, and rows that are no setting."""
    found, known = [], set[tuple[str, ...]]()
    for cls in classes:
        own = [
            (entry, made) for entry, made in declarations(cls) if made.help != HIDDEN and entry in fields(cls)
        ]
        names = {entry.name: tuple(filter(None, (made.variable, made.flag))) for entry, made in own}
        known.update(names.values())
        # One table has all of a class; the same name may have another default in another process.
        fewest: list[str] | None = None
        for table in tables(text):
            wrong = []
            for entry, declared in own:
                where, (told, words) = f"{cls.__name__}.{entry.name}", table.get(names[entry.name], ("", ""))
                if words != declared.help:
                    wrong.append(f"{where} is missing or told otherwise")
                elif not says(told, entry.default, declared, where):
                    wrong.append(f"{where} has another default than {told}")
            if fewest is None or len(wrong) < len(fewest):
                fewest = wrong
        found += fewest or []
    listed = {names for table in tables(text) for names in table}
    return found + [f"{' '.join(names)} is no setting" for names in sorted(listed - known)]


@dataclass(frozen=True)
class Example:
    """Settings to try the rule on."""

    size: int = setting(10_000, "how large", whole(1), variable="FOLDIN_SIZE", flag="--size")
    names: tuple[str, ...] = setting(("a", "b"), "who", many=True)
    loud: bool = setting(False, "more words")
    secret: int = setting(1, HIDDEN, whole(1))


EXAMPLE = "\n## It\n\n" + reference(Example)


@pytest.mark.slow
def test_the_document_has_every_setting_and_no_other() -> None:
    found = offences(DOCUMENT, list(settings_classes()))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EXAMPLE, []),
        (EXAMPLE.replace("| 10,000 |", "| 10,001 |"), ["Example.size has another default than 10,001"]),
        (EXAMPLE.replace("`a` `b`", "`a`"), ["Example.names has another default than `a`"]),
        (EXAMPLE.replace("| off |", "| on |"), ["Example.loud has another default than on"]),
        (EXAMPLE.replace("how large", "how big"), ["Example.size is missing or told otherwise"]),
        (
            EXAMPLE.replace("`--loud`", "`--lout`"),
            ["Example.loud is missing or told otherwise", "--lout is no setting"],
        ),
        (
            EXAMPLE.replace("| `--names` | `a` `b` | who |\n", ""),
            ["Example.names is missing or told otherwise"],
        ),
        (EXAMPLE + "| `FOLDIN_MORE` | 1 | more |\n", ["FOLDIN_MORE is no setting"]),
    ],
)
def test_a_document_that_lacks_one_is_found(text: str, expected: list[str]) -> None:
    assert offences(text, [Example]) == expected


def test_the_classes_of_settings_are_found_wherever_they_stand() -> None:
    names = {cls.__name__ for cls in settings_classes()}
    assert {"StoreSettings", "ServiceSettings", "Rules", "WorldOptions", "EvaluateOptions"} <= names
    assert "Settings" not in names


def test_every_variable_that_the_code_names_is_documented() -> None:
    """Also one that is read past the declarations, or handed to another process."""
    named = {
        node.value
        for package in PACKAGES
        for module in house.modules(ROOT, package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"FOLDIN_[A-Z0-9_]+", node.value)
    }
    assert named == {
        name for table in tables(DOCUMENT) for names in table for name in names if name.startswith("FOLDIN_")
    }


def test_the_document_is_what_the_declarations_say() -> None:
    """`foldin settings > docs/settings.md` brings it up to date."""
    assert settings_reference() == DOCUMENT


def environment_reads(root: Path, package: str) -> list[str]:
    """Reads of the environment outside of settings and of modules that can be run (`python -m`)."""
    found = []
    for module in house.modules(root, package):
        if module.path.name in {"settings.py", "__main__.py"} or "__main__" in module.text:
            continue
        lines = [entry.line for entry in house.imported(module) if entry.name in {"os.environ", "os.getenv"}]
        lines += [
            node.lineno
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            if isinstance(node.value, ast.Name) and node.value.id == "os"
        ]
        found += [f"{module.path}:{line}" for line in lines]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_the_environment_is_read_in_settings_and_main_only(package: str) -> None:
    assert environment_reads(ROOT, package) == []


def test_a_read_of_the_environment_is_found(tmp_path: Path) -> None:
    text = "import os\nfrom os import environ\ndef f():\n    os.getenv('A')\n    return environ['B']\n"
    house.write_tree(tmp_path, {"rooms/one.py": text, "rooms/settings.py": text})
    assert environment_reads(tmp_path, "rooms") == ["rooms/one.py:2", "rooms/one.py:4"]
