"""Who may import what. The table of rooms in docs/architecture.md is the rule between packages, and it is
exact: a row loses what its package no longer imports. The walls inside packages stand here.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import house

ROOT = house.ROOT
TABLE_ROW = re.compile(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", re.M)
ANY_TIME = ("load", "call", "typing")

# What a package shows to the others, where that is less than all: behind it are the bytes of rows, and of the
# store's protocol.
DOORS = {
    "factors": {f"factors{name}" for name in ("", ".engine_api", ".errors", ".fit_code", ".fold_in_code")},
    "featurestore.wire": set[str](),
}
COUNTER_RULE = "featurestore.users.counter_rule"

Rule = Callable[[Path], list[str]]


def table(root: Path) -> dict[str, set[str]]:
    text = (root / "docs/architecture.md").read_text("utf-8")
    return {package: set(re.findall(r"\w+", cell)) for package, cell in TABLE_ROW.findall(text)}


def wrong_table(root: Path) -> list[str]:
    allowed, packages = table(root), house.packages(root)
    found = [
        f"{package}: only in the table or only in the checkout"
        for package in sorted(set(packages) ^ set(allowed))
    ]
    for package in set(packages) & set(allowed):
        made: set[str] = set()
        for module in house.modules(root, package):
            for entry in house.imported(module):
                name = entry.name.partition(".")[0]
                made.add(name)
                if name not in {*allowed[package], package, *sys.stdlib_module_names}:
                    found.append(f"{module.path}:{entry.line} imports {name or entry.name}")
        found += [f"{package} does not import {name}" for name in sorted(allowed[package] - made)]
    return found


def passed_doors(root: Path) -> list[str]:
    graph = house.imports(house.all_modules(root), when=ANY_TIME)
    return [
        f"{module} imports {name}"
        for module, names in graph.items()
        for inside, door in DOORS.items()
        if not is_in(module, inside.partition(".")[0])
        for name in sorted(names - door)
        if is_in(name, inside)
    ]


def counter_readers(root: Path) -> list[str]:
    """Modules beside the counter rule that read the `n` which a record has seen."""
    return [
        str(module.path)
        for module in house.all_modules(root)
        if module.name != COUNTER_RULE and re.search(r"\bCOUNTER\.(iter_)?unpack", module.text)
    ]


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


RULES: tuple[Rule, ...] = (wrong_table, passed_doors, counter_readers)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_walls_stand(rule: Rule) -> None:
    found = rule(ROOT)
    assert not found, "\n".join(found)
