"""Each dependency has its line in docs/dependencies.md and is locked, and nothing is whatever is newest."""

import re
import tomllib
from pathlib import Path

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
