"""The README, the tutorial, the how-to guides, some other pages and the programs of the manual are run as
they stand, on made sets in the form of the tutorial's. Invariant: what they show is what a user gets.
"""

import asyncio
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processes.blocking import plain_environment
from tests.integration.environment.test_environment_server import environment
from tests.support import house
from tests.support.examples import commands, ran, shape
from tests.support.movies import write_files, write_tables
from tests.support.stacks import Stack, local_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
# Between what one command says and what the next does.
_MARK = "=== next ==="
# So long after a change of items lists may show what was before.
_CHANGES_ITEMS, _FOLLOWED_S = r"/items\S* (-X (PUT|PATCH|DELETE) )?--json|-X DELETE \S+/(schema/)?items", 1
ENVIRONMENT, API = "http://127.0.0.1:8081", "http://127.0.0.1:8080"
# In place of the course's own sizes: three runs of 1,000 steps are minutes.
STEPS = 150
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("operations", "evaluation", "sizing", "environment")))
# Why commands of them do not run here, by how they begin. `.ci/rules.py` holds their flags to the code.
ELSEWHERE = {
    "docker ": "an engine of containers",
    "FOLDIN_IMAGE=foldin:2 docker ": "an engine of containers, and two versions",
    "foldin backup backup && rclone ": "storage of others",
    "rclone ": "storage of others",
    "sudo ": "root",
    "FOLDIN_IMAGE=registry.example/": "Kubernetes",
    "kubectl ": "Kubernetes",
    "cat deploy/redis/cluster.env ": "an engine of containers",
    "FOLDIN_REDIS_URL=redis+cluster://": "nine servers",
    "make ": "its own environment, and minutes",
    "python -m ": "a terminal, until Ctrl-C: tests/integration/environment and evaluation run these",
    "foldin evaluate ": "minutes of the course's protocol, or a file: README.md runs those of files",
    ".venv/bin/foldin evaluate --api ": "minutes: tests/integration/evaluation runs fewer steps of it",
}

Done = list[tuple[str, str, str]]


def text_of(name: str) -> str:
    return (house.ROOT / name).read_text("utf-8")


