"""What an evaluation found, as tables for a terminal and as CSV files.

Invariant: a row never mixes figures of a run that failed or was skipped with others; every step that was
played is in the files, so that any other figure can be had from them.
"""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from evaluation.results.course import EvaluationReport, Summary
from evaluation.results.lines import Line

# Of an output that has no width, as a log file: room for every column and a note.
WIDTH_OF_A_FILE = 160

# Of lists.
COMPARED = {
    "recall_20": "Recall@20",
    "ndcg_100": "NDCG@100",
    "liked_ndcg_100": "liked NDCG@100",
    "graded_ndcg_10": "graded NDCG@10",
}

_FOLDED = {"note", "each run"}
Cell = Callable[[Sequence[Line]], str]


def new_console() -> Console:
    """The console of this process's output; as wide as a table needs where it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    return console


def new_table(title: str, headings: Iterable[str], *, left: Iterable[str] = ()) -> Table:
    """A table whose columns are right-aligned, but for those in `left`. Notes and lists may fold."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for heading in headings:
        if heading in left:
            table.add_column(heading, overflow="fold", no_wrap=heading not in _FOLDED)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_whole(console: Console, table: Table) -> None:
    """Print a table of `new_table` with no figure and no name cut. Where it is too wide, the last columns of
    figures are left out, and named below it; the first one stays.
    """
    made, left_out = table, list[str]()
    unbounded = console.options.update(width=10_000)
    while True:
        for column in made.columns:
            if column.no_wrap:
                cells = (column.header, *column.cells)
                column.min_width = max(console.measure(each, options=unbounded).maximum for each in cells)
        least = console.measure(made, options=unbounded).minimum
        figures = [column for column in made.columns if column.justify == "right"]
        if least <= console.width or len(figures) < 2:
            break
        left_out.append(str(figures[-1].header))
        columns = [column for column in made.columns if column is not figures[-1]]
        folded = [str(column.header) for column in columns if column.justify != "right"]
        narrow = new_table(str(table.title), [str(column.header) for column in columns], left=folded)
        cells_of_rows = zip(*(column.cells for column in columns), strict=True)
        for row, row_cells in zip(made.rows, cells_of_rows, strict=True):
            narrow.add_row(*row_cells, style=row.style)
        told = f"left out, as the terminal is narrow: {', '.join(left_out)}"
        narrow.caption = "\n".join(filter(None, (str(table.caption or ""), told)))
        made = narrow
    console.print(made, width=max(least, console.width), crop=False)


def figure(value: float, form: str, missing: str = "") -> str:
    """`value` in the format `form`, `missing` for NaN."""
    return missing if math.isnan(value) else format(value, form)


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    """Write the rows, the first of them names, to a file that is there whole or not at all."""
    text = StringIO(newline="")
    csv.writer(text).writerows(rows)
    return write_whole(path, text.getvalue())


def write_whole(path: Path, text: str) -> Path:
    """Write a file that is there whole or not at all, as it stands in `text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: a reader never sees half of it.
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text, "utf-8", newline="")
    unfinished.replace(path)
    return path


# The course's protocol: a row a player and length of history.


def players_table(report: EvaluationReport) -> Table:
    """The summaries for a terminal."""
    table = new_table(
        f"mean squared error, {report.steps} steps a run, seed {report.seed}",
        (
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
        ),
        left=("each run",),
    )
    table.columns[1].justify = "left"
    table.columns[3].min_width = 5  # one figure a line, where the terminal is narrow
    summaries = report.summaries()
    for summary in summaries:
        table.add_row(
            str(summary.known),
            summary.player,
            f"{summary.mse:.3f}",
            " ".join(f"{mse:.3f}" for mse in summary.run_mse),
            figure(summary.coverage, ".1%"),
            str(summary.missing),
            f"{summary.prepare_s:.1f}",
            f"{summary.seconds:.1f}",
            figure(summary.answer_p50_ms, ".2f", "-"),
            figure(summary.answer_p99_ms, ".2f", "-"),
        )
    notes = [f"{each.player}, {each.known} known: {each.note}" for each in summaries if each.note]
    table.caption = "\n".join(notes)
    return table


def write_course_files(report: EvaluationReport, folder: Path) -> list[Path]:
    """Write `summary.csv` and `curves.csv` to `folder`. Raises OSError when it cannot be written."""
    return [
        write_csv(folder / "summary.csv", _summary_rows(report.summaries())),
        write_csv(folder / "curves.csv", _step_rows(report)),
    ]


def _summary_rows(summaries: Iterable[Summary]) -> Iterable[tuple[object, ...]]:
    # New columns come last: readers of older files count on the order.
    yield (
        *("known", "player", "mse", "missing", "prepare_s", "seconds"),
        *("answer_p50_ms", "answer_p99_ms", "runs_mse", "note", "coverage"),
    )
    for summary in summaries:
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
            figure(summary.coverage, ".6f"),
        )


def _step_rows(report: EvaluationReport) -> Iterable[tuple[object, ...]]:
    yield ("known", "run", "player", "step", "squared_error", "running_mse", "answer_ms")
    for result in report.results:
        tally = result.tally
        columns = (tally.squared_error, tally.running_mse, 1_000 * tally.answer_s)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for step, (error, running, answer_ms) in enumerate(rows, start=1):
            start = (result.known, result.run, result.player, step)
            yield (*start, f"{error:.6f}", f"{running:.6f}", figure(answer_ms, ".3f"))


# Engines on data sets: a row a data set, kind of split and engine, means over the splits.


def mean(lines: Sequence[Line], name: str) -> float:
    """Mean of one figure over the splits; NaN where a split has none."""
    # Not nanmean: a mean over fewer splits than its row says would mislead.
    return float(np.mean([getattr(line, name) for line in lines]))


def deciles(lines: Sequence[Line], name: str = "deciles") -> tuple[float, ...]:
    """Coverage by decile, means over the splits (their deciles are of the same size to one rating). `name`:
    the field of a line.
    """
    values = [getattr(line, name) for line in lines]
    if not values or not all(values):
        return ()
    return tuple(float(share) for share in np.mean(values, axis=0))


def groups(lines: Iterable[Line]) -> dict[tuple[str, str, str], list[Line]]:
    """Lines by data set, kind of split (`u`, `random`, ...) and engine, in their order."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        # `random 2` and `random 3` are of one kind, `u1` and `u2`, too.
        kind = line.split.rstrip("0123456789").rstrip() or line.split
        found.setdefault((line.data, kind, line.engine), []).append(line)
    return found


