"""The JavaScript client: its own tests, in Node, one of them at a real service."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from clients.generator import document
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import rating
from tests.support.servers import missing
from tests.support.small_trainer import serving_with_trainer

ROOT = Path(__file__).resolve().parents[3]
CLIENT, MANUAL = ROOT / "clients/javascript", ROOT / "docs/clients.md"
# Five seconds where nothing else runs; the limit of a test is two minutes.
NODE_S = 100.0
# As many are left of a log that is shown in part.
LAST_LINES = 30


def node() -> str:
    """The program; without it the test is skipped, but not in CI."""
    found = shutil.which("node")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no node, which CI has to have")
        pytest.skip("there is no node")
    return found


async def passes(file: Path, within_s: float = NODE_S, **environment: str) -> None:
    said = await run("--test", "--test-reporter=tap", str(file), within_s=within_s, **environment)
    assert re.search(r"^# pass [1-9]", said, re.M), said


async def run(*words: str, within_s: float = NODE_S, **environment: str) -> str:
    """What a program prints; the test fails where it ends badly, or not within the time."""
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *(node(), *words),
            env={**os.environ, **environment},
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            how = f"code {await asyncio.wait_for(process.wait(), within_s)}"
        except TimeoutError:
            how = f"not ended after {within_s:g} s"
        finally:
            # With the processes that it has started: one a file of tests.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A process that is forgotten before it has ended warns in the test that runs then.
            await process.wait()
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    if how != "code 0":
        pytest.fail(told(text, how), pytrace=False)
    return text


def told(text: str, how: str) -> str:
    """What to say of a program that failed: what went wrong stands last, where a cut log has it."""
    wrong = re.findall(r"^ *not ok .*?^ *\.\.\.$", text, re.M | re.DOTALL)
    # The innermost test: those round it only say that one of theirs failed.
    last = wrong[0].splitlines() if wrong else text.splitlines()[-LAST_LINES:]
    return "\n".join((text[-3000:], f"node: {how}", *last[:LAST_LINES]))


async def test_every_call_of_the_description_is_made(store_settings: StoreSettings, store: Store) -> None:
    ratings = [rating("ann", "dune", 5.0), rating("bob", "emma", 2.0)]
    # As served: connections outlive the pauses between calls. With much time for the store a refusal is one
    # that comes before anything was done, so that the test may send any call again.
    patient = replace(store_settings, timeout_s=30.0)
    async with serving_with_trainer(
        patient, store, ratings, users=[b"ann", b"bob"], keepalive_s=75.0
    ) as served:
        await passes(CLIENT / "test/contract.test.js", FOLDIN_URL=served.url)


async def test_the_example_of_the_manual_runs(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    example, short = (
        re.findall(r"```js\n(.*?)```", path.read_text("utf-8"), re.DOTALL)[0]
        for path in (MANUAL, CLIENT / "README.md")
    )
    ratings = [rating("bob", "emma", 2.0)]
    async with serving_with_trainer(store_settings, store, ratings, users=[b"bob"]) as served:
        for name, text in (("example", example), ("short", short)):
            (tmp_path / f"{name}.mjs").write_text(text.replace("http://127.0.0.1:8080", served.url), "utf-8")
        # As npm would put it there.
        (tmp_path / "node_modules").mkdir()
        (tmp_path / "node_modules/foldin-client").symlink_to(CLIENT)
        said = await run(str(tmp_path / "example.mjs"))
        assert await run(str(tmp_path / "short.mjs")) == ""
    assert sorted(said.splitlines()) == ["ann dune", "bob emma", "unknown_user 404 2"]


async def test_it_sends_again_what_it_may_and_tells_what_went_wrong() -> None:
    await passes(CLIENT / "test/transport.test.js")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("assert.equal(1, 2)", "Expected values to be strictly equal"),
        ("assert.equal('x'.repeat(20_000), 'y'.repeat(20_000))", "Expected values to be strictly equal"),
        ("await new Promise((go) => setTimeout(go, 60_000))", "not ended after 3 s"),
    ],
)
async def test_what_went_wrong_stands_at_the_end(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "wrong.test.mjs"
    head = 'import assert from "node:assert/strict";\nimport test from "node:test";\n'
    noise = 'for (let n = 0; n < 500; n += 1) console.log("noise", n);\n'
    file.write_text(f'{head}{noise}test("one", async () => {{ {body}; }});\n', "utf-8")
    with pytest.raises(pytest.fail.Exception) as failed:
        await passes(file, within_s=3.0 if "setTimeout" in body else NODE_S)
    assert said in "\n".join(str(failed.value).splitlines()[-40:])


def test_what_npm_packs_is_the_code_its_licence_and_what_it_is(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        missing("npm")
    command = ["npm", "pack", "--silent", str(CLIENT), "--pack-destination", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    (file,) = tmp_path.glob("foldin-client-*.tgz")
    with tarfile.open(file) as packed:
        names = {name.removeprefix("package/") for name in packed.getnames()}
    code = {"foldin.js", "foldin.d.ts", "operations.js"}
    assert names == {*code, "package.json", "README.md", "LICENSE"}


def test_it_is_packed_whole_and_declares_every_call() -> None:
    packed = json.loads((CLIENT / "package.json").read_text("utf-8"))
    assert set(packed["files"]) == {"foldin.js", "foldin.d.ts", "operations.js"}
    assert "dependencies" not in packed
    declared = (CLIENT / "foldin.d.ts").read_text("utf-8")
    for each in document.read().operations:
        assert re.search(rf"^  {each.name}\(", declared, re.M), each.name
