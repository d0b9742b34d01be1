"""What an evaluation found, as a table, as CSV files and as a picture of the learning curves.

The picture needs matplotlib, which is imported only here and only when a picture is drawn.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from environment.seat import Tally

CURVE_STEPS = 100  # each point of a learning curve is the mean of so many steps


@dataclass(frozen=True, slots=True)
class Result:
    """One player's one run. `known`: ratings it was shown; `seconds`: all in all, `prepare_s` of them for
    learning those.
    """

    player: str
    known: int
    run: int
    tally: Tally
    prepare_s: float
    seconds: float
    note: str


@dataclass(frozen=True, slots=True)
class Summary:
    """One player's runs with so many known ratings. `mse` is the course's figure: the mean of the runs'
    errors.
    """

    player: str
    known: int
    mse: float
    run_mse: tuple[float, ...]
    missing: int
    prepare_s: float
    seconds: float
    answer_p50_ms: float
    answer_p99_ms: float
    note: str


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """All results of an evaluation. `seed` repeats it. `same_worlds`: the players of each run faced the same
    pairs.
    """

    results: tuple[Result, ...]
    steps: int
    seed: int
    same_worlds: bool

    def summaries(self) -> list[Summary]:
        """A line for each player and length of history, in the order in which they played."""
        groups: dict[tuple[int, str], list[Result]] = {}
        for result in self.results:
            groups.setdefault((result.known, result.player), []).append(result)
        return [_summary(results) for results in groups.values()]

    def mse(self, player: str) -> float:
        """The course's figure of `player`, with the longest history it was shown. Raises KeyError if it did
        not play.
        """
        summaries = [summary for summary in self.summaries() if summary.player == player]
        if not summaries:
            raise KeyError(player)
        return max(summaries, key=lambda summary: summary.known).mse


def _summary(results: list[Result]) -> Summary:
    together = Tally(
        np.concatenate([result.tally.squared_error for result in results]),
        np.concatenate([result.tally.answer_s for result in results]),
    )
    run_mse = tuple(result.tally.mse for result in results)
    return Summary(
        player=results[0].player,
        known=results[0].known,
        mse=fmean(run_mse),
        run_mse=run_mse,
        missing=together.missing,
        prepare_s=fmean(result.prepare_s for result in results),
        seconds=sum(result.seconds for result in results),
        answer_p50_ms=together.answer_ms(50),
        answer_p99_ms=together.answer_ms(99),
        note="; ".join(dict.fromkeys(result.note for result in results if result.note)),
    )


def results_table(report: EvaluationReport) -> Table:
    """The summaries for a terminal."""
    title = f"mean squared error, {report.steps} steps a run, seed {report.seed}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for heading in (
        "known",
        "player",
        "error",
        "each run",
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
    """Write `summary.csv`, `curves.csv` and `curves.png` to `folder`; returns a line a file for the reader.

    Raises OSError when the folder cannot be written. Without matplotlib the picture is left out and the line
    says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        _write_csv(folder / "summary.csv", _summary_rows(report)),
        _write_csv(folder / "curves.csv", _curve_rows(report)),
    ]
    picture = folder / "curves.png"
    try:
        draw_curves(report, picture)
        lines.append(f"wrote {picture}")
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


def draw_curves(report: EvaluationReport, path: Path) -> None:
    """Draw the learning curves, a panel for each length of history, as PNG. Raises ModuleNotFoundError,
    OSError.

    Each point is the mean squared error of the `CURVE_STEPS` steps before it (of fewer at the end), over all
    runs.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(result.known for result in report.results))
    figure = Figure(figsize=(1.5 + 5.0 * len(lengths), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for panel, known in zip(panels, lengths, strict=True):
        for summary in report.summaries():
            if summary.known != known:
                continue
            errors = np.mean(
                [
                    r.tally.squared_error
                    for r in report.results
                    if (r.known, r.player) == (known, summary.player)
                ],
                axis=0,
            )
            edges = np.arange(0, errors.size, CURVE_STEPS)
            points = np.add.reduceat(errors, edges) / np.diff(np.append(edges, errors.size))
            steps = np.append(edges[1:], errors.size)
            panel.plot(steps, points, marker="o", markersize=3, label=f"{summary.player} {summary.mse:.3f}")
        panel.set_title(f"{known} ratings known")
        panel.set_xlabel("step")
        panel.set_yscale("log")
        panel.grid(visible=True, which="both", alpha=0.3)
        panel.legend(fontsize="small")
    panels[0].set_ylabel(f"mean squared error, last {CURVE_STEPS} steps")
    figure.savefig(path, dpi=120)
