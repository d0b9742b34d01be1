"""A setting that is read but not documented fails here, and so does one that is documented but not read."""

import ast
import re
from pathlib import Path

import pytest

from foldin.reference import settings_reference

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("featurestore", "service", "trainer", "evaluation", "foldin", "environment")


def read_names() -> set[str]:
    """Every string in the packages' code that is the name of a setting."""
    names = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and re.fullmatch(r"FOLDIN_[A-Z0-9_]+", text):
                    names.add(text)
    return names


def documented_names() -> set[str]:
    """The names in the first column of the tables of settings."""
    text = (ROOT / "docs/settings.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(FOLDIN_[A-Z0-9_]+)`", row)}


def test_every_setting_that_is_read_is_documented() -> None:
    assert read_names() - documented_names() == set()


def test_every_setting_that_is_documented_is_read() -> None:
    assert documented_names() - read_names() == set()


def test_the_document_is_what_the_declarations_say() -> None:
    """`foldin settings > docs/settings.md` brings it up to date."""
    assert (ROOT / "docs/settings.md").read_text("utf-8") == settings_reference()


@pytest.mark.parametrize("package", [*PACKAGES, "processes", "factors"])
def test_the_environment_is_read_in_settings_and_main_only(package: str) -> None:
    offences = []
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name in {"settings.py", "__main__.py"}:
            continue
        source = path.read_text("utf-8")
        # A module that can be run (`python -m`) is a main of its own.
        if "__main__" in source:
            continue
        offences += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and node.attr in {"environ", "getenv"}
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ]
    assert not offences
