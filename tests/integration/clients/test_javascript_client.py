"""The JavaScript client: its own tests, in Node, one of them at a real service."""

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from featurestore.store import Store
from tests.support.factories import rating
from tests.support.servers import missing
from tests.support.small_trainer import serving_with_trainer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
CLIENT, MANUAL = ROOT / "clients/javascript", ROOT / "docs/clients.md"
# A guard against hanging; the limit of a test is two minutes.
NODE_S = 100.0


def run(*words: str, **environment: str) -> str:
    command, environ = [shutil.which("node") or missing("node"), *words], {**os.environ, **environment}
    both: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, env=environ, text=True, timeout=NODE_S, check=False, **both)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


def passes(file: Path, **environment: str) -> None:
    said = run("--test", "--test-reporter=tap", str(file), **environment)
    assert re.search(r"^# pass [1-9]", said, re.M), said


async def test_every_call_of_the_description_is_made(store: Store) -> None:
    # With as much time for the store as it has here a refusal is one that comes before anything was done, so
    # that the test may send any call again.
    async with serving_with_trainer(store) as served:
        await asyncio.to_thread(passes, CLIENT / "test/contract.test.js", FOLDIN_URL=served.url)


async def test_the_example_of_the_manual_runs(store: Store, tmp_path: Path) -> None:
    example, short = (
        re.findall(r"```js\n(.*?)```", path.read_text("utf-8"), re.DOTALL)[0]
        for path in (MANUAL, CLIENT / "README.md")
    )
    async with serving_with_trainer(store, [rating("bob", "emma", 2.0)]) as served:
        for name, text in (("example", example), ("short", short)):
            (tmp_path / f"{name}.mjs").write_text(text.replace("http://127.0.0.1:8080", served.url), "utf-8")
        # As npm would put it there.
        (tmp_path / "node_modules").mkdir()
        (tmp_path / "node_modules/foldin-client").symlink_to(CLIENT)
        said = await asyncio.to_thread(run, str(tmp_path / "example.mjs"))
        assert await asyncio.to_thread(run, str(tmp_path / "short.mjs")) == ""
    assert sorted(said.splitlines()) == ["ann dune", "bob emma", "unknown_user 404 2"]


def test_it_sends_again_what_it_may_and_tells_what_went_wrong() -> None:
    passes(CLIENT / "test/transport.test.js")
