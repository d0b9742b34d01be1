"""The programs of docs/environment.md and docs/evaluation.md run as they stand, against an environment and a
stack as the documents start them; shorter ones, where a program would play for minutes.
"""

import os
import re
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processes.blocking import plain_environment
from tests.integration.environment.test_environment_process import environment
from tests.support import house
from tests.support.examples import ran
from tests.support.stacks import local_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ENVIRONMENT, API = "http://127.0.0.1:8081", "http://127.0.0.1:8080"
STEPS = 150
# Told to both in place of the course's own sizes: three runs of 1,000 steps are minutes.
SHORT = f"steps={STEPS}, runs=1, known=(1000,), players="


def programs(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (house.ROOT / f"docs/{name}.md").read_text("utf-8"), re.DOTALL)


async def lines_of(program: str) -> list[str]:
    """The lines that a program prints."""
    environ = plain_environment(os.environ, {})
    return (await ran(program, folder=house.ROOT, environ=environ, within_s=240.0)).splitlines()


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[str]:
    async with local_stack(folder / "data") as running:
        yield running.url


async def test_a_client_of_a_few_lines_plays() -> None:
    client, _ = programs("environment")
    with environment() as (_, address):
        said = await lines_of(client.replace(ENVIRONMENT, address))
    assert len(said) == 1000
    assert all(re.fullmatch(r"\d+ \d+ [1-5]", line) for line in said)


async def test_a_player_of_variables_learns_through_the_api(tmp_path: Path) -> None:
    _, player = programs("environment")
    assert (
        "python -m environment --variables 5 --known 2000" in (house.ROOT / "docs/environment.md").read_text()
    )
    player = player.replace("1000", str(STEPS))
    with environment("--variables", "5", "--known", "2000") as (_, address):
        async with stack(tmp_path) as url:
            said = await lines_of(player.replace(ENVIRONMENT, address).replace(API, url))
    # Answering 3 each time errs by more than 1.5.
    (error,) = map(float, said)
    assert 0 < error < 1.5


async def test_an_evaluation_is_called_from_a_program(tmp_path: Path) -> None:
    (program,) = programs("evaluation")
    assert "players=" in program
    # It awaits, as in a notebook; its last line is shown there.
    *body, last = program.replace("players=", SHORT).splitlines()
    inside = textwrap.indent("\n".join([*body, f"print({last})"]), "    ")
    async with stack(tmp_path) as url:
        whole = f"import asyncio\n\nasync def main():\n{inside}\n\nasyncio.run(main())\n"
        said = await lines_of(whole.replace(API, url))
    assert 0 < float(said[0]) < 1.5
