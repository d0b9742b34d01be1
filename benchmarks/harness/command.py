"""The command line that all benchmarks share: measure, judge whether the machine was quiet, print, write.

Invariant: exit code 0 only when figures were reported; 3 when the machine was too busy to tell, and then
nothing is written; 2 when the benchmark could not run, with one line that says why.
"""

import argparse
import asyncio
import functools
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.errors import BenchmarkError
from benchmarks.harness.machine import Watch
from benchmarks.harness.report import Report, Row
from evaluation.report import new_console


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
        """Return `full` at this scale, never under `least`."""
        return max(least, round(full * self.scale))


Measure = Callable[..., Sequence[Row]]
Main = Callable[[Sequence[str]], int]


def bare_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser without flags, described by the first line of `doc`."""
    return argparse.ArgumentParser(prog=f"foldin bench {name}", description=(doc or "").partition("\n")[0])


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of the flags that every benchmark has."""
    flags = bare_parser(name, doc)
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
    """Return the shared part of parsed flags."""
    return Options(**{field.name: getattr(flags, field.name) for field in fields(Options)})


def benchmark(name: str, doc: str | None, measure: Measure, **sizes: int) -> Main:
    """Return the `main` of a benchmark: parse the flags, measure, report.

    `sizes`: arguments of `measure` that have a flag of their own, with their defaults.
    """

    def main(argv: Sequence[str]) -> int:
        flags = parser(name, doc)
        for size, default in sizes.items():
            flags.add_argument(f"--{size}", type=_count, default=default)
        found = flags.parse_args(argv)
        chosen = {size: getattr(found, size) for size in sizes}
        return carry_out(name, functools.partial(measure, **chosen), options_from(found))

    return main


class Findings(Protocol):
    """What a campaign found. `wrong`: how many things were found that must not be."""

    @property
    def wrong(self) -> int: ...

    def lines(self) -> list[str]: ...


def carry_out_campaign(
    campaign: Callable[..., Coroutine[Any, Any, Findings]], flags: argparse.Namespace
) -> int:
    """Run a campaign, given the values of its flags and a folder for its data; 1 where anything was wrong."""
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="foldin-campaign-") as folder:
        found = asyncio.run(campaign(**vars(flags), data=Path(folder)))
    print("\n".join(found.lines()))
    return 1 if found.wrong else 0


def carry_out(name: str, measure: Measure, options: Options) -> int:
    """Measure and report; return the exit code."""
    console = new_console()
    end_in_order()
    watch = Watch()
    try:
        rows = measure(options, console)
    except BenchmarkError as exc:
        print(f"foldin bench {name}: {exc}", file=sys.stderr)
        return 2
    settings = {name: getattr(options, name) for name in ("seconds", "rounds", "scale", "seed", "pin")}
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
    # Python takes signals in the main thread only; tests run benchmarks in others.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)
