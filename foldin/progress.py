"""Shows on a terminal that a command goes on, and how far it is; elsewhere nothing, but for an import, of
which a line stands in a log now and then.
"""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 5.0  # in a log file
# Often enough for a second hand; a benchmark wants its core for itself.
REFRESHED_PER_S = 4.0


def bar(*columns: ProgressColumn, hidden: bool = False) -> Progress:
    """Return a bar of these columns, which is removed at its end: what was done is said in a line. With
    `--json` it shows nothing.
    """
    console = Console(stderr=True, highlight=False)
    # As `foldin.commands.output` has it.
    as_json = sys.stdout is sys.stderr
    # What is said meanwhile stands above it, where both are one terminal, and goes where it belongs where
    # standard output is a file.
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=hidden or as_json or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
        refresh_per_second=REFRESHED_PER_S,
    )


class _Barred:
    """Has a bar while it is within a `with`."""

    _bar: Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class Shown(_Barred):
    """One command, within a `with`: a bar that moves until it is known how much there is to do."""

    def __init__(self, what: str, *, hidden: bool = False) -> None:
        """`hidden`: show nothing."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = bar(*columns, hidden=hidden)
        self._task = self._bar.add_task(what, total=None)

    def say(self, text: str) -> None:
        """Show a line at once, above the bar."""
        print(text, flush=True)

    def done(self, done: int, total: int | None, what: str | None = None) -> None:
        """Show how much of all is done; of an unknown `total` only that it goes on. `what`: is done now."""
        self._bar.update(self._task, completed=done, description=what)
        # `update` takes None for what it was.
        self._bar.tasks[0].total = total


class ImportProgress(_Barred):
    """One pass over a file, shown within a `with`."""

    def __init__(self, console: Console, what: str, total_bytes: int) -> None:
        self._console = console
        self._what = what
        self._total_bytes = max(total_bytes, 1)
        self._began = time.monotonic()
        self._next_line = self._began + LINE_EVERY_S
        self._note = ""
        self._bar = bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[ratings]:,} ratings, {task.fields[rate]:,.0f} a second"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._task = self._bar.add_task(what, total=self._total_bytes, ratings=0, rate=0.0, note="")

    def update(self, position: int, ratings: int) -> None:
        """Show the position in bytes and the ratings so far."""
        now = time.monotonic()
        rate = ratings / max(now - self._began, 1e-6)
        self._bar.update(self._task, completed=position, ratings=ratings, rate=rate, note=self._note)
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            share = min(100 * position / self._total_bytes, 100)
            self._console.print(
                f"{self._what}: {share:.0f} %, {ratings:,} ratings, {rate:,.0f} a second"
                f" {self._note}".rstrip(),
                highlight=False,
            )

    def note(self, text: str) -> None:
        """Show a remark beside the progress until it is replaced by another, or by none."""
        # In a log a remark stands once, however often it is repeated.
        if text and text != self._note and self._bar.disable:
            self._console.print(text, highlight=False)
        self._note = text
        self._bar.update(self._task, note=text)