async def run(text: str, stack: Stack, folder: Path) -> Done:
    """Run the commands of a document in one shell. Returns each, what it shows, what it said."""
    steps = commands(text)
    script = 'set -e\ncurl() { command curl --silent --show-error "$@"; }\n'
    script += f'foldin() {{ {shlex.quote(sys.executable)} -m foldin "$@"; }}\n'
    for command, _ in steps:
        script += f"{command}\necho; echo '{_MARK}'\n"
        if re.search(_CHANGES_ITEMS, command):
            script += f"sleep {_FOLLOWED_S}\n"
    script = script.replace("localhost:8080", stack.url.removeprefix("http://"))
    script = script.replace(".venv/bin/foldin", "foldin")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(house.ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    said = out.decode().split(f"\n{_MARK}\n")
    assert process.returncode == 0, (steps[len(said) - 1], said[-1], err.decode())
    return [(*step, each.strip()) for step, each in zip(steps, said, strict=False)]


async def fits(text: str, stack: Stack, folder: Path) -> Done:
    """Run the commands of a document. Fails where one says other than what is shown (JSON of another shape,
    or another text), or is refused where no refusal is shown.
    """
    found = []
    done = await run(text, stack, folder)
    for command, shown, said in done:
        if shown.startswith("{"):
            is_right = shape(json.loads(said)) == shape(json.loads(shown))
            is_right &= json.loads(shown).get("code") == json.loads(said).get("code")
        elif shown:
            is_right = said == shown
        else:
            is_right = '"status":4' not in said and '"status":5' not in said
        if not is_right:
            found.append((command, shown, said))
    assert found == []
    return done


@asynccontextmanager
async def movies(folder: Path) -> AsyncIterator[Stack]:
    (folder / "ml-100k").mkdir()
    write_files(folder / "ml-100k")
    async with local_stack(folder / "data") as stack:
        await fits(text_of("docs/tutorial.md"), stack, folder)
        yield stack


def listed(said: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(said)["items"]
    return items


def programs(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(name), re.DOTALL)


async def test_the_tutorial_the_readme_and_the_guides(tmp_path: Path) -> None:
    async with movies(tmp_path) as stack:
        write_tables(tmp_path)
        for name in ("README", "docs/evaluation", "docs/sizing"):
            await fits(text_of(f"{name}.md"), stack, tmp_path)
        assert list((tmp_path / "results/evaluate").glob("summary.csv"))
        (program,) = programs("README.md")
        said = await ran(program.replace("http://localhost:8080", stack.url), "-W", "error")
        assert re.fullmatch(r"\d\.\d+ \['\d+', '\d+'\]\n", said), said
        filtered = await fits(text_of("docs/how-to/filter.md"), stack, tmp_path)
        comedies = listed(filtered[0][2])
        assert len(comedies) == 3
        asks = "".join(f"$ curl localhost:8080/items/{each['item_id']}\n" for each in comedies)
        for _, _, said in await run(f"```console\n{asks}```", stack, tmp_path):
            item = json.loads(said)
            assert "Comedy" in item["categories"]
            assert "Horror" not in item["categories"]
            assert item["attributes"]["release_year"] >= 1990
        # From the last one on the stack asks for keys.
        for name in ("catalogue", "compare", "hide-an-item", "recipes", "production"):
            await fits(text_of(f"docs/how-to/{name}.md"), stack, tmp_path)
        assert list((tmp_path / "backup").rglob("manifest.json"))


async def test_restore(tmp_path: Path) -> None:
    text = text_of("docs/how-to/restore.md")
    last = text.index("## The machine is gone")
    ratings = "```console\n$ curl 'localhost:8080/users/1/ratings?n=1'\n```"
    (tmp_path / "first").mkdir()
    async with movies(tmp_path / "first") as stack:
        known = json.loads((await run(ratings, stack, tmp_path))[0][2])["total"]
        await fits(text[:last], stack, tmp_path / "first")
        assert json.loads((await run(ratings, stack, tmp_path))[0][2])["total"] == known
    # Another machine, of which the first one's backup is all that there is.
    (tmp_path / "second").mkdir()
    (tmp_path / "first/backup").rename(tmp_path / "second/backup")
    async with local_stack(tmp_path / "second/data") as stack:
        await fits(text[last:], stack, tmp_path / "second")
        assert json.loads((await run(ratings, stack, tmp_path))[0][2])["total"] == known
        # This store makes a backup of its own.
        (tmp_path / "second/backup").rename(tmp_path / "second/backup-of-the-first")
        await fits(text_of("docs/operations.md"), stack, tmp_path / "second")
        listed_keys = stack.call("GET", "/keys", key=(tmp_path / "second/deploy.key").read_text().strip())
        assert [each["name"] for each in listed_keys["keys"]] == ["deploy"]


def test_what_does_not_run_has_its_reason() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(map(text_of, PAGES)), re.DOTALL | re.MULTILINE)
    others = [block for kind, block in blocks if kind not in {"console", "python"}]
    lines = [line for block in others for line in block.splitlines()]
    assert [line for line in lines if not line.startswith(tuple(ELSEWHERE))] == []
    assert [begin for begin in ELSEWHERE if not any(line.startswith(begin) for line in lines)] == []


async def lines_of(program: str) -> list[str]:
    environ = plain_environment(os.environ, {})
    return (await ran(program, folder=house.ROOT, environ=environ, within_s=240.0)).splitlines()


async def test_the_programs_of_environment_and_evaluation(tmp_path: Path) -> None:
    client, player = programs("docs/environment.md")
    (evaluation,) = programs("docs/evaluation.md")
    with environment() as (_, address):
        said = await lines_of(client.replace(ENVIRONMENT, address))
    assert len(said) == 1000
    assert all(re.fullmatch(r"\d+ \d+ [1-5]", line) for line in said)
    # It awaits, as in a notebook; its last line is shown there.
    short = evaluation.replace("players=", f"steps={STEPS}, runs=1, known=(1000,), players=")
    *body, last = short.splitlines()
    inside = textwrap.indent("\n".join([*body, f"print({last})"]), "    ")
    evaluation = f"import asyncio\n\nasync def main():\n{inside}\n\nasyncio.run(main())\n"
    async with local_stack(tmp_path / "one") as stack:
        with environment("--variables", "5", "--known", "2000") as (_, address):
            played = player.replace("1000", str(STEPS)).replace(ENVIRONMENT, address)
            (learned,) = await lines_of(played.replace(API, stack.url))
    async with local_stack(tmp_path / "two") as stack:
        evaluated = await lines_of(evaluation.replace(API, stack.url))
    # Answering 3 each time errs by more than 1.5.
    assert 0 < float(learned) < 1.5
    assert 0 < float(evaluated[0]) < 1.5
