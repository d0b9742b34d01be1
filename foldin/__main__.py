"""The `foldin` command. Each subcommand imports what it needs when it is called."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run with any Python; this must be said in one line
    sys.exit("foldin needs Python 3.11 or newer: run it with python3.11, or install one")

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from foldin.errors import ImportStoppedError
from foldin.settings import FrontDoorSettings, ImportOptions, StackOptions
from processes.errors import CannotStartError, StackFailedError
from processes.settings import add_flags

EPILOG = """\
The first steps:
  foldin up                       everything on this machine, with a player to watch
  foldin import ratings.csv       give the running stack your own ratings
  foldin evaluate ratings.csv     how well engines predict them
  foldin COMMAND --help           what a command takes

Settings that are not flags are environment variables called FOLDIN_...; `foldin settings` lists them.
"""

Command = Callable[[argparse.Namespace, Sequence[str]], int]


def _up(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from foldin.up import up

    return up(_options(StackOptions, args), FrontDoorSettings.from_environment(os.environ))


def _import(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from foldin.importing import run_import

    return run_import(_options(ImportOptions, args), FrontDoorSettings.from_environment(os.environ))


def _options(cls: type[Any], args: argparse.Namespace) -> Any:
    return cls(**{entry.name: getattr(args, entry.name) for entry in fields(cls)})


def _evaluate(_args: argparse.Namespace, rest: Sequence[str]) -> int:
    from foldin.evaluating import evaluate_file

    if rest and not rest[0].startswith("-"):
        return evaluate_file(rest)
    from evaluation.course.protocol import main as evaluate_in_environment
    from evaluation.players.model import model_players

    if rest and rest[0] in {"-h", "--help"}:
        with suppress(SystemExit):  # printed; the other form follows
            evaluate_file(["--help"])
        print("\nWithout FILE, the course's protocol in the rating environment:\n")
    return evaluate_in_environment(rest, model_players())


def _bench(_args: argparse.Namespace, rest: Sequence[str]) -> int:
    from foldin.bench import bench

    return bench(rest)


def _settings(_args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from foldin.settings import settings_reference

    print(settings_reference(), end="")
    return 0


def _version(_args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from importlib.metadata import version

    print(f"foldin {version('foldin')} (Python {sys.version.split()[0]})")
    return 0


def build_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line. Settings that are also flags take their defaults from `environ`; a flag wins."""
    parser = argparse.ArgumentParser(
        prog="foldin",
        description="An asynchronous recommender with a feature store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name: str, run: Command, summary: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=description)
        sub.set_defaults(run=run)
        return sub

    up = command(
        "up",
        _up,
        "run everything on this machine",
        "Run the whole stack on this machine: an embedded Valkey, the trainer, the service, the rating "
        "environment, and a player to watch. Ctrl-C ends it. Started again on the same data, everything is "
        "still known.",
    )
    _add_up_flags(up, environ)
    imports = command(
        "import",
        _import,
        "give a running Foldin the ratings of a file",
        "Import ratings: MovieLens (u.data, ratings.dat, ratings.csv), RecBole (.inter), CSV and Parquet "
        "with named columns, each also gzipped. Importing again does no harm: the last rating of a user for "
        "an item counts.",
    )
    _add_import_flags(imports, environ)
    command(
        "evaluate",
        _evaluate,
        "compare engines on a file of ratings, or players in the environment",
        "With a FILE: split its ratings and compare engines on those held out. Without: play the course's "
        "protocol, 1,000 steps in 3 independent runs, mean squared error.",
    )
    command("bench", _bench, "measure speed and accuracy (from a checkout)", "Run a benchmark.")
    command("settings", _settings, "print every setting", "Print all settings, as Markdown.")
    command("version", _version, "print the version", "Print the version of foldin and of Python.")
    return parser


def _add_up_flags(sub: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    add_flags(sub, StackOptions, environ)
    play = sub.add_mutually_exclusive_group()
    play.add_argument("--no-play", dest="play", action="store_false", help="do not let a player play")
    play.add_argument(
        "--play", dest="play", action="store_true", help="play even if the store holds ratings already"
    )
    sub.set_defaults(play=None)


def _add_import_flags(sub: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    add_flags(sub, ImportOptions, environ)
    target = sub.add_mutually_exclusive_group()
    target.add_argument(
        "--url", metavar="URL", help="hand the ratings to the API at this address, as any client would"
    )
    target.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="write to the store of the stack that runs on this directory (default: ./data, if one runs "
        "there; else the store in FOLDIN_REDIS_URL; else the API on http://127.0.0.1:8080)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 when something failed on the way, 2 when a person must change something."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before any import of a subcommand: help and a wrong flag must answer at once.
    parser = build_parser(os.environ)
    # These have a command line of their own, `--help` included.
    if arguments and arguments[0] in {"evaluate", "bench"}:
        args, rest = parser.parse_args(arguments[:1]), arguments[1:]
    else:
        args, rest = parser.parse_args(arguments), []
    run: Command = args.run
    try:
        return run(args, rest)
    except CannotStartError as exc:
        print(f"foldin: {exc}", file=sys.stderr)
        return 2
    except (StackFailedError, ImportStoppedError) as exc:
        print(f"foldin: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
