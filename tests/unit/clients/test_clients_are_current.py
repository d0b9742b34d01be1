"""What the clients have of the description of the API is what it says now, and no call of it is left out."""

import json
import re
import tomllib

from clients.generator import __main__ as generator
from clients.generator import document
from tests.support import house


def test_what_is_made_of_the_description_is_made_of_the_one_of_now() -> None:
    assert generator.old() == [], "run `make clients`"


def test_the_clients_are_of_the_version_of_foldin_and_need_a_part_of_what_that_needs() -> None:
    client, whole = (
        tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        for folder in (house.ROOT / "clients/python", house.ROOT)
    )
    javascript = house.ROOT / "clients/javascript"
    packed = json.loads((javascript / "package.json").read_text("utf-8"))
    assert client["version"] == whole["version"]
    assert packed["version"] == whole["version"].replace(".dev", "-dev.")
    assert client["requires-python"] == whole["requires-python"]
    assert set(client["dependencies"]) <= set(whole["dependencies"])
    assert (house.ROOT / "clients/python/LICENSE").read_text() == (house.ROOT / "LICENSE").read_text()
    # Whole, without dependencies, and with a declaration of every call.
    assert set(packed["files"]) == {"foldin.js", "foldin.d.ts", "operations.js"}
    assert "dependencies" not in packed
    declared = (javascript / "foldin.d.ts").read_text("utf-8")
    for each in document.read().operations:
        assert re.search(rf"^  {each.name}\(", declared, re.M), each.name
