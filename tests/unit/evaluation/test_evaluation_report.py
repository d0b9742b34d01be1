"""Tallies, the board of a play, and the table, files and picture of an evaluation."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.course.protocol import write_files
from evaluation.course.seat import MISSING_ERROR
from evaluation.results.course import EvaluationReport, Result, Tally


def tally(*errors: float, missing: int = 0) -> Tally:
    squared = [*errors, *[MISSING_ERROR] * missing]
    return Tally(np.array(squared), np.array([0.002] * len(errors) + [np.nan] * missing))


REPORT = EvaluationReport(
    results=(
        Result("constant", 200, 1, tally(1.0, 3.0), 0.0, 0.5, ""),
        Result("constant", 200, 2, tally(4.0, 4.0), 0.0, 0.5, ""),
        Result("deployed", 200, 1, tally(0.5, missing=1), 2.0, 3.0, "ids of its own"),
        Result("deployed", 200, 2, tally(0.5, 0.5), 2.0, 3.0, "ids of its own"),
        Result("constant", 900, 1, tally(2.0, 2.0), 0.0, 0.5, ""),
    ),
    steps=2,
    seed=9,
    same_worlds=True,
)


def test_a_tally_counts_as_the_course_does() -> None:
    counted = tally(1.0, 2.0, missing=1)
    assert counted.mse == pytest.approx((1 + 2 + 1000) / 3)
    assert counted.missing == 1
    assert counted.running_mse == pytest.approx([1, 1.5, 1003 / 3])
    assert counted.recent_mse(1) == 1000
    assert counted.answer_ms(99) == pytest.approx(2.0)
    assert np.isnan(tally().mse)
    assert np.isnan(tally(missing=1).answer_ms(50))


def test_the_figure_is_the_mean_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant, deployed, later = REPORT.summaries()
    assert constant.mse == pytest.approx(3.0)
    assert constant.run_mse == (2.0, 4.0)
    assert deployed.missing == 1
    assert deployed.note == "ids of its own"
    assert later.known == 900
    assert REPORT.mse("constant") == 2.0
    # Without what draws pictures the rest is written.
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install foldin[evaluate]" in write_files(REPORT, tmp_path)[-1]
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert [row["mse"] for row in csv.DictReader(file)] == ["3.000000", "250.375000", "2.000000"]
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), rows[5]["squared_error"], rows[5]["answer_ms"]) == (10, "1000.000000", "")
    assert rows[1]["running_mse"] == "2.000000"
