"""The command line as Typer knows it: help, completion in shells, and names that do not exist.

Made from the declarations that the loader reads flags by, so that help and completion cannot say other than
what is taken. Invariant: of all commands only the one that is asked about loads its declarations.
"""

import inspect
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer

from foldin.commands.output import json_output
from foldin.commands.running import COMPLETE, HELP
from foldin.commands.table import BENCH, COMMANDS, COURSE, EVALUATE, TORTURE, Command, loaded
from foldin.settings import CommonOptions
from processes.settings import HIDDEN, Setting, declarations

ABOUT = "An asynchronous recommender with a feature store."
# The mark keeps the lines as they are.
EPILOG = """\b
The first steps:
  foldin up                       everything on this machine, with a player to watch
  foldin import ratings.csv       give the running stack your own ratings
  foldin evaluate ratings.csv     how well engines predict them
  foldin doctor                   what is wrong, and what to do
  foldin COMMAND --help           what a command takes

Settings that are not flags are variables called FOLDIN_..., or stand in foldin.toml; `foldin settings` lists
them.
"""
# Where shells leave the words of a line that is to be completed.
_WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
_CONTEXT = {"help_option_names": ["-h", "--help"]}
# Typer looks which shell calls it, and takes a name only where it is told not to look.
_COMPLETIONS = ("--show-completion", "--install-completion")
_NAMED_SHELL = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"


def show(arguments: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Print help, complete a line, or say what is wrong with one. `environ`: of this process, which Typer
    reads. Raises SystemExit, always.
    """
    about = list(arguments)
    if environ.get(COMPLETE):
        about = " ".join(environ.get(name, "") for name in _WORDS).split()
    elif len(arguments) > 1 and arguments[0] in _COMPLETIONS:
        environ[_NAMED_SHELL] = "1"
    elif arguments[:1] in ([BENCH.name], [TORTURE.name]):
        # What a checkout has beside the product says itself what it takes.
        raise SystemExit(loaded(COMMANDS[arguments[0]].run)(["--help"], None))
    if arguments[:1] == [EVALUATE.name] and not environ.get(COMPLETE):
        _application([EVALUATE], about)(
            args=["evaluate", "--help"], prog_name="foldin", standalone_mode=False
        )
        print()
        _application([COURSE], about)(args=["evaluate", "--help"], prog_name="foldin")
    app = _application(list(COMMANDS.values()), about)
    if "--json" in arguments and HELP.isdisjoint(arguments) and not environ.get(COMPLETE):
        raise SystemExit(_refused(app, [each for each in arguments if each != "--json"]))
    app(args=list(arguments), prog_name="foldin")


def _refused(app: typer.Typer, arguments: list[str]) -> int:
    """Say what is wrong with a line, as a document, too; return the exit code."""
    said = StringIO()
    try:
        with redirect_stderr(said):
            app(args=arguments, prog_name="foldin")
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 2
    sys.stderr.write(said.getvalue())
    with json_output() as emit:
        emit({"error": said.getvalue().rpartition("Error: ")[2].strip(), "exit_code": code})
    return code


def _application(commands: Sequence[Command], about: Sequence[str]) -> typer.Typer:
    """Return the application; with their options, the commands that are named in `about`."""
    app = _group(ABOUT, EPILOG)
    for command in commands:
        named = command.name in about
        if command.commands:
            inner = _group(command.about)
            for each in command.commands:
                _add(inner, each, named=named and each.name in about)
            app.add_typer(inner, name=command.name, short_help=command.summary)
        else:
            _add(app, command, named=named)
    return app


def _group(about: str, epilog: str | None = None) -> typer.Typer:
    # Without rich: help comes in half the time, and can be searched.
    app = typer.Typer(
        help=about,
        epilog=epilog,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_CONTEXT,
    )
    # Of a group with one command, too.
    app.callback()(lambda: None)
    return app


def _add(app: typer.Typer, command: Command, *, named: bool) -> None:
    def described(**_options: object) -> None:
        """Take the place of the command, which runs without Typer."""

    # Typer reads a signature: this one is made from the declarations.
    found = dict(_parameters(command)) if named else {}
    described.__annotations__ = {name: each.annotation for name, each in found.items()}
    described.__signature__ = inspect.Signature(list(found.values()))  # type: ignore[attr-defined]  # as inspect reads it
    app.command(command.name, help=command.about, short_help=command.summary, context_settings=_CONTEXT)(
        described
    )


def _parameters(command: Command) -> Iterator[tuple[str, inspect.Parameter]]:
    classes = [loaded(command.options)] if command.options else []
    for cls in (*classes, CommonOptions):
        for entry, declared in declarations(cls):
            if declared.flag is None:
                continue
            # What is needed stands without brackets in the line of the usage.
            needed = declared.positional and entry.default is MISSING
            default = inspect.Parameter.empty if needed else False if declared.switch else None
            yield (
                entry.name,
                inspect.Parameter(
                    entry.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=_annotation(declared),
                ),
            )


def _annotation(declared: Setting) -> Any:
    words = declared.described
    # A path is completed with the names of files.
    kind: Any = bool if declared.switch else Path if declared.is_path else str
    options = list(declared.options)
    complete = (lambda: options) if options else None
    if declared.positional:
        argument = typer.Argument(
            metavar=declared.flag, help=words, show_default=False, autocompletion=complete
        )
        return Annotated[kind | None, argument]
    option = typer.Option(
        declared.flag,
        help=words,
        metavar=None if declared.switch else declared.metavar or "TEXT",
        show_default=False,
        hidden=declared.help == HIDDEN,
        autocompletion=complete,
    )
    return Annotated[kind if declared.switch else kind | None, option]
