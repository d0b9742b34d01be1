"""The client's wheel, in an environment that has what it asks for and nothing else, at a running service."""

import asyncio
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support import house
from tests.support.factories import rating
from tests.support.small_trainer import serving_with_trainer

# What is not there yet is downloaded: some 2 MB.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CLIENT = house.ROOT / "clients/python"
PROGRAM = """
import asyncio, sys
from importlib.metadata import distributions
import foldin_client
from foldin_client import AsyncClient, Client, ProblemError

url = sys.argv[1]
with Client(url) as foldin:
    foldin.rate({"user_id": "ann", "item_id": "emma", "rating": 4})
    print("rated", foldin.get_user("ann").ratings)
    print("predicted", 1 <= foldin.predict("ann", "dune").rating <= 5)
    try:
        foldin.get_user("unseen")
    except ProblemError as problem:
        print("refused", problem.code)

async def main():
    async with AsyncClient(url) as foldin:
        print("recommended", len((await foldin.recommend("bob", n=2)).items))

asyncio.run(main())
print("from", foldin_client.__file__)
print("beside", *sorted(each.name.lower() for each in distributions()))
"""


def needed(names: set[str]) -> set[str]:
    """These distributions and all that they need, by what is installed here."""
    found: set[str] = set()
    rest = [canonicalize_name(name) for name in names]
    while rest:
        if (name := rest.pop()) not in found:
            found.add(name)
            asked = (Requirement(each) for each in requires(name) or ())
            rest += [
                canonicalize_name(each.name)
                for each in asked
                if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return found


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(folder: Path) -> Path:
    """The Python of an environment that has the wheel and what it asks for, by the versions of the lock."""
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, *build, "--wheel-dir", folder, CLIENT)
    (wheel,) = folder.glob("foldin_client-*.whl")
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {Requirement(each).name for each in project["dependencies"]}
    blocks = re.split(r"^(?=\S)", (house.ROOT / "requirements/run.txt").read_text("utf-8"), flags=re.M)
    names = needed(wanted)
    kept = [each for each in blocks if canonicalize_name(re.split("[=; ]", each)[0]) in names]
    (folder / "lock.txt").write_text("".join(kept), "utf-8")
    run(sys.executable, "-m", "venv", folder / "environment")
    python = folder / "environment/bin/python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    run(*pip, "--require-hashes", "-r", folder / "lock.txt")
    run(*pip, "--no-index", wheel)
    run(python, "-m", "pip", "check")
    return python


async def test_it_rates_predicts_and_recommends_from_an_environment_of_its_own(
    store_settings: StoreSettings, store: Store, tmp_path: Path
) -> None:
    python = await asyncio.to_thread(installed, tmp_path)
    ratings = [rating("ann", "dune", 5.0), rating("bob", "emma", 2.0)]
    async with serving_with_trainer(store_settings, store, ratings, users=[b"ann", b"bob"]) as served:
        said = await asyncio.to_thread(run, python, "-I", "-W", "error", "-c", PROGRAM, served.url)
    told = dict(line.split(" ", 1) for line in said.splitlines())
    assert told["rated"] == "2"
    assert told["predicted"] == "True"
    assert told["refused"] == "unknown_user"
    assert told["recommended"] == "2"
    assert told["from"].startswith(f"{tmp_path}/environment/")
    beside = told["beside"].split()
    assert "foldin-client" in beside
    # Nothing of Foldin itself, nor of what that needs besides.
    assert {"foldin", "numpy", "redis", "aiohttp"}.isdisjoint(beside)
