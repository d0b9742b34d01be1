"""The `foldin` command. Each subcommand imports what it needs when it is called."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run with any Python; this must be said in one line
    sys.exit("foldin needs Python 3.11 or newer: run it with python3.11, or install one")

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from foldin.errors import ImportStoppedError
from processes.errors import CannotStartError, StackFailedError

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
    from foldin.settings import FrontDoorSettings
    from foldin.up import StackOptions, up

    options = StackOptions(
        data=args.data,
        host=args.host,
        port=args.port,
        environment_port=args.environment_port,
        workers=args.workers,
        play=args.play,
    )
    return up(options, FrontDoorSettings.from_environment(os.environ))


def _import(args: argparse.Namespace, _rest: Sequence[str]) -> int:
    from foldin.importing import ImportOptions, run_import
    from foldin.settings import FrontDoorSettings

    options = ImportOptions(
        path=args.file,
        url=args.url,
        data=args.data,
        format=args.format,
        columns=args.columns,
        on_bad=args.on_bad,
        resume=args.resume,
    )
    return run_import(options, FrontDoorSettings.from_environment(os.environ))


def _evaluate(_args: argparse.Namespace, rest: Sequence[str]) -> int:
    if rest and not rest[0].startswith("-"):
        from evaluation.command import options_from, run_evaluate

        return run_evaluate(options_from(rest, _columns), rest)
    from evaluation.course.protocol import main as evaluate
    from evaluation.players.model import model_players

    if rest and rest[0] in {"-h", "--help"}:
        from evaluation.command import build_parser

        build_parser().print_help()
        print("\nWithout FILE, the course's protocol in the rating environment:\n")
    return evaluate(list(rest), model_players())


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


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse


def _columns(text: str) -> dict[str, str]:
    columns: dict[str, str] = {}
    for part in text.split(","):
        name, equals, column = part.partition("=")
        if not equals or not column or name not in {"user", "item", "rating", "timestamp"} or name in columns:
            raise argparse.ArgumentTypeError(
                "must look like user=NAME,item=NAME,rating=NAME,timestamp=NAME (timestamp may be left out; "
                "numbers are positions in a file without a header)"
            )
        columns[name] = column
    if not {"user", "item", "rating"} <= set(columns):
        raise argparse.ArgumentTypeError("must name user, item and rating")
    return columns


def build_parser(environ: "os._Environ[str] | dict[str, str]") -> argparse.ArgumentParser:
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
        sub.set_defaults(run=run, passes_on=False)
        return sub

    sub = command(
        "up",
        _up,
        "run everything on this machine",
        "Run the whole stack on this machine: an embedded Valkey, the trainer, the service, the rating "
        "environment, and a player to watch. Ctrl-C ends it. Started again on the same data, everything is "
        "still known.",
    )
    port = _number(1, 65_535)
    sub.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="where the data lives (default: ./data)",
    )
    play = sub.add_mutually_exclusive_group()
    play.add_argument("--no-play", dest="play", action="store_false", help="do not let a player play")
    play.add_argument(
        "--play", dest="play", action="store_true", help="play even if the store holds ratings already"
    )
    sub.set_defaults(play=None)
    sub.add_argument(
        "--workers",
        type=_number(1, 256),
        default=environ.get("FOLDIN_WORKERS", "1"),
        metavar="N",
        help="processes of the service (default: %(default)s)",
    )
    sub.add_argument(
        "--host",
        default=environ.get("FOLDIN_HOST", "127.0.0.1"),
        help="address to listen on (default: %(default)s, this machine only)",
    )
    sub.add_argument(
        "--port",
        type=port,
        default=environ.get("FOLDIN_PORT", "8080"),
        help="port of the API and its page (default: %(default)s)",
    )
    sub.add_argument(
        "--environment-port",
        type=port,
        default=environ.get("FOLDIN_ENVIRONMENT_PORT", "8081"),
        metavar="PORT",
        help="port of the rating environment (default: %(default)s)",
    )

    sub = command(
        "import",
        _import,
        "give a running Foldin the ratings of a file",
        "Import ratings: MovieLens (u.data, ratings.dat, ratings.csv), RecBole (.inter), CSV and Parquet "
        "with named columns, each also gzipped. Importing again does no harm: the last rating of a user for "
        "an item counts.",
    )
    sub.add_argument("file", type=Path, metavar="FILE")
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
    sub.add_argument(
        "--format",
        choices=("auto", "movielens", "recbole", "csv", "parquet"),
        default="auto",
        help="(default: auto)",
    )
    sub.add_argument(
        "--columns",
        type=_columns,
        metavar="user=..,item=..,rating=..,timestamp=..",
        help="names of the columns in a CSV or Parquet file; numbers are positions in a CSV file without a "
        "header",
    )
    sub.add_argument(
        "--on-bad",
        choices=("refuse", "skip"),
        default="refuse",
        help="bad rows: write nothing if there is one (the file is then read twice), or leave them out "
        "(default: %(default)s)",
    )
    sub.add_argument("--resume", action="store_true", help="go on where an import of this file was stopped")

    sub = command(
        "evaluate",
        _evaluate,
        "compare engines on a file of ratings, or players in the environment",
        "With a FILE: split its ratings and compare engines on those not seen. Without: play the course's "
        "protocol, 1,000 steps in 3 independent runs, mean squared error.",
    )
    sub.set_defaults(passes_on=True)
    sub = command(
        "bench", _bench, "measure speed and accuracy (from a checkout)", "Run a benchmark of the checkout."
    )
    sub.set_defaults(passes_on=True)
    command("settings", _settings, "print every setting", "Print all settings, as Markdown.")
    command("version", _version, "print the version", "Print the version of foldin and of Python.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    0, 1 when something failed on the way, 2 when a person must change something first.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
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
