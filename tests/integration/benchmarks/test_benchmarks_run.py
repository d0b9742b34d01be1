"""Each benchmark runs at a tiny size and prints its rows; data sets that are fetched run nothing."""

import json
import lzma
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data import datasets
from benchmarks.errors import BenchmarkError
from benchmarks.harness.recorded import Origin, narrowed, output_markers, write_output, write_rows
from benchmarks.harness.report import Row
from evaluation.report import new_table
from processes.blocking import plain_environment, python_command


def test_a_pickle_that_wants_to_do_something_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match="has no place"):
        datasets.read_frame(lzma.compress(pickle.dumps(Path)))


def test_what_is_recorded_stands_in_place_of_what_was_there_and_has_no_settings(tmp_path: Path) -> None:
    page, markers = tmp_path / "page.md", output_markers("accuracy x")
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*markers))
    table = new_table("errors", ("engine", "RMSE", "note"), left=("engine", "note"))
    table.add_row("auto", "0.9", "rank 8")
    write_output(page, "accuracy x", [narrowed(table, {"note"})], Origin("abc", "a machine"))
    lines = [line.strip() for line in page.read_text().splitlines() if line.strip(" ─")]
    shown = ["Of abc: a machine", "```text", "errors", "engine   RMSE", "auto      0.9", "```"]
    assert lines == ["before", markers[0], *shown, markers[1], "after"]


def test_no_row_takes_the_place_of_another_one_of_its_run(tmp_path: Path) -> None:
    rows = [Row("p99", "ms", (value,), None, "") for value in (1.0, 2.0)]
    with pytest.raises(BenchmarkError, match="one name"):
        write_rows(tmp_path / "page.md", "overload", rows, Origin("abc", "a machine"), whole=True)


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
    "erasures": ("--scale", "0.0005"),
}
SETS = {
    "accuracy": ("--sets", "synthetic", "made-3", "made-slider", "--ratings", "4k", "--scale", "0.05"),
    "ranking": ("--sets", "synthetic", "--scale", "0.03", "--repeats", "1"),
}
ENGINES = {"accuracy": ("auto", "bias", "surprise-svd"), "ranking": ("auto", "popularity", "edlae")}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [*SIZES, *SETS])
def test_prints_and_writes_its_rows(name: str, tmp_path: Path) -> None:
    arguments = (*SETS[name], "--engines", *ENGINES[name]) if name in SETS else (*TINY, *SIZES[name])
    command = python_command("benchmarks", name, *arguments, "--output", str(tmp_path))
    environ = plain_environment(os.environ, {})
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    if name in SETS:
        lines = (tmp_path / f"{name}.csv").read_text()
        assert all(f",{engine}," in lines for engine in ENGINES[name])
        return
    written: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["rows"]
    for row in written["rows"]:
        assert (row["median"] is not None) != bool(row["skipped"])
        assert row["verdict"] in {"", "skipped"}  # a tiny size has no verdict
