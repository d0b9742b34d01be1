"""Each dependency has its line in docs/dependencies.md, with its reason.

The locks can be trusted by their hashes.
"""

import os
import re
import tomllib
from pathlib import Path

import pytest

from service.settings import ServiceSettings
from tests.support import house

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


ROOT_FILES = ("docker-compose.yml", "Dockerfile", "Makefile", "pyproject.toml")
FILES = (*ROOT_FILES, ".ci/*", ".github/**/*", "deploy/**/*")


def test_nothing_is_the_latest() -> None:
    """An image without a tag is that, too."""
    found = []
    for pattern in FILES:
        for path in house.ROOT.glob(pattern):
            if not path.is_file() or path.suffix in {".png", ".pyc"}:
                continue
            text = path.read_text("utf-8")
            found += [
                f"{path.name}: {line}" for line in text.splitlines() if re.search(r"[:@]latest\b", line)
            ]
            images = re.findall(r"^\s*(?:image:|FROM)\s+(\S+)", text, re.M)
            stages = set(re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.M))
            found += [
                f"{path.name}: {image}"
                for image in images
                if ":" not in image and image not in stages and not image.startswith("$")
            ]
    assert found == []


MANUAL = ServiceSettings().manual_dir
# What its Content-Security-Policy forbids a page: a script or a style inside, and what a browser asks another
# address for by itself. What a reader clicks at may lead anywhere.
FORBIDDEN = re.compile(
    r"<script(?![^>]*\ssrc=)|<style|<[^>]+\s(?:style|on\w+)=|"
    r"""<(?!a\b|link[^>]*\brel="(?:next|prev|index|search|author|copyright|canonical)")"""
    r"""[^>]+\s(?:src|srcset|poster|data|(?:xlink:)?href)=["']?(?:[a-z][\w+.-]*:)?//""",
    re.I,
)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:[a-z][\w+.-]*:)?//""", re.I)


@pytest.mark.slow
@pytest.mark.skipif(
    not MANUAL.is_dir() and "CI" not in os.environ, reason="needs the manual: `make docs` builds it"
)
def test_no_page_asks_another_address_or_has_a_script_inside() -> None:
    for kind, rule in (("html", FORBIDDEN), ("css", IN_STYLE)):
        texts = {path.name: path.read_text("utf-8") for path in MANUAL.rglob(f"*.{kind}")}
        assert texts
        assert [name for name, text in texts.items() if rule.search(text)] == []
