"""Each dependency has its line in docs/dependencies.md and is locked, nothing is whatever is newest, and the
manual as it was built asks no other address for anything.
"""

import os
import re
import tomllib
from pathlib import Path

import pytest

from service.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
LOCKS = tuple(f"requirements/{name}.txt" for name in ("run", "dev", "bench", "docs", "supply"))
# Its builds differ by machine.
UNLOCKED = {"torch"}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        lines += extra
    for group in project["dependency-groups"].values():
        lines += group
    lines += project["build-system"]["requires"]
    lines += (ROOT / "requirements/build.in").read_text("utf-8").split()
    return {name_of(line) for line in lines}


def test_every_dependency_is_documented_and_locked() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/dependencies.md").read_text("utf-8"), re.M)
    assert set(map(name_of, rows)) == declared()
    text = "".join((ROOT / lock).read_text("utf-8") for lock in LOCKS)
    assert declared() - UNLOCKED <= set(map(name_of, re.findall(r"^[A-Za-z0-9].*==", text, re.M)))


FILES = ("docker-compose.yml", "Dockerfile", "Makefile", "pyproject.toml", "deploy/**/*.yml")


def test_nothing_is_the_latest() -> None:
    """An image without a tag is that, too."""
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        text = path.read_text("utf-8")
        assert not re.search(r"[:@]latest\b", text), path
        stages = re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.M)
        images = re.findall(r"^\s*(?:image:|FROM)\s+([^\s$]\S*)", text, re.M)
        assert [image for image in images if ":" not in image and image not in stages] == [], path


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
