"""Each benchmark runs for about a second at a tiny size and prints its rows. Invariant: no figure is
asserted."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from processes.blocking import plain_environment, python_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
TINY = ("--seconds", "0.2", "--rounds", "1", "--force", "--no-pin")
SIZES = {
    "predict": ("--scale", "0.002"),
    "batch": ("--scale", "0.01"),
    "recommend": ("--scale", "0.001", "--rank", "6"),
    "ratings": ("--scale", "0.01"),
    "fit": ("--scale", "0.0005", "--rank", "6"),
    "refit": ("--scale", "0.002", "--sizes", "1000000"),
    "publish": ("--scale", "0.001"),
    "growth": ("--scale", "0.001"),
    "overload": ("--scale", "0.01"),
    "attack": ("--scale", "0.01"),
    "start": ("--scale", "0.0005", "--rank", "6"),
    "recovery": ("--scale", "0.0005"),
}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`foldin bench NAME` as a process of its own."""
    command = python_command("benchmarks", name, *arguments)
    return subprocess.run(
        command,
        env=plain_environment(os.environ, {}),
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(SIZES))
def test_prints_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    done = run(name, *TINY, *SIZES[name], "--output", str(tmp_path))

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    written: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["rows"]
    for row in written["rows"]:
        assert row["work"]
        assert (row["median"] is not None) != bool(row["skipped"])
        assert row["verdict"] in {"", "skipped"}  # a tiny size has no verdict
    first = written["rows"][0]["work"].split(",")[0].split()[0]
    assert first in done.stdout
    # The bar is for terminals.
    assert "Measuring" not in done.stdout + done.stderr


def test_accuracy_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    engines = ("auto", "global-mean", "bias")
    arguments = ("--sets", "synthetic", "--scale", "0.05", "--output", str(tmp_path), "--engines", *engines)
    done = run("accuracy", *arguments)

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    lines = (tmp_path / "accuracy.csv").read_text().splitlines()
    for engine in engines:
        assert sum(f",{engine}," in line for line in lines) == 3  # one a split
    again = run("accuracy", *arguments, "--resume")
    assert (tmp_path / "accuracy.csv").read_text().splitlines() == lines
    assert again.returncode == 0


def test_what_is_not_a_benchmark_is_refused() -> None:
    done = run("nothing")

    assert done.returncode == 2
    assert "predict" in done.stderr
