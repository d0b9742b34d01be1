"""Lines as a table: one row for each data set and engine, means over the splits.

Invariant: a row never mixes a line that failed or was skipped with others, and says how many splits it is of.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from evaluation.offline.results import Line

Cell = Callable[[Sequence[Line]], str]


def mean(lines: Sequence[Line], name: str) -> float:
    """Of one figure over the splits; NaN where one has none."""
    return float(np.mean([getattr(line, name) for line in lines]))


def deciles(lines: Sequence[Line]) -> tuple[float, ...]:
    """Coverage by decile, means over the splits (their deciles are of the same size to one rating)."""
    if not lines or not all(line.deciles for line in lines):
        return ()
    return tuple(float(share) for share in np.mean([line.deciles for line in lines], axis=0))


def _figure(name: str, form: str) -> Cell:
    def cell(lines: Sequence[Line]) -> str:
        value = mean(lines, name)
        return "" if math.isnan(value) else format(value, form)

    return cell


def _by_decile(lines: Sequence[Line]) -> str:
    shares = deciles(lines)
    return f"{min(shares):.1%} to {max(shares):.1%}" if shares else ""


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("RMSE", _figure("rmse", ".4f")),
    ("MAE", _figure("mae", ".4f")),
    ("log lik.", _figure("log_likelihood", ".4f")),
    ("in 90 %", _figure("coverage", ".1%")),
    ("by decile", _by_decile),
    ("recall@20", _figure("recall_20", ".4f")),
    ("NDCG@100", _figure("ndcg_100", ".4f")),
    ("s", _figure("seconds", ".1f")),
    ("MB", _figure("peak_mb", ".0f")),
)


def groups(lines: Iterable[Line]) -> dict[tuple[str, str, str], list[Line]]:
    """Lines by data set, kind of split (`u`, `random`, ...) and engine, in their order."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.data, kind(line.split), line.engine), []).append(line)
    return found


def kind(split: str) -> str:
    """The split's name without its number: `random 2` and `random 3` are of one kind, `u1` and `u2`, too."""
    return split.rstrip("0123456789").rstrip() or split


def results_table(lines: Sequence[Line], title: str) -> Table:
    """The table; columns that nobody fills are left out."""
    found = groups(lines)
    good = {key: [line for line in group if not line.skipped] for key, group in found.items()}
    used = [(name, cell) for name, cell in COLUMNS if any(group and cell(group) for group in good.values())]
    several = len({key[0] for key in found}) > 1
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in (*(("data",) if several else ()), "split", "engine"):
        shown.add_column(name, overflow="fold", no_wrap=name == "split")
    for name, _ in used:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("note", overflow="fold")
    for key, group in found.items():
        data, part, _ = key
        lines_of = good[key]
        n = len(lines_of or group)
        names = (*((data,) if several else ()), f"{part} x {n}" if n > 1 else (lines_of or group)[0].split)
        if not lines_of:
            word = "failed" if any(line.failed for line in group) else "skipped"
            cells = [""] * len(used)
            shown.add_row(*names, group[0].title, *cells, f"{word}: {group[0].skipped}", style="dim")
            continue
        lost = len(group) - len(lines_of)
        note = lines_of[0].note + (f" ({lost} splits failed: {_why(group)})" if lost else "")
        shown.add_row(*names, lines_of[0].title, *(cell(lines_of) for _, cell in used), note)
    return shown


def _why(group: Sequence[Line]) -> str:
    return next(line.skipped for line in group if line.skipped)
