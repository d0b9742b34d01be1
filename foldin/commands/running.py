"""Runs a command: its name, its file of settings, its options, its exit code.

Invariant: a command whose flags are right loads neither Typer nor rich for it; help, completion and names
that do not exist are Typer's (`foldin.commands.app`). Flags are read by the same loader as the variables of
every process, which reports all mistakes together.
"""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC, EPIPE

from foldin.commands.output import Emit, json_output
from foldin.commands.table import COMMANDS, Command, loaded
from foldin.errors import StoppedError
from foldin.settings import FrontDoorSettings, no_document
from processes.configuration import configured
from processes.errors import CannotStartError, StackFailedError
from processes.settings import load

HELP = {"-h", "--help"}
# Set by the completion scripts of shells, as click has named it: the program in capitals.
COMPLETE = "_FOLDIN_COMPLETE"
# What output fails with that has no reader, or no room.
_NOT_WRITTEN = {EPIPE, ENOSPC, EDQUOT, EFBIG}
INTERRUPTED = 130  # exit code of a shell's command that SIGINT ended


@dataclass(frozen=True, slots=True)
class Call:
    """A command that was called, by its whole name, with the arguments behind it."""

    name: str
    command: Command
    arguments: list[str]


def find(arguments: Sequence[str], environ: Mapping[str, str]) -> Call | None:
    """Return which command is called; None where there is none to run: for help, completion, or a wrong
    name.
    """
    # Wherever it stands, before the name of a command, too.
    as_json = ["--json"] if "--json" in arguments else []
    words = [each for each in arguments if each != "--json"]
    if words == ["--version"]:
        # As every program is asked.
        words = ["version"]
    if environ.get(COMPLETE) or not words or words[0] not in COMMANDS:
        return None
    command, rest = COMMANDS[words[0]], words[1:]
    name = f"foldin {command.name}"
    if command.commands:
        inner = {each.name: each for each in command.commands}
        if not rest or rest[0] not in inner:
            return None
        command = inner[rest.pop(0)]
        name += f" {command.name}"
    # What is behind the name of a benchmark is that one's.
    told = rest if command.options else rest[:1]
    return None if HELP & set(told) else Call(name, command, rest + as_json)


def run(call: Call, environ: Mapping[str, str]) -> int:
    """Run a command; return the exit code: 0, 1 when something failed on the way, 2 when a person must
    change something.
    """
    # Both before the options: a mistake in these, or in the file, is told as JSON, too.
    if "--json" not in call.arguments:
        return _ended(call, environ, no_document)
    call.arguments.remove("--json")
    with json_output() as emit:
        return _ended(call, environ, emit)


def _ended(call: Call, environ: Mapping[str, str], emit: Emit) -> int:
    try:
        code = _run(call, environ, emit)
        # Here, not at the exit of Python, which could not say so any more.
        flush()
        return code
    except CannotStartError as exc:
        return _failed(exc, 2, emit)
    except (StackFailedError, StoppedError) as exc:
        return _failed(exc, 1, emit)
    except KeyboardInterrupt:
        emit({"error": "interrupted", "exit_code": INTERRUPTED})
        return INTERRUPTED
    except Exception as exc:  # noqa: BLE001  # the edge of the process: what is wrong is said as JSON, too
        return stopped(exc, emit)


def flush() -> None:
    """Write what waits of standard output. Raises OSError where there is no room for it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # All was done; a reader that has enough, as `head`, is no failure.
        _give_up_output()


def _give_up_output() -> None:
    """Send standard output nowhere: Python writes what is left of it at its exit, and would fail again."""
    # That of the process: with `--json` the name leads to standard error.
    if sys.__stdout__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


def _run(call: Call, environ: Mapping[str, str], emit: Emit) -> int:
    command = call.command
    # `--config` is taken out: the options of no command have it.
    arguments, variables = configured(call.arguments, environ)
    told: object = arguments
    if not command.raw:
        told = load(loaded(command.options), arguments, variables, command=call.name, about=command.about)
    code: int = loaded(command.run)(told, FrontDoorSettings.from_environment(variables, emit))
    return code


def stopped(error: Exception, emit: Emit) -> int:
    """Say what a command did not expect; with where it was, but for output that cannot be written. Return the
    exit code.
    """
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        _give_up_output()
        why = "nothing reads what it prints" if error.errno == EPIPE else error.strerror
        where = f" ({error.filename})" if error.filename else ""
        return _failed(OSError(f"stopped: {why}{where}"), 1, emit)
    traceback.print_exception(error)
    return _failed(RuntimeError(f"a mistake of Foldin's: {type(error).__name__}: {error}"), 1, emit)


def _failed(error: Exception, code: int, emit: Emit) -> int:
    # People read the one, programs the other.
    print(f"foldin: {error}", file=sys.stderr)
    with suppress(OSError):  # of a full disk the code tells
        emit({"error": str(error), "exit_code": code})
    return code
