"""Shows on a terminal that a command goes on, and how far it is; nothing where standard error is none."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from foldin.files.progress import bar


class Shown:
    """One command, within a `with`: a bar that moves until it is known how much there is to do."""

    def __init__(self, what: str, *, hidden: bool = False) -> None:
        """`hidden`: show nothing."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = bar(*columns, hidden=hidden)
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Show a line at once, above the bar."""
        print(text, flush=True)

    def done(self, done: int, total: int | None) -> None:
        """Show how much of all is done; of an unknown `total` only that it goes on."""
        self._bar.update(self._task, completed=done)
        # `update` takes None for what it was.
        self._bar.tasks[0].total = total
