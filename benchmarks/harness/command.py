"""The command line that all benchmarks share: measure, judge whether the machine was quiet, print, write.

Invariant: exit code 0 only when figures were reported; 3 when the machine was too busy to tell, and then
nothing is written.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks.harness.machine import Watch
from benchmarks.harness.progress import going_on
from benchmarks.harness.recorded import DOCS, origin, write_rows
from benchmarks.harness.report import Report, Row
from evaluation.report import new_console
from processes.settings import load, real, setting, whole

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What every benchmark takes."""

    seconds: float = setting(5.0, "seconds of one measurement", real(1e-6, 1e6))
    rounds: int = setting(5, "interleaved rounds", whole(1, 1000))
    scale: float = setting(1.0, "fraction of the full sizes", real(1e-6, 1e6))
    seed: int = setting(1, "of all that is random", whole(0))
    force: bool = setting(False, "report even when the machine is busy")
    no_pin: bool = setting(False, "give no process cores of its own")
    output: Path = setting(Path("results/bench"), "folder for the JSON", Path)
    record: bool = setting(False, "write the rows into docs/, with the commit of this checkout")

    @property
    def whole(self) -> bool:
        """Whether all is measured that this benchmark has in the documents; else what is not stays there."""
        return True

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        if self.record and self.scale != 1:
            return ["--record goes with full sizes, not with --scale"]
        return []

    def size(self, full: int, least: int = 1) -> int:
        """Return `full` at this scale, never under `least`."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True, slots=True)
class CatalogueOptions(Options):
    """Those of a benchmark with a large catalogue."""

    # The rank that others quote for a million items.
    rank: int = setting(50, "of the model", whole(1, 1000))


Chosen = TypeVar("Chosen", bound=Options)
Measure = Callable[[Chosen, Console], Sequence[Row]]
Main = Callable[[Sequence[str]], int]


def read(kind: type[T], name: str, doc: str | None, argv: Sequence[str]) -> T:
    """Read the flags of a benchmark, described by the first paragraph of `doc`. Raises SettingsError."""
    return load(kind, argv, {}, command=f"foldin bench {name}", about=(doc or "").partition("\n\n")[0])


def benchmark(name: str, doc: str | None, measure: Measure[Chosen], kind: type[Chosen]) -> Main:
    """Return the `main` of a benchmark: read the flags, measure, report."""
    return lambda argv: carry_out(name, measure, read(kind, name, doc, argv))


def carry_out(name: str, measure: Measure[Chosen], options: Chosen) -> int:
    """Measure and report; return the exit code. Raises `BenchmarkError`."""
    console = new_console()
    of, watch = origin(), Watch()
    with going_on(name):
        rows = measure(options, console)
    settings = {name: getattr(options, name) for name in ("seconds", "rounds", "scale", "seed")}
    if options.scale != 1:
        # The goals are for the full sizes.
        rows = [replace(row, target=None) for row in rows]
    settings = {**settings, "pin": not options.no_pin}
    report = Report(name, tuple(rows), watch.since(), settings, of.commit)
    if report.complaints and not options.force:
        for complaint in report.complaints:
            print(f"foldin bench {name}: {complaint}", file=sys.stderr)
        print(f"foldin bench {name}: too busy to tell; try again later, or --force", file=sys.stderr)
        return 3
    report.show(console)
    if options.scale != 1:
        console.print(f"at {options.scale:g} of the full sizes, for which the goals are: no verdicts")
    console.print(f"written to {report.write(options.output)}")
    if options.record:
        about = f"{options.rounds} rounds, {options.seconds:g} s each"
        doubts = [f"not to be trusted: {complaint}" for complaint in report.complaints]
        write_rows(
            DOCS / "performance.md", name, report.rows, of.about([about, *doubts]), whole=options.whole
        )
    return 0
