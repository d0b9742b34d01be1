"""Each benchmark runs at a tiny size; figures of the documents name their commit; data sets run nothing;
rivals are tuned on training ratings alone.
"""

import json
import lzma
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data import datasets
from processes.blocking import plain_environment, python_command


def test_a_pickle_that_wants_to_do_something_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        datasets.read_frame(lzma.compress(pickle.dumps(Path)))


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
ACCURACY = {
    "accuracy": ("--sets", "synthetic", "made-4", "--ratings", "4k", "--scale", "0.05"),
    "ranking": ("--sets", "synthetic", "--scale", "0.03", "--repeats", "1"),
}
ENGINES = {"accuracy": ("auto", "bias", "surprise-svd"), "ranking": ("auto", "popularity", "edlae")}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`foldin bench NAME` as a process of its own."""
    command = python_command("benchmarks", name, *arguments)
    environment = plain_environment(os.environ, {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", sorted(SIZES))
def test_prints_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    done = run(name, *TINY, *SIZES[name], "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    written: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["rows"]
    for row in written["rows"]:
        assert (row["median"] is not None) != bool(row["skipped"])
        assert row["verdict"] in {"", "skipped"}  # a tiny size has no verdict


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ACCURACY)
def test_a_line_for_each_engine(name: str, tmp_path: Path) -> None:
    done = run(name, *ACCURACY[name], "--engines", *ENGINES[name], "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    lines = (tmp_path / f"{name}.csv").read_text().splitlines()
    for engine in ENGINES[name]:
        assert any(f",{engine}," in line for line in lines)
