"""What a release is made of is named: no image is whatever is newest; bill and audit say what they saw."""

import importlib.util
import re
from typing import Any

from tests.support import house

ROOT_FILES = ("docker-compose.yml", "Dockerfile", "Makefile", "pyproject.toml")
FILES = (*ROOT_FILES, ".ci/*", ".github/**/*", "deploy/**/*")


def supply() -> Any:
    """The script of `make sbom` and `make audit`, which no package imports."""
    spec = importlib.util.spec_from_file_location("supply", house.ROOT / ".ci/supply.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_a_bill_that_lacks_a_package_or_a_hash_is_told() -> None:
    module = supply()
    whole = {
        "components": [
            {
                "name": name.partition("==")[0],
                "version": name.partition("==")[2],
                "externalReferences": [{"hashes": [{"content": each} for each in hashes]}],
            }
            for name, hashes in module.locked(module.RUN).items()
        ]
    }
    assert len(whole["components"]) >= 20
    assert module.missing_in(whole, module.RUN) == []
    lost = whole["components"].pop()
    whole["components"][0]["externalReferences"] = []
    first = whole["components"][0]
    expected = {f"{part['name']}=={part['version']}" for part in (first, lost)}
    assert set(module.missing_in(whole, module.RUN)) == expected
