"""What the clients have of the description of the API is what it says now, and no call of it is left out."""

import inspect
import json
import re
import tomllib

import foldin.client
import foldin_client
from clients.generator import __main__ as generator
from clients.generator import document
from tests.support import house


def test_what_is_made_of_the_description_is_made_of_the_one_of_now() -> None:
    assert generator.old() == [], "run `make clients`"


def test_every_call_of_the_description_is_a_method_of_both_clients() -> None:
    for each in document.read().operations:
        awaiting, blocking = (
            getattr(client, each.words) for client in (foldin_client.AsyncClient, foldin_client.Client)
        )
        assert list(inspect.signature(awaiting).parameters) == list(inspect.signature(blocking).parameters)
        # What yields is not awaited.
        assert inspect.iscoroutinefunction(awaiting) == (each.line is None), each.name
        assert not inspect.iscoroutinefunction(blocking)


def test_every_code_of_the_service_has_an_exception() -> None:
    described = document.read().problems
    assert set(foldin_client.problems.BY_CODE) == set(described)
    for code, kind in foldin_client.problems.BY_CODE.items():
        raised = kind("x", status=described[code]["status"])
        is_busy = described[code]["status"] in {408, 429, 503, 504, 507}
        assert isinstance(raised, foldin_client.BusyError) == is_busy, code


def test_the_client_of_the_package_is_the_client() -> None:
    assert foldin.client.__all__ == foldin_client.__all__
    for name in foldin_client.__all__:
        assert getattr(foldin.client, name) is getattr(foldin_client, name)


def test_what_the_page_gives_to_be_copied_is_what_the_client_takes() -> None:
    text = (house.ROOT / "service/static/app/users.js").read_text("utf-8")
    calls = re.findall(r"python\(`(\w+)\((.*?)\)`\)", text)
    assert len(calls) >= 3
    for name, arguments in calls:
        takes = inspect.signature(getattr(foldin_client.Client, name))
        given = [each.partition("=") for each in re.sub(r"\$\{.*?\)\}", "x", arguments).split(", ")]
        named = {key: value for key, equals, value in given if equals}
        takes.bind(None, *(key for key, equals, _ in given if not equals), **named)


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
