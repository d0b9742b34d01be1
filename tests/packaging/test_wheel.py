"""The wheel, as a user has it: built from the sources that are released, in an environment that has nothing.

`FOLDIN_TEST_PYTHONS` names more interpreters to install it for; `make wheels-check` does.
"""

import json
import os
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(house.ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(folder.glob("foldin-*.tar.gz"))) == 1
    (built,) = folder.glob("foldin-*.whl")
    return built


def test_only_foldin_stands_at_the_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"foldin"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".o", ".so"))]


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda path: Path(path).name)
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    programs = folder / "bin"
    lock = house.ROOT / "requirements/run.txt"
    for command in (
        [request.param, "-m", "venv", str(folder)],
        [str(programs / "pip"), "install", "--quiet", "--require-hashes", "-r", str(lock)],
        [str(programs / "pip"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        [str(programs / "pip"), "check"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return programs


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in PACKAGES:
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "__init__.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def call(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


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
        stack.send_signal(signal.SIGINT)
        assert stack.wait(60) == 0, stack.text
