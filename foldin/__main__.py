"""The `foldin` command. Which commands there are is in `foldin.commands.table`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run with any Python; this must be said in one line
    sys.exit("foldin needs Python 3.11 or newer: run it with python3.11, or install one")

import os
from collections.abc import Sequence

from foldin.commands.running import find, flush, run, stopped
from foldin.settings import no_document


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 when something failed on the way, 2 when a person must change something."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    call = find(arguments, os.environ)
    if call is None:
        # Only here: who runs a command does not wait for Typer.
        from foldin.commands.app import show

        try:
            try:
                show(arguments, os.environ)
            finally:
                flush()
        except OSError as exc:
            return stopped(exc, no_document)
        return 2
    return run(call, os.environ)


if __name__ == "__main__":
    sys.exit(main())