def engines_table(lines: Sequence[Line], title: str) -> Table:
    """The lines for a terminal; columns without any figure are left out."""
    found = groups(lines)
    finished = {key: [line for line in group if not line.skipped] for key, group in found.items()}
    used = [
        (name, cell) for name, cell in _COLUMNS if any(group and cell(group) for group in finished.values())
    ]
    several = len({data for data, _, _ in found}) > 1
    labels = (*(("data",) if several else ()), "split", "engine")
    table = new_table(title, (*labels, *(name for name, _ in used), "note"), left=(*labels, "note"))
    for (data, kind, _), group in found.items():
        good = finished[data, kind, group[0].engine]
        of = good or group  # the row says how many splits its figures are of
        names = (*((data,) if several else ()), f"{kind} x {len(of)}" if len(of) > 1 else of[0].split)
        if good:
            lost = len(group) - len(good)
            note = good[0].note + (f" ({lost} splits failed: {_reason(group)})" if lost else "")
            table.add_row(*names, good[0].title, *(cell(good) for _, cell in used), note)
        else:
            word = "failed" if any(line.failed for line in group) else "skipped"
            blank = [""] * len(used)
            table.add_row(*names, group[0].title, *blank, f"{word}: {group[0].skipped}", style="dim")
    return table


def ranking_table(lines: Sequence[Line], title: str) -> Table:
    """Return a row a data set, kind of split and engine: means over the splits, with standard errors."""
    headings = (*COMPARED.values(), "coverage@10", "novelty@10", "RMSE", "s")
    left = ("data", "split", "engine", "note")
    shown = new_table(title, (*left[:3], *headings, "note"), left=left)
    for (data, kind, _), group in groups(lines).items():
        good = [line for line in group if not line.skipped]
        name = f"{kind} x {len(good)}" if len(good) > 1 else group[0].split
        if not good:
            word = "failed" if group[0].failed else "skipped"
            shown.add_row(data, name, group[0].title, *[""] * len(headings), f"{word}: {group[0].skipped}")
            continue
        cells = [_with_error(good, figure_name) for figure_name in COMPARED]
        cells += [figure(mean(good, "coverage_10"), ".1%"), figure(mean(good, "novelty_10"), ".2f")]
        cells += [figure(mean(good, "rmse"), ".4f"), figure(mean(good, "seconds"), ".1f")]
        shown.add_row(data, name, good[0].title, *cells, good[0].note)
    return shown


def _with_error(lines: Sequence[Line], name: str) -> str:
    values = [getattr(line, name) for line in lines]
    text = figure(mean(lines, name), ".4f")
    if len(values) < 2 or not text:
        return text
    return f"{text} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}"


def write_lines(lines: Iterable[Line], path: Path) -> Path:
    """Write a row a line; the deciles are ten numbers in one cell."""
    return write_csv(path, [Line.csv_columns(), *(line.csv_row() for line in lines)])


def _figure_of(name: str, form: str) -> Cell:
    return lambda lines: figure(mean(lines, name), form)


def _by_decile(name: str) -> Cell:
    def cell(lines: Sequence[Line]) -> str:
        shares = deciles(lines, name)
        return f"{min(shares):.1%} to {max(shares):.1%}" if shares else ""

    return cell


def _reason(group: Sequence[Line]) -> str:
    return next(line.skipped for line in group if line.skipped)


_COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("RMSE", _figure_of("rmse", ".4f")),
    ("MAE", _figure_of("mae", ".4f")),
    ("log lik.", _figure_of("log_likelihood", ".4f")),
    ("in 90 %", _figure_of("coverage", ".1%")),
    ("by decile", _by_decile("deciles")),
    ("by deviation", _by_decile("std_deciles")),
    ("recall@20", _figure_of("recall_20", ".4f")),
    ("NDCG@100", _figure_of("ndcg_100", ".4f")),
    ("s", _figure_of("seconds", ".1f")),
    ("MB", _figure_of("peak_mb", ".0f")),
)
