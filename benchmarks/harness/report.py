"""Turns rounds of measurements into a table and a JSON file, and says of each row whether it meets its goal.

Invariant: a row shows the median of at least as many rounds as were run, with its spread, and its verdict
comes from that median alone. Figures of a machine that was too busy to tell are not reported unless that is
asked for.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from rich.console import Console

from benchmarks.harness import machine
from benchmarks.harness.progress import turns
from evaluation.report import new_table, write_whole

# The formulas of docs/sizing.md beside what is measured.
SIZED = "what `foldin size` says of the memory of the "

Verdict = Literal["met", "floor", "missed", "skipped", ""]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """What a row should reach: `goal`, and `floor`, below which it is missed."""

    goal: float
    floor: float
    higher_is_better: bool = True

    def verdict(self, value: float) -> Verdict:
        """Return `met`, `floor` (between floor and goal) or `missed`; NaN is missed."""
        sign = 1.0 if self.higher_is_better else -1.0
        if sign * value >= sign * self.goal:
            return "met"
        return "floor" if sign * value >= sign * self.floor else "missed"

    def cells(self) -> tuple[str, str]:
        """Return goal and floor for a table."""
        sign = ">=" if self.higher_is_better else "<="
        return f"{sign} {number(self.goal)}", f"{sign} {number(self.floor)}"


def at_most(goal: float, floor: float) -> Target:
    """Return the target of a figure that should be small."""
    return Target(goal, floor, higher_is_better=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `values`: one figure a round, in `unit`; `skipped`: why there are none.

    `against`: what it is compared with; `detail`: the figures behind a ratio; `guards`: the row is itself a
    yardstick, whose spread tells whether the machine was quiet.
    """

    work: str
    unit: str
    values: tuple[float, ...] = ()
    target: Target | None = None
    against: str = ""
    detail: str = ""
    skipped: str = ""
    guards: bool = False

    @property
    def median(self) -> float:
        return float(np.median(self.values)) if self.values else math.nan

    @property
    def spread(self) -> float:
        """(max - min) / median of the rounds."""
        if not self.values:
            return math.nan
        return (max(self.values) - min(self.values)) / abs(self.median) if self.median else math.inf

    @property
    def middle_range(self) -> float:
        """(third quartile - first) / median of the rounds."""
        # One round that was disturbed does not move it, as it does not move the median.
        if not self.values:
            return math.nan
        first, third = np.percentile(self.values, [25, 75])
        return float(third - first) / abs(self.median) if self.median else math.inf

    @property
    def verdict(self) -> Verdict:
        if self.skipped:
            return "skipped"
        return "" if self.target is None else self.target.verdict(self.median)


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of one benchmark with what must be known to read them. `commit`: what was measured."""

    name: str
    rows: tuple[Row, ...]
    watched: machine.Watched
    settings: Mapping[str, object] = field(default_factory=dict)
    commit: str = ""

    @property
    def complaints(self) -> list[str]:
        """Why the figures cannot be trusted."""
        # One round alone tells nothing of how far rounds differ.
        ranges = [row.middle_range for row in self.rows if row.guards and len(row.values) > 1]
        return machine.complaints(self.watched, max(ranges, default=None))

    def as_json(self) -> dict[str, object]:
        """Return everything, as `write` writes it."""
        rows = [
            {
                **asdict(row),
                "median": _finite(row.median),
                "spread": _finite(row.spread),
                "verdict": row.verdict,
            }
            for row in self.rows
        ]
        return {
            "name": self.name,
            "commit": self.commit,
            "settings": dict(self.settings),
            "machine": machine.describe(),
            "watched": asdict(self.watched),
            "complaints": self.complaints,
            "rows": rows,
        }

    def write(self, folder: Path) -> Path:
        """Write `folder`/NAME.json, whole or not at all."""
        # `all` reads the file of a benchmark that may have been killed.
        text = json.dumps(self.as_json(), indent=2, default=str) + "\n"
        return write_whole(folder / f"{self.name}.json", text)

    def show(self, console: Console) -> None:
        """Print the table, and below it what it must be read with."""
        headings = ("work", "figure", "spread", "goal", "floor", "verdict", "against, detail")
        table = new_table(self.name, headings, left=("work", "verdict", "against, detail"))
        for row in self.rows:
            table.add_row(*_cells(row), style=_STYLES[row.verdict])
        console.print(table)
        shares = [
            f"{name} {share:.1%}"
            for name, share in (("others used", self.watched.others), ("host took", self.watched.steal))
            if share is not None
        ]
        console.print(f"{self.watched.seconds:.0f} s; of the cores {', '.join(shares) or 'nothing is known'}")
        for complaint in self.complaints:
            console.print(f"[yellow]not to be trusted: {complaint}[/yellow]")


_STYLES: dict[Verdict, str] = {"met": "", "": "", "floor": "yellow", "missed": "red", "skipped": "dim"}


def _cells(row: Row) -> tuple[str, ...]:
    remark = ", ".join(text for text in (row.against, row.detail) if text)
    target = ("", "") if row.target is None else row.target.cells()
    if row.skipped:
        return (row.work, "", "", *target, "skipped", row.skipped)
    return (
        row.work,
        f"{number(row.median)} {row.unit}",
        f"{row.spread:.0%}",
        *target,
        row.verdict,
        remark,
    )


def number(value: float) -> str:
    """Return four significant digits, thousands set apart."""
    if not math.isfinite(value):
        return "-"
    # Four digits of a large number would be powers of ten: all before the point are shown.
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return both medians, for the detail of a ratio."""
    return f"{number(float(np.median(ours)))} against {number(float(np.median(theirs)))}"


def _finite(value: float) -> float | None:
    # JSON has neither NaN nor infinity.
    return value if math.isfinite(value) else None


def sized(part: str, said: float, found: float) -> Row:
    """Return by how much `foldin size` is off that says so many bytes of a part, where so many are found."""
    detail = f"{number(said / 1e6)} against {number(found / 1e6)} MB"
    off = max(said / found, found / said)
    return Row(f"{SIZED}{part}", "x", (off,), at_most(1.15, 1.25), "what it is, or the other way", detail)


def interleave(rounds: int, arms: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run every arm once a round; return the results by arm."""
    # Turned round every other time, so that a machine that grows slower hits all arms alike.
    names = list(arms)
    results: dict[str, list[T]] = {name: [] for name in arms}
    for i in turns(rounds):
        for name in names if i % 2 == 0 else names[::-1]:
            results[name].append(arms[name]())
    return results


def ratios(values: Sequence[float], yardstick: Sequence[float]) -> tuple[float, ...]:
    """Return the ratios round by round, NaN for one without a yardstick."""
    # What slowed a whole round down cancels.
    return tuple(a / b if b else math.nan for a, b in zip(values, yardstick, strict=True))
