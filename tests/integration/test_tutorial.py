"""The tutorial is run as it stands, on a made set in the form of its files and with two workers. Invariant:
what it shows is what a user gets.
"""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from foldin.__main__ import main
from tests.support.examples import commands, example, shape
from tests.support.movies import write_files
from tests.support.stacks import Stack, local_stack

TUTORIAL = (Path(__file__).parents[2] / "docs/tutorial.md").read_text("utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def asked(session: aiohttp.ClientSession, stack: Stack, words: list[str]) -> Any:
    """What a `curl` command answers."""
    call = example(words, "")
    url = f"{stack.url}/{call.path}"
    async with session.request(call.method, url, data=call.body, headers=call.headers) as answer:
        text = await answer.text()
        assert answer.status < 300, (words, text)
    return json.loads(text)


async def test_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-100k").mkdir()
    write_files(tmp_path / "ml-100k")
    monkeypatch.chdir(tmp_path)
    home: list[Any] = []
    everything = ["curl", "localhost:8080/recommend/ada?n=1000"]
    async with (
        local_stack(tmp_path / "data", workers=2) as stack,
        # A connection for each call, so that either worker may have it.
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        for words, shown in commands(TUTORIAL):
            if words[0] == ".venv/bin/foldin":
                assert await asyncio.to_thread(main, [*words[1:], "--url", stack.url]) == 0
                continue
            answer = await asked(session, stack, words)
            if shown:
                assert shape(answer) == shape(json.loads(shown)), (words, answer)
            if "/recommend/" in words[-1]:
                home.append(answer["items"])
                # As many as there are, of either worker.
                asks = (asked(session, stack, everything) for _ in range(40))
                shows = {"1" in names(each["items"]) for each in await asyncio.gather(*asks)}
                assert shows == {len(home) == 1}
            if "/explain/" in words[-1]:
                for part in (answer, {**answer["relevance"], "rating": answer["relevance"]["value"]}):
                    moved = sum(each["contribution"] for each in part["parts"])
                    assert part["base"] + moved == pytest.approx(part["rating"], abs=1e-5)
                parts = {each["item_id"] for each in answer["parts"]}
                assert parts == {"50", "100", "181"}
        before, after = home
        assert "1" not in names(after)
        documents = await described(session, stack, before)
        assert all(each["attributes"]["release_year"] >= 1990 for each in documents)
        assert "Horror" not in genres(documents)
        lists = [
            (await asked(session, stack, ["curl", f"localhost:8080/recommend/ada?n=10{scenario}"]))["items"]
            for scenario in ("&scenario=home", "")
        ]
        capped, free = [genres(await described(session, stack, each)) for each in lists]
        # Without the cap there are more of some genre.
        assert max(capped.values()) <= 2 < max(free.values())


async def described(
    session: aiohttp.ClientSession, stack: Stack, items: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the catalogue has of these items."""
    return [
        await asked(session, stack, ["curl", f"localhost:8080/items/{each['item_id']}"]) for each in items
    ]


def genres(documents: list[dict[str, Any]]) -> Counter[str]:
    return Counter(genre for each in documents for genre in each["categories"])


def names(items: list[dict[str, Any]]) -> set[str]:
    return {each["item_id"] for each in items}
