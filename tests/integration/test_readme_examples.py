"""Every example of the README is run as it stands. Invariant: what it shows is what a user gets.

An example that shows an answer must get one with the same members of the same types; every other one must
succeed, but for the one that shows an error.
"""

import json
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.campaigns.local_stack import LocalStack, local_stack

README = Path(__file__).parents[2] / "README.md"
pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True, slots=True)
class Example:
    """A `curl` command and the answer that the README shows for it, if any."""

    method: str
    path: str
    headers: dict[str, str]
    body: str | None
    shown: Any


def examples(text: str) -> list[Example]:
    """The examples of a document, in its order."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = chunk.partition("\n")
            found.append(_example(shlex.split(command), answer.strip()))
    return found


def _example(words: list[str], answer: str) -> Example:
    assert words[0] == "curl", words
    method, headers, body, url = "GET", {}, None, ""
    rest = iter(words[1:])
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, _, value = next(rest).partition(":")
            headers[name.strip()] = value.strip()
        elif word == "-d":
            body = next(rest)
        else:
            url = word
    return Example(method, url.partition("/")[2], headers, body, json.loads(answer) if answer else None)


def shape(value: Any) -> Any:
    """Members and types of a JSON value; numbers are all alike."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(member) for member in value]
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


@pytest_asyncio.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    async with local_stack(tmp_path / "data") as running:
        yield running


async def test_every_example_of_the_readme_works(stack: LocalStack) -> None:
    pairs = [(u, i) for u in range(60) for i in range(160) if (u * 31 + i * 17) % 5]
    history = {
        "nb_users": 60,
        "nb_items": 160,
        "user_history": [u for u, _ in pairs],
        "item_history": [i for _, i in pairs],
        "rating_history": [1 + (u * i + u + i) % 5 for u, i in pairs],
    }
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{stack.url}/train", json=history) as answer:
            assert answer.status == 200, await answer.text()
        wrong: list[tuple[object, ...]] = []
        for example in examples(README.read_text("utf-8")):
            url = f"{stack.url}/{example.path}"
            async with session.request(
                example.method, url, data=example.body, headers=example.headers
            ) as answer:
                text = await answer.text()
            is_error = isinstance(example.shown, dict) and "code" in example.shown
            if (answer.status >= 400) != is_error:
                wrong.append((example.path, answer.status, text))
            elif example.shown is not None and shape(json.loads(text)) != shape(example.shown):
                wrong.append((example.path, "shown", example.shown, "got", text))
        assert not wrong
