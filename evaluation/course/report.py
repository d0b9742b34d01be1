"""What an evaluation found, as a table for a terminal and as files.

Invariant: every step of every run is in the files, so any other figure can be had from them.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from evaluation.course.pictures import draw_pictures
from evaluation.course.results import EvaluationReport


def results_table(report: EvaluationReport) -> Table:
    """The summaries for a terminal."""
    title = f"mean squared error, {report.steps} steps a run, seed {report.seed}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for heading in (
        "known",
        "player",
        "error",
        "each run",
        "in 90 %",
        "missing",
        "learn s",
        "all s",
        "p50 ms",
        "p99 ms",
    ):
        runs = heading == "each run"
        justify: Literal["left", "right"] = "left" if runs or heading == "player" else "right"
        table.add_column(
            heading, justify=justify, no_wrap=not runs, overflow="fold", min_width=5 if runs else None
        )
    for summary in report.summaries():
        table.add_row(
            str(summary.known),
            summary.player,
            f"{summary.mse:.3f}",
            " ".join(f"{mse:.3f}" for mse in summary.run_mse),
            "" if math.isnan(summary.coverage) else f"{summary.coverage:.1%}",
            str(summary.missing),
            f"{summary.prepare_s:.1f}",
            f"{summary.seconds:.1f}",
            "-" if math.isnan(summary.answer_p50_ms) else f"{summary.answer_p50_ms:.2f}",
            "-" if math.isnan(summary.answer_p99_ms) else f"{summary.answer_p99_ms:.2f}",
        )
    notes = [
        f"{summary.player}, {summary.known} known: {summary.note}"
        for summary in report.summaries()
        if summary.note
    ]
    table.caption = "\n".join(notes)
    return table


def write_files(report: EvaluationReport, folder: Path) -> list[str]:
    """Write `summary.csv`, `curves.csv` and the pictures to `folder`; returns a line a file for the reader.

    Raises OSError when the folder cannot be written. Without matplotlib the picture is left out and the line
    says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        _write_csv(folder / "summary.csv", _summary_rows(report)),
        _write_csv(folder / "curves.csv", _curve_rows(report)),
    ]
    try:
        lines += [f"wrote {path}" for path in draw_pictures(report, folder)]
    except ModuleNotFoundError:
        lines.append("no picture, as matplotlib is not installed: pip install foldin[evaluate]")
    return lines


def _write_csv(path: Path, rows: Iterable[tuple[object, ...]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return f"wrote {path}"


def _summary_rows(report: EvaluationReport) -> Iterable[tuple[object, ...]]:
    yield (
        "known",
        "player",
        "mse",
        "missing",
        "prepare_s",
        "seconds",
        "answer_p50_ms",
        "answer_p99_ms",
        "runs_mse",
        "note",
        "coverage",
    )
    for summary in report.summaries():
        yield (
            summary.known,
            summary.player,
            f"{summary.mse:.6f}",
            summary.missing,
            f"{summary.prepare_s:.3f}",
            f"{summary.seconds:.3f}",
            f"{summary.answer_p50_ms:.3f}",
            f"{summary.answer_p99_ms:.3f}",
            " ".join(f"{mse:.6f}" for mse in summary.run_mse),
            summary.note,
            "" if math.isnan(summary.coverage) else f"{summary.coverage:.6f}",
        )


def _curve_rows(report: EvaluationReport) -> Iterable[tuple[object, ...]]:
    yield ("known", "run", "player", "step", "squared_error", "running_mse", "answer_ms")
    for result in report.results:
        tally = result.tally
        columns = zip(
            tally.squared_error.tolist(),
            tally.running_mse.tolist(),
            (1_000 * tally.answer_s).tolist(),
            strict=True,
        )
        for step, (error, running, answer_ms) in enumerate(columns, start=1):
            answer = "" if math.isnan(answer_ms) else f"{answer_ms:.3f}"
            yield (result.known, result.run, result.player, step, f"{error:.6f}", f"{running:.6f}", answer)
