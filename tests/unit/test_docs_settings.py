"""docs/settings.md is what the declarations of all settings say, and the environment is read there alone."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from foldin.reference import settings_reference
from processes.settings import HIDDEN, declarations
from tests.support import house

ROOT = house.ROOT
DOCUMENT = (ROOT / "docs/settings.md").read_text("utf-8")
# These are no process of the product; the one variable that benchmarks read stands in docs/accuracy.md.
PACKAGES = [package for package in house.packages(ROOT) if package not in house.BESIDE]


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


def test_the_document_is_what_the_declarations_say() -> None:
    """`foldin settings > docs/settings.md` brings it up to date."""
    assert settings_reference() == DOCUMENT
    names = {
        name
        for cls in settings_classes()
        for _, each in declarations(cls)
        if each.help != HIDDEN
        for name in (each.variable, each.flag)
        if name
    }
    assert [name for name in sorted(names) if f"`{name}`" not in DOCUMENT] == []


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
    rows = re.findall(r"^\| (`[^|]+`) \|", DOCUMENT, re.M)
    assert named == set(re.findall(r"FOLDIN_[A-Z0-9_]+", " ".join(rows)))
