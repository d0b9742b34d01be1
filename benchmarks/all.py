"""Runs every benchmark, one process each, and says at the end which rows were met.

Invariant: one that fails, or finds the machine too busy, does not keep the others from running.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.command import Options, read
from benchmarks.harness.progress import flags
from evaluation.report import new_console, new_table
from processes.blocking import BlockingChild, python_command
from processes.settings import setting

SPEED = (
    "predict",
    "batch",
    "recommend",
    "ratings",
    "fit",
    "refit",
    "publish",
    "growth",
    "start",
    "overload",
    "cluster",
)
# Past what the longest of them takes: one that hangs must not keep the others from running.
LIMIT_S = 3600.0
VERDICTS = ("met", "floor", "missed", "skipped")
OUTCOMES = {0: "reported", 1: "failed", 2: "cannot run here", 3: "too busy to tell"}


@dataclass(frozen=True, slots=True)
class AllOptions(Options):
    """What each benchmark is given, and whether errors are measured, too."""

    no_accuracy: bool = setting(False, "leave the errors out")


def main(argv: Sequence[str]) -> int:
    """Pass the flags on to each benchmark; return the worst of their exit codes."""
    options = read(AllOptions, "all", __doc__, argv)
    passed = [argument for argument in argv if argument != "--no-accuracy"]
    console = new_console()
    codes: dict[str, int] = {}
    names = (*SPEED, *(("accuracy",) if not options.no_accuracy else ()))
    for number, name in enumerate(names, 1):
        console.print(f"{name}, benchmark {number} of {len(names)}", style="dim")
        codes[name] = _run(name, passed)
    headings = ("benchmark", "outcome", *VERDICTS)
    shown = new_table("all benchmarks", headings, left=headings[:2])
    for name, code in codes.items():
        counts = _verdicts(options.output / f"{name}.json") if code == 0 else {}
        cells = [str(counts.get(verdict, "")) for verdict in VERDICTS]
        shown.add_row(name, OUTCOMES.get(code, f"exit code {code}"), *cells)
    console.print(shown)
    # Of one that a signal has ended the code is negative, and no better for that.
    return max(codes.values(), key=abs)


def _run(name: str, arguments: Sequence[str]) -> int:
    # A process each: what one leaves in memory is not the next one's.
    child = BlockingChild(python_command("benchmarks", *flags(), name, *arguments), None)
    try:
        return child.wait(LIMIT_S)
    except TimeoutError:
        print(f"foldin bench {name}: not done after {LIMIT_S:.0f} s", file=sys.stderr)
        return 1
    finally:
        # Time to end the servers that it has started, one after the other.
        child.end(grace_s=30.0)


def _verdicts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    if path.is_file():
        for row in json.loads(path.read_text())["rows"]:
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    return counts
