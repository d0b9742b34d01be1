"""Hold dependencies to the rules of CONTRIBUTING.md: each has its line in docs/dependencies.md and is locked,
and nothing is whatever is newest. Prints what is not so; code 1 where anything is.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = tuple(f"requirements/{name}.txt" for name in ("run", "dev", "bench", "docs", "supply"))
# Its builds differ by machine.
UNLOCKED = {"torch"}
FILES = ("docker-compose.yml", "Dockerfile", "Makefile", "pyproject.toml", "deploy/**/*.yml")


def name_of(requirement: str) -> str:
    """Return the name of a requirement as an index has it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def declared() -> set[str]:
    """Return the names of all that this project asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for group in (
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ):
        lines += group
    lines += (ROOT / "requirements/build.in").read_text("utf-8").split()
    return {name_of(line) for line in lines}


def wrong() -> Iterator[str]:
    """Yield what is not as it must be."""
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/dependencies.md").read_text("utf-8"), re.M)
    for name in sorted(set(map(name_of, rows)) ^ declared()):
        yield f"{name}: a line of docs/dependencies.md that nothing asks for, or a dependency without one"
    text = "".join((ROOT / lock).read_text("utf-8") for lock in LOCKS)
    locked = set(map(name_of, re.findall(r"^[A-Za-z0-9].*==", text, re.M)))
    for name in sorted(declared() - UNLOCKED - locked):
        yield f"{name}: in no lock of requirements/"
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        text = path.read_text("utf-8")
        stages = re.findall(r"^FROM\s+\S+\s+AS\s+(\S+)", text, re.M)
        images = re.findall(r"^\s*(?:image:|FROM)\s+([^\s$]\S*)", text, re.M)
        # An image without a tag is the latest, too.
        unnamed = [image for image in images if ":" not in image and image not in stages]
        for found in (*unnamed, *re.findall(r"\S*[:@]latest\b", text)):
            yield f"{path.relative_to(ROOT)}: {found} is whatever is newest"


if __name__ == "__main__":
    found = list(wrong())
    print(*found, sep="\n", end="\n" * bool(found))
    sys.exit(bool(found))
