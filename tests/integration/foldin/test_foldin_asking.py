"""`foldin recommend`, `status`, `train` and `forget` ask a running service, or say what to do."""

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from featurestore.store import Store
from foldin.__main__ import main
from tests.support.serving import Client
from tests.support.small_trainer import serving_with_trainer


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    async with serving_with_trainer(store) as client:
        yield client


async def test_commands_print_what_the_service_answers(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*words: str, code: int = 0) -> tuple[str, str]:
        assert await asyncio.to_thread(main, [*words, "--url", client.url]) == code
        return capsys.readouterr()

    async def told(*words: str, code: int = 0) -> Any:
        return json.loads((await run(*words, "--json", code=code))[0])

    title = "[bold]Emma\x1b[2J " + "long " * 30
    assert (await client.ask("PUT", "/items/emma", json={"title": title})).status < 300
    first = await told("recommend", "ann", "-n", "1")
    assert len(first["items"]) == 1
    # A title is cut nowhere, is no markup, and cannot steer the terminal.
    shown = (await run("recommend", "ann"))[0]
    assert shown.split()[:4] == ["item", "title", "score", "rating"]
    assert (shown.count("long"), "[bold]Emma" in shown, "\x1b" in shown) == (30, True, False)
    refused = await told("recommend", "ann", "--scenario", "none", code=2)
    assert "none" in refused["error"]

    assert (await told("status"))["generation"] == 1
    assert "live generation" in (await run("status"))[0]
    assert (await told("train"))["generation"] == 2

    # Without `--yes` a terminal is asked, and a script refused; either way no one is forgotten.
    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal) as stdin:
        os.write(keyboard, b"n\ny\n")
        assert "--yes" in (await told("forget", "ann", code=2))["error"]
        monkeypatch.setattr(sys, "stdin", stdin)
        assert "nothing was forgotten" in (await run("forget", "ann", code=2))[1]
        assert (await client.get("/users/ann")).status == 200
        assert "receipt" in (await run("forget", "ann"))[0]
    os.close(keyboard)
    assert (await client.get("/users/ann")).status == 404
    assert (await told("forget", "ann", "--yes"))["receipt"]


async def test_where_no_service_answers_one_line_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["recommend", "ann"], ["status"], ["train"], ["forget", "ann", "--yes"]):
        assert await asyncio.to_thread(main, [*words, "--url", "http://127.0.0.1:9"]) == 2
        said = capsys.readouterr().err
        assert "foldin up" in said
        assert said.count("\n") == 1
