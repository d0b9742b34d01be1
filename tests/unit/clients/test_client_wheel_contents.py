"""The Python client is a wheel of its own, and asks for nothing that Foldin does not ask for."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "clients/python"


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def test_it_is_of_the_version_of_foldin_and_needs_a_part_of_what_that_needs() -> None:
    client, whole = project(CLIENT), project(ROOT)
    assert client["version"] == whole["version"]
    packed = json.loads((ROOT / "clients/javascript/package.json").read_text("utf-8"))
    assert packed["version"] == whole["version"].replace(".dev", "-dev.")
    assert client["requires-python"] == whole["requires-python"]
    assert set(client["dependencies"]) <= set(whole["dependencies"])
    assert (CLIENT / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


def test_its_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    build = [*("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")]
    subprocess.run([sys.executable, *build, "--wheel-dir", tmp_path, CLIENT], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("foldin_client-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith("foldin_client-")}
        archive.extractall(tmp_path / "there")
    sources = {str(path.relative_to(CLIENT)) for path in CLIENT.glob("foldin_client/**/*.py")}
    assert packed == {*sources, "foldin_client/py.typed"}
    # With what it asks for alone: no name of Foldin's own packages is loaded.
    program = "import sys, foldin_client as f; print(f.__file__, *{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "there")},
    )
    file, *loaded = done.stdout.split()
    assert file.startswith(str(tmp_path / "there"))
    assert {"service", "factors", "foldin", "aiohttp", "numpy"}.isdisjoint(loaded)
