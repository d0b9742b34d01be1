"""What `--json` prints. Invariant: standard output has JSON alone, whatever a command or its children print:
all that is said goes to standard error meanwhile.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

Emit = Callable[[object], None]


@contextmanager
def json_output() -> Iterator[Emit]:
    """Take standard output away from all that is said within, and yield what prints a document on it."""
    with _kept(sys.stdout) as out, redirect_stdout(sys.stderr):

        def emit(document: object) -> None:
            text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False, default=_plain)
            # A reader that went away is no failure of the command.
            with suppress(BrokenPipeError):
                # A lone surrogate, as in the name of a file that is no UTF-8, is escaped.
                out.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
                out.flush()

        yield emit


@contextmanager
def _kept(stdout: TextIO) -> Iterator[TextIO]:
    """Yield standard output by another name; its own is standard error meanwhile, for children, too."""
    try:
        number, other = stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # as one that a test has put there
        yield stdout
        return
    stdout.flush()
    kept = os.dup(number)
    os.dup2(other, number)
    out = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    try:
        yield out
    finally:
        # Each document was flushed, and its failure told then.
        with suppress(OSError):
            out.close()
        os.dup2(kept, number)
        os.close(kept)


def _finite(value: object) -> object:
    """Return a document in which null takes the place of what is no number: JSON has none."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: _finite(each) for name, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not printed as JSON")
