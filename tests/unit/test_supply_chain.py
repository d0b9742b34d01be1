"""What a release is made of is named: no image is whatever is newest; bill and audit say what they saw."""

import re

from tests.support import house

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
