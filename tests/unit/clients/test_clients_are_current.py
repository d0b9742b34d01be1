"""What the clients have of the description of the API is what it says now, and no call of it is left out."""

import inspect
import re
from pathlib import Path

import msgspec
import pytest

import foldin.client
import foldin_client
from clients.generator import __main__ as generator
from clients.generator import document, unasync
from tests.support import house


def test_what_is_made_of_the_description_is_made_of_the_one_of_now() -> None:
    assert generator.old() == [], "run `make clients`"


def test_a_file_that_was_changed_by_hand_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator.made()
    for path, text in made.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, "utf-8")
    changed = generator.PYTHON / "synchronous/client.py"
    (tmp_path / changed).write_text(made[changed].replace("LOOK_S = 1.0", "LOOK_S = 2.0"), "utf-8")
    monkeypatch.setattr(generator, "made", lambda: made)
    monkeypatch.setattr(generator, "FOLDER", tmp_path)
    assert generator.old() == [changed]
    assert generator.main(["--check"]) == 1
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0


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


def test_a_service_that_does_not_say_by_what_the_most_loved_are_listed_lists_them_by_rating() -> None:
    old = b'{"generation":1,"items":[{"item_id":"a","score":4.0,"ratings":2,"mean":4.5}]}'
    read = msgspec.json.decode(old, type=foldin_client.models.Popular)
    assert (read.by, read.items[0].positives) == ("rating", None)


def test_blocking_code_is_the_same_text_without_waiting() -> None:
    text = "async def aclose(self) -> None:\n    await asyncio.sleep(1)\n    # an awaited thing\n"
    assert unasync.blocking(text) == "def close(self) -> None:\n    time.sleep(1)\n    # an awaited thing\n"


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
