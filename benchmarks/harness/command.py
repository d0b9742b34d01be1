"""The command line that all benchmarks share: measure, judge whether the machine was quiet, print, write.

Invariant: exit code 0 only when figures were reported; 3 when the machine was too busy to tell, and then
nothing is written; 2 when the benchmark could not run, with one line that says why.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.harness.machine import Watch
from benchmarks.harness.report import Report, Row

MIN_WIDTH = 150


class BenchmarkError(RuntimeError):
    """The benchmark cannot run here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds`: of one measurement; `scale`: fraction of the full sizes; `pin`: give each process cores of
    its own."""

    seconds: float = 5.0
    rounds: int = 5
    scale: float = 1.0
    seed: int = 1
    force: bool = False
    pin: bool = True
    output: Path = Path("results/bench")

    def size(self, full: int, least: int = 1) -> int:
        """`full` at this scale, never under `least`."""
        return max(least, round(full * self.scale))


Measure = Callable[[Options, Console], Sequence[Row]]


def parser(name: str, about: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    flags = argparse.ArgumentParser(prog=f"foldin bench {name}", description=about)
    defaults = Options()
    flags.add_argument(
        "--seconds", type=_positive, default=defaults.seconds, help="of one measurement (%(default)s)"
    )
    flags.add_argument(
        "--rounds", type=_count, default=defaults.rounds, help="interleaved rounds (%(default)s)"
    )
    flags.add_argument("--scale", type=_positive, default=defaults.scale, help="fraction of the full sizes")
    flags.add_argument("--seed", type=int, default=defaults.seed, help="of all that is random (%(default)s)")
    flags.add_argument("--force", action="store_true", help="report even when the machine is busy")
    flags.add_argument("--no-pin", dest="pin", action="store_false", help="leave the cores to the system")
    flags.add_argument(
        "--output", type=Path, default=defaults.output, help="folder for the JSON (%(default)s)"
    )
    return flags


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise ValueError(text)
    return value


def options_from(flags: argparse.Namespace) -> Options:
    """The shared part of parsed flags."""
    return Options(
        seconds=flags.seconds,
        rounds=flags.rounds,
        scale=flags.scale,
        seed=flags.seed,
        force=flags.force,
        pin=flags.pin,
        output=flags.output,
    )


def run(name: str, about: str, measure: Measure, argv: Sequence[str]) -> int:
    """Parse, measure, report: the `main` of a benchmark without flags of its own."""
    return carry_out(name, measure, options_from(parser(name, about).parse_args(argv)))


def carry_out(name: str, measure: Measure, options: Options) -> int:
    """Measure and report; the exit code."""
    console = console_for()
    end_in_order()
    watch = Watch()
    try:
        rows = measure(options, console)
    except BenchmarkError as exc:
        print(f"foldin bench {name}: {exc}", file=sys.stderr)
        return 2
    settings = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "scale": options.scale,
        "seed": options.seed,
    }
    settings["pin"] = options.pin
    if options.scale != 1:
        # The goals are for the full sizes.
        rows = [replace(row, target=None) for row in rows]
    report = Report(name, tuple(rows), watch.since(), settings)
    if report.complaints and not options.force:
        for complaint in report.complaints:
            print(f"foldin bench {name}: {complaint}", file=sys.stderr)
        print(f"foldin bench {name}: too busy to tell; try again later, or --force", file=sys.stderr)
        return 3
    report.show(console)
    if options.scale != 1:
        console.print(f"at {options.scale:g} of the full sizes, for which the goals are: no verdicts")
    console.print(f"written to {report.write(options.output)}")
    return 0


def end_in_order() -> None:
    """Let SIGTERM end this process as an exception does, so that the servers that it has started are
    stopped."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def console_for() -> Console:
    """A console wide enough for the tables, also where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=MIN_WIDTH)
