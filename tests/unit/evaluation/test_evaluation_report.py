"""Tallies, the board of a play, and the table, files and picture of an evaluation."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evaluation.course.playboard import (
    Progress,
    Standing,
    closing_lines,
    curve,
    progress_line,
    progress_table,
)
from evaluation.course.protocol import write_files
from evaluation.course.seat import MISSING_ERROR
from evaluation.report import players_table
from evaluation.results.course import EvaluationReport, Result, Tally


def tally(*errors: float, missing: int = 0) -> Tally:
    squared = [*errors, *[MISSING_ERROR] * missing]
    return Tally(np.array(squared), np.array([0.002] * len(errors) + [np.nan] * missing))


def text_of(renderable: object, width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


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


def test_coverage_is_by_the_plain_rule_where_a_player_tells_how_sure_it_is() -> None:
    errors, seconds = np.array([1.0, 4.0, 0.25]), np.full(3, 0.01)
    assert np.isnan(Tally(errors, seconds).coverage)
    # |1| <= 1.6449 * 0.61, |2| > 1.6449 * 1.2; the third one did not say.
    assert Tally(errors, seconds, np.array([0.61, 1.2, np.nan])).coverage == 0.5


def test_the_figure_is_the_mean_of_the_runs() -> None:
    constant, deployed, later = REPORT.summaries()
    assert constant.mse == pytest.approx(3.0)
    assert constant.run_mse == (2.0, 4.0)
    assert deployed.missing == 1
    assert deployed.note == "ids of its own"
    assert later.known == 900
    assert REPORT.mse("constant") == 2.0
    with pytest.raises(KeyError):
        REPORT.mse("unknown")


def test_the_table_shows_every_player_and_run() -> None:
    shown = text_of(players_table(REPORT))
    for part in ("constant", "3.000", "2.000 4.000", "250.375", "ids of its own", "seed 9"):
        assert part in shown


@pytest.mark.slow
def test_files_and_picture(tmp_path: Path) -> None:
    lines = write_files(REPORT, tmp_path / "a" / "b")
    assert len(lines) == 4
    with (tmp_path / "a/b/curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert rows[5]["squared_error"] == "1000.000000"
    assert rows[5]["answer_ms"] == ""
    assert rows[1]["running_mse"] == "2.000000"
    with (tmp_path / "a/b/summary.csv").open(newline="") as file:
        assert [row["mse"] for row in csv.DictReader(file)] == ["3.000000", "250.375000", "2.000000"]
    assert (tmp_path / "a/b/curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"constant" in (tmp_path / "a/b/learning-curve.svg").read_bytes()


def test_without_matplotlib_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    lines = write_files(REPORT, tmp_path)
    assert "pip install foldin[evaluate]" in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", "summary.csv"]


def test_the_board_of_a_play() -> None:
    standings = (
        Standing("deployed", tally(*[0.1] * 40), 1.5, "a note"),
        Standing("random", tally(*[4.0] * 40), 0.0, ""),
    )
    start = Progress(0, 80, 500, same_world=True, standings=(Standing("bias", tally(), 0.2, ""),))
    assert "500 ratings known" in progress_line(start)
    assert "bias" in text_of(progress_table(start))
    now = Progress(40, 80, 500, same_world=False, standings=standings)
    assert now.mse == pytest.approx({"deployed": 0.1, "random": 4.0})
    assert progress_line(now).startswith("step 40 of 80")
    assert "0.100" in text_of(progress_table(now))
    closing = closing_lines(now)
    assert "deployed" in closing[1]
    assert "a note" in closing[1]
    assert "a world of its own" in closing[-1]


def test_the_curve_falls_with_the_error() -> None:
    falling = curve(tally(*np.geomspace(5, 0.02, 200).tolist()), 200)
    assert len(falling) == 20
    assert list(falling) == sorted(falling, reverse=True)
    assert falling[0] == "█"
    assert curve(tally(), 200) == ""
    assert curve(tally(missing=3), 3) == "███"
