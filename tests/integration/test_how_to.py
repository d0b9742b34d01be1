"""The how-to guides are run as they stand, by a shell, on a made set in the form of the tutorial's.
Invariant: what they show is what a user gets.
"""

import asyncio
import json
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import house
from tests.support.examples import shape
from tests.support.movies import write_files
from tests.support.stacks import Stack, local_stack

GUIDES = house.ROOT / "docs/how-to"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Between what one command says and what the next does.
_MARK = "=== next ==="


def console(text: str) -> list[tuple[str, str]]:
    """The commands of a guide, as lines for a shell, and what it shows below each."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = chunk.partition("\n")
            found.append((command, answer.strip()))
    return found


async def run(text: str, stack: Stack, folder: Path) -> list[tuple[str, str, str]]:
    """Run the commands of a guide in one shell. Returns each, what it shows, what it said."""
    steps = console(text)
    script = 'set -e\ncurl() { command curl --silent --show-error "$@"; }\n'
    script += "".join(f"{command}\necho; echo '{_MARK}'\n" for command, _ in steps)
    script = script.replace("localhost:8080", stack.url.removeprefix("http://"))
    script = script.replace(".venv/bin/foldin", f"{shlex.quote(sys.executable)} -m foldin")
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


def misfits(done: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The commands that said other than the guide shows: JSON of another shape, or another text; and those
    that were refused where the guide shows no refusal.
    """
    found = []
    for command, shown, said in done:
        if shown.startswith("{"):
            fits = shape(json.loads(said)) == shape(json.loads(shown))
            fits &= json.loads(shown).get("code") == json.loads(said).get("code")
        elif shown:
            fits = said == shown
        else:
            fits = '"status":4' not in said and '"status":5' not in said
        if not fits:
            found.append((command, shown, said))
    return found


@asynccontextmanager
async def movies(folder: Path) -> AsyncIterator[Stack]:
    """A stack that has learned the set of the tutorial, its data in `folder / "data"`."""
    (folder / "ml-100k").mkdir()
    write_files(folder / "ml-100k")
    imports = "\n".join(
        f"$ .venv/bin/foldin import ml-100k/ml-100k.{rest} --url http://localhost:8080"
        for rest in ("item --items --columns release_year=number --on-bad skip", "inter")
    )
    async with local_stack(folder / "data") as stack:
        await run(
            f"```console\n{imports}\n$ curl -X POST 'localhost:8080/train?wait=600'\n```", stack, folder
        )
        yield stack


def listed(said: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(said)["items"]
    return items


def test_every_guide_is_run() -> None:
    names = {path.stem for path in GUIDES.glob("*.md")} - {"index"}
    assert names == {"hide-an-item", "filter", "compare", "production", "restore"}


async def test_hide_filter_and_compare(tmp_path: Path) -> None:
    async with movies(tmp_path) as stack:
        done = await run((GUIDES / "filter.md").read_text("utf-8"), stack, tmp_path)
        assert misfits(done) == []
        comedies = listed(done[0][2])
        assert len(comedies) == 3
        asks = "".join(f"$ curl localhost:8080/items/{each['item_id']}\n" for each in comedies)
        for _, _, said in await run(f"```console\n{asks}```", stack, tmp_path):
            item = json.loads(said)
            assert "Comedy" in item["categories"]
            assert "Horror" not in item["categories"]
            assert item["attributes"]["release_year"] >= 1990
        done = await run((GUIDES / "compare.md").read_text("utf-8"), stack, tmp_path)
        assert misfits(done) == []
        found = next(
            json.loads(said) for command, _, said in done if command.endswith("/experiments/variety")
        )
        assert sum(arm["share"] for arm in found["arms"]) == 1
        done = await run((GUIDES / "hide-an-item.md").read_text("utf-8"), stack, tmp_path)
        assert misfits(done) == []


async def test_go_to_production(tmp_path: Path) -> None:
    async with movies(tmp_path) as stack:
        done = await run((GUIDES / "production.md").read_text("utf-8"), stack, tmp_path)
        assert misfits(done) == []
        assert list((tmp_path / "backup").rglob("manifest.json"))


async def test_restore(tmp_path: Path) -> None:
    text = (GUIDES / "restore.md").read_text("utf-8")
    last = text.index("## The machine is gone")
    ratings = "```console\n$ curl 'localhost:8080/users/1/ratings?limit=1'\n```"
    (tmp_path / "first").mkdir()
    async with movies(tmp_path / "first") as stack:
        known = json.loads((await run(ratings, stack, tmp_path))[0][2])["total"]
        assert misfits(await run(text[:last], stack, tmp_path / "first")) == []
        assert json.loads((await run(ratings, stack, tmp_path))[0][2])["total"] == known
    # Another machine, of which the first one's backup is all that there is.
    (tmp_path / "second").mkdir()
    (tmp_path / "first/backup").rename(tmp_path / "second/backup")
    async with local_stack(tmp_path / "second/data") as stack:
        assert misfits(await run(text[last:], stack, tmp_path / "second")) == []
        assert json.loads((await run(ratings, stack, tmp_path))[0][2])["total"] == known
