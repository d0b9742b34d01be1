"""What the declarations of the JavaScript client take and refuse, by TypeScript's own compiler, which npm
installs as `.ci/types` locks it. Every call of the contract test is held against them, too.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import house
from tests.support.servers import missing

pytestmark = pytest.mark.slow
CLIENT = house.ROOT / "clients/javascript"
# What Node has besides, of which the client's declarations say nothing.
NODE = """\
declare module "node:assert/strict";
declare module "node:test";
declare const process: any;
"""
HEAD = 'import { Foldin, FoldinError } from "foldin-client";\ndeclare const foldin: Foldin;\nexport {};\n'
WRONG = {
    "a rating without a value": 'await foldin.rate({ user_id: "ann", item_id: "dune" });',
    "a rating that is text": 'await foldin.rate([{ user_id: "ann", item_id: "dune", rating: "5" }]);',
    "an id that is missing": 'await foldin.predict("ann");',
    "an option of another call": 'await foldin.similar("dune", { explore: "none" });',
    "a value that no one takes": 'await foldin.recommend("ann", { explore: "greedy" });',
    "a call that is none": "await foldin.recommendations();",
    "a field that an answer has not": '(await foldin.predict("ann", "dune")).score;',
    "what may be null": '(await foldin.getUser("ann")).mean.toFixed();',
    "an export as a list": "(await foldin.exportItems()).length;",
    "a text as a number": "const size: number = await foldin.metrics();",
    "an option of the client": 'new Foldin("http://here", { timeout: 5 });',
    "an error that is changed": 'new FoldinError("no").status = 404;',
    "both forms of a body": 'await foldin.predictMany({ user_id: "ann", items: ["dune"] });',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the compiler is, and the client as npm would put it there."""
    if shutil.which("npm") is None:
        missing("npm")
    made = tmp_path_factory.mktemp("types")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(house.ROOT / ".ci/types" / name, made)
    command = ["npm", "ci", "--loglevel=error", "--fetch-retries=1", "--fetch-timeout=30000"]
    try:
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=100, check=False)
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as exc:
        pytest.skip(f"npm could not fetch TypeScript: {exc}")
    # Without an answer nothing was asked; all else is a failure, as what came and is not what was locked.
    if done.returncode and re.search(
        r"\b(ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED|ECONNRESET|E[45]\d\d)\b", said
    ):
        pytest.skip(f"npm could not fetch TypeScript: {said}")
    assert done.returncode == 0, said
    shutil.copytree(CLIENT, made / "node_modules/foldin-client")
    return made


def compiled(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of the compiler, and what it says."""
    command = ["node", "node_modules/typescript/bin/tsc", "--noEmit", "--pretty", "false", *arguments]
    as_modules = ("--module", "nodenext", "--target", "es2023", "--lib", "es2023,dom,dom.iterable")
    done = subprocess.run(
        [*command, *as_modules], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_what_the_service_would_refuse_does_not_compile(folder: Path) -> None:
    lines = HEAD.splitlines()
    for about, line in WRONG.items():
        lines += [f"// {about}", line]
    (folder / "wrong.mts").write_text("\n".join(lines), "utf-8")
    code, said = compiled(folder, "--strict", "wrong.mts")
    assert code != 0
    for about, line in WRONG.items():
        assert f"wrong.mts({lines.index(line) + 1}," in said, (about, said)


def test_every_call_of_the_description_is_declared_as_it_is_made(folder: Path) -> None:
    (folder / "node.d.ts").write_text(NODE, "utf-8")
    test = "node_modules/foldin-client/test/contract.test.js"
    # The rules of JavaScript: what has no type may be anything.
    assert compiled(folder, "--allowJs", "--checkJs", "--maxNodeModuleJsDepth", "0", "node.d.ts", test) == (
        0,
        "",
    )
