"""Shows on a terminal that a benchmark goes on, and which round of a measurement it is at.

Invariant: nothing is shown, and nothing drawn, where standard error is no terminal or `hide` was called: what
a file or a program gets is the same as without it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from foldin.commands.bench import NO_BAR
from foldin.progress import Shown

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)
_bar: ContextVar[Shown | None] = ContextVar("bar", default=None)


def hide() -> None:
    """Show no bar from now on."""
    _hidden.set(True)


def flags() -> tuple[str, ...]:
    """Return what a benchmark that this process starts is told, so that it hides its bar, too."""
    return (NO_BAR,) if _hidden.get() else ()


@contextmanager
def going_on(name: str) -> Iterator[None]:
    """Show a bar while benchmark `name` is at work."""
    with Shown(f"Measuring {name}", hidden=_hidden.get()) as bar:
        token = _bar.set(bar)
        try:
            yield
        finally:
            _bar.reset(token)


def turns(rounds: int) -> Iterator[int]:
    """Yield the numbers of the rounds of one measurement, from 0 on, and show how many have ended."""
    bar = _bar.get()
    for turn in range(rounds):
        if bar is not None:
            bar.done(turn, rounds)
        yield turn
    if bar is not None:
        # What comes next may be another measurement, or none.
        bar.done(0, None)
