"""Each benchmark runs for about a second at a tiny size and prints its rows. Invariant: no figure is
asserted."""

import csv
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


def test_accuracy_prints_a_line_for_each_engine(tmp_path: Path) -> None:
    engines = ("auto", "global-mean", "bias", "surprise-svd")
    arguments = ("--sets", "synthetic", "--scale", "0.05", "--output", str(tmp_path), "--engines", *engines)
    done = run("accuracy", *arguments)

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    lines = (tmp_path / "accuracy.csv").read_text().splitlines()
    for engine, title in zip(engines, ("Foldin", "global mean", "bias", "Surprise SVD"), strict=True):
        assert title in done.stdout
        assert sum(f",{engine}," in line for line in lines) == 3  # one a split

    again = run("accuracy", *arguments, "--resume")
    assert (tmp_path / "accuracy.csv").read_text().splitlines() == lines
    assert again.returncode == 0


def test_accuracy_draws_a_made_set_of_any_size(tmp_path: Path) -> None:
    engines = ("truth", "auto:rank=4:settled", "bias")
    arguments = ("--sets", "made-4", "--ratings", "4k", "--output", str(tmp_path), "--engines", *engines)
    done = run("accuracy", *arguments)

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    with (tmp_path / "accuracy.csv").open(newline="") as file:
        rows = {row["engine"]: row for row in csv.DictReader(file)}
    assert rows["truth"]["data"] == "made-4, 4,000 ratings"
    assert float(rows["truth"]["rmse"]) < min(float(rows[name]["rmse"]) for name in engines[1:])
    assert len(rows["truth"]["std_deciles"].split()) == 10


def test_ranking_prints_the_lists_of_each_engine_without_verdicts(tmp_path: Path) -> None:
    engines = ("auto", "popularity", "edlae")
    arguments = ("--sets", "synthetic", "--scale", "0.03", "--repeats", "1", "--output", str(tmp_path))
    done = run("ranking", *arguments, "--engines", *engines)

    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    lines = (tmp_path / "ranking.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(engines)  # one a protocol
    for part in ("Foldin over the best tuned rival", "EDLAE, tuned", "last 5", "latest"):
        assert part in done.stdout
    assert not any(word in done.stdout for word in ("met", "missed"))


def test_what_is_not_a_benchmark_is_refused() -> None:
    done = run("nothing")

    assert done.returncode == 2
    assert "predict" in done.stderr
