"""Every example of the README is run as it stands, in curl and in Python. Invariant: what it shows is what
a user gets.

An example that shows an answer must get one with the same members of the same types; every other one must
succeed, but for the one that shows an error.
"""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.support.examples import examples, ran, shape
from tests.support.stacks import Stack, local_stack

PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)
README = Path(__file__).parents[2] / "README.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest_asyncio.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with local_stack(tmp_path / "data") as running:
        yield running


async def test_every_example_of_the_readme_works(stack: Stack) -> None:
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
    # Below them in the README, and of the user whom they have made known.
    programs = PROGRAM.findall(README.read_text("utf-8"))
    assert programs
    for program in programs:
        assert "http://localhost:8080" in program
        said = await ran(program.replace("http://localhost:8080", stack.url), "-W", "error")
        assert re.fullmatch(r"\d\.\d+ \['\d+', '\d+'\]\n", said), said
