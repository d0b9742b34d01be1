"""The wheels of Foldin and of its client, as a user has them: built from the sources that are released, in
an empty environment of this Python and of those that `FOLDIN_TEST_PYTHONS` names (`make wheels-check`).
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest

from processes.blocking import BlockingChild, plain_environment
from processes.probes import http_ok, unused_port
from tests.support import house
from tests.support.waiting import wait_until

# What is not there yet is downloaded: 150 MB of libraries an interpreter.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PACKAGES = tuple(name for name in house.packages(house.ROOT) if name not in house.BESIDE)
PYTHONS = os.environ.get("FOLDIN_TEST_PYTHONS", sys.executable).split()
# A folder with the name of one of our packages, where a user happens to start Foldin.
TRAP = "raise SystemExit('this folder is the user\\'s, not a package of Foldin')\n"


LOCK = house.ROOT / "requirements/run.txt"
# What a type checker says of a call of the client.
TYPED = "from {} import Client\nreveal_type(Client('http://127.0.0.1').predict('ann', 'dune').rating)"


def ran(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(sources: Path, folder: Path) -> Path:
    """The wheel of a distribution, from its archive of sources."""
    ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, sources)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (wheel,) = folder.glob("*.whl")
    return wheel


def locked(folder: Path) -> Path:
    """A file with the versions of the lock, for what a wheel asks for by itself."""
    versions = re.findall(r"^([\w.-]+==.*?) \\$", LOCK.read_text("utf-8"), re.MULTILINE)
    (folder / "locked.txt").write_text("\n".join(versions))
    return folder / "locked.txt"


def checked(python: Path, program: str, elsewhere: Path) -> str:
    """What mypy says of a program, by what is installed for `python` alone."""
    flags = ("--strict", "--cache-dir", os.devnull, "--python-executable", python)
    return ran(sys.executable, "-m", "mypy", *flags, "-c", program, cwd=elsewhere)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(house.ROOT, tmp_path_factory.mktemp("dist"))


def test_only_foldin_stands_at_the_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"foldin"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".o", ".so"))]


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda path: Path(path).name)
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    programs = folder / "bin"
    ran(request.param, "-m", "venv", folder)
    # Not the whole lock, which has extras, too: what the wheel itself does not ask for is not there.
    ran(programs / "pip", "install", "--quiet", "--constraint", locked(folder), wheel)
    ran(programs / "pip", "check")
    return programs


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in PACKAGES:
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "__init__.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("interpreter", PYTHONS, ids=lambda path: Path(path).name)
def test_the_client_is_installed_imported_and_typed_without_foldin(interpreter: str, tmp_path: Path) -> None:
    wheel = built(house.ROOT / house.CLIENT, tmp_path / "dist")
    python = tmp_path / "environment/bin/python"
    ran(interpreter, "-m", "venv", tmp_path / "environment")
    ran(python, "-m", "pip", "install", "--quiet", "--constraint", locked(tmp_path), wheel)
    program = (
        "import importlib.util as found, foldin_client as c; print(c.__all__, found.find_spec('foldin'))"
    )
    names, _, other = ran(python, "-c", program, cwd=tmp_path).strip().rpartition(" ")
    assert other == "None"
    assert {"AsyncClient", "Client"} <= set(re.findall(r"\w+", names))
    assert 'type is "float"' in checked(python, TYPED.format("foldin_client"), tmp_path)


def call(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def test_the_client_that_comes_with_it_is_typed(installed: Path, tmp_path: Path) -> None:
    assert 'type is "float"' in checked(installed / "python", TYPED.format("foldin.client"), tmp_path)


def test_it_comes_up_learns_predicts_and_goes(installed: Path, elsewhere: Path) -> None:
    port = unused_port()
    flags = ("--no-play", "--workers", "2", "--port", str(port), "--environment-port", str(unused_port()))
    command = [str(installed / "foldin"), "up", *flags, "--data", str(elsewhere / "data")]
    url = f"http://127.0.0.1:{port}"
    with BlockingChild(command, elsewhere / "log", environment=plain_environment(os.environ, {})) as stack:
        wait_until(
            lambda: stack.code is not None or http_ok("127.0.0.1", port, "/readyz"),
            "the stack is ready",
            timeout_s=120,
        )
        assert stack.code is None, stack.text
        known = call(f"{url}/predict?user_id=ann&item_id=item-1")
        rated = [
            {"user_id": f"user-{user}", "item_id": f"item-{item}", "rating": 1 + item % 5}
            for user in range(30)
            for item in range(20)
        ]
        assert call(f"{url}/ratings", rated)["accepted"] == len(rated)
        # The fit, the writing of records and the compiled loops are processes that modules are started in.
        wait_until(
            lambda: call(f"{url}/predict?user_id=ann&item_id=item-1")["generation"] > known["generation"],
            "a generation of these ratings is live",
            timeout_s=120,
        )
        low, high = (call(f"{url}/predict?user_id=ann&item_id=item-{item}")["rating"] for item in (0, 4))
        assert low < 2
        assert high > 4
        assert len(call(f"{url}/recommend/ann?n=3")["items"]) == 3
        assert call(f"{url}/openapi.json")["paths"]
        example = ran(installed / "foldin", "client-example", "python", "--url", url)
        assert "generation=" in ran(installed / "python", "-c", example, cwd=elsewhere)
        stack.send_signal(signal.SIGINT)
        assert stack.wait(60) == 0, stack.text
