"""Each dependency has its line in docs/dependencies.md, with its reason.

The locks can be trusted by their hashes.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = tuple(f"requirements/{name}.txt" for name in ("run", "dev", "bench", "docs", "supply"))
# Its builds differ by machine.
UNLOCKED = {"torch"}


def name_of(requirement: str) -> str:
    """The normalized name of a requirement line."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def declared() -> set[str]:
    """Every distribution that pyproject.toml or the lock of the build asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        lines += extra
    for group in project["dependency-groups"].values():
        lines += group
    lines += project["build-system"]["requires"]
    lines += (ROOT / "requirements/build.in").read_text("utf-8").split()
    return {name_of(line) for line in lines}


def documented() -> dict[str, list[str]]:
    """The rows of the tables: name -> the other cells."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", (ROOT / "docs/dependencies.md").read_text("utf-8"), re.M)
    return {name_of(name): [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_every_dependency_is_documented_and_nothing_else() -> None:
    assert set(documented()) == declared()


def test_every_line_says_what_for_licence_size_and_runner_up() -> None:
    for name, cells in documented().items():
        assert len(cells) == 4, name
        assert all(cells), f"{name} has an empty cell"
        assert re.fullmatch(r"[\d.]+ MB", cells[2]), f"{name}: the size is {cells[2]!r}"


def test_a_lock_has_a_hash_for_each_line_and_no_address() -> None:
    for lock in LOCKS:
        text = (ROOT / lock).read_text("utf-8")
        assert "://" not in text
        assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|--find-links|-e)\b", text, re.M)
        blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
        assert blocks
        for block in blocks:
            assert "==" in block.splitlines()[0], block.splitlines()[0]
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_what_is_declared_is_locked() -> None:
    locked = {
        name_of(line)
        for lock in LOCKS
        for line in re.findall(r"^[A-Za-z0-9].*==", (ROOT / lock).read_text("utf-8"), re.M)
    }
    assert declared() - UNLOCKED <= locked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    run = {
        name_of(line) for line in re.findall(r"^[A-Za-z0-9].*==", (ROOT / LOCKS[0]).read_text("utf-8"), re.M)
    }
    assert {name_of(line) for line in project["project"]["dependencies"]} <= run
