"""The `foldin` command. Each subcommand imports what it needs when it is called."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run with any Python; this must be said in one line
    sys.exit("foldin needs Python 3.11 or newer: run it with python3.11, or install one")

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from foldin.errors import ImportStoppedError
from foldin.recovery.errors import RecoveryStoppedError
from foldin.settings import (
    BackupOptions,
    FrontDoorSettings,
    ImportOptions,
    RestoreOptions,
    StackOptions,
    TortureOptions,
    UndoOptions,
    VerifyOptions,
)
from processes.errors import CannotStartError, StackFailedError
from processes.settings import load

EPILOG = """\
The first steps:
  foldin up                       everything on this machine, with a player to watch
  foldin import ratings.csv       give the running stack your own ratings
  foldin evaluate ratings.csv     how well engines predict them
  foldin COMMAND --help           what a command takes

Settings that are not flags are environment variables called FOLDIN_...; `foldin settings` lists them.
"""


# Every import inside a function here keeps the start short: help and a wrong flag answer in a tenth of a
# second, before numpy and aiohttp are loaded, and the supervisor of a stack never loads them.


def _up(argv: Sequence[str]) -> int:
    about = (
        "Run the whole stack on this machine: an embedded Valkey, the trainer, the service, the rating "
        "environment, and a player to watch. Ctrl-C ends it. Started again on the same data, everything is "
        "still known."
    )
    options = load(StackOptions, argv, os.environ, command="foldin up", about=about)
    from foldin.up import up

    return up(options, FrontDoorSettings.from_environment(os.environ))


def _import(argv: Sequence[str]) -> int:
    about = (
        "Import ratings: MovieLens (u.data, ratings.dat, ratings.csv), RecBole (.inter), CSV and Parquet "
        "with named columns, each also gzipped. Importing again does no harm: the last rating of a user for "
        "an item counts. With --items, titles, categories and attributes of items for the catalogue."
    )
    options = load(ImportOptions, argv, os.environ, command="foldin import", about=about)
    settings = FrontDoorSettings.from_environment(os.environ)
    if options.items:
        from foldin.files.item_import import run_item_import

        return run_item_import(options, settings)
    from foldin.importing import run_import

    return run_import(options, settings)


def _evaluate(argv: Sequence[str]) -> int:
    from foldin.evaluating import evaluate_file

    # FILE comes first: neither form knows the flags of the other.
    if argv and not argv[0].startswith("-"):
        return evaluate_file(argv)
    from evaluation.course.protocol import main as evaluate_in_environment
    from evaluation.players.model import model_players

    if argv and argv[0] in {"-h", "--help"}:
        with suppress(SystemExit):  # printed; the other form follows
            evaluate_file(["--help"])
        print("\nWithout FILE, the course's protocol in the rating environment:\n")
    return evaluate_in_environment(argv, model_players())


def _backup(argv: Sequence[str]) -> int:
    about = (
        "Back up all ratings and items, as of now, into a folder, while everything runs. Again into the same "
        "folder only what is new is copied. `foldin restore DIR` makes a whole store of it."
    )
    options = load(BackupOptions, argv, os.environ, command="foldin backup", about=about)
    from foldin.recovering import run_backup

    return run_backup(options, FrontDoorSettings.from_environment(os.environ))


def _restore(argv: Sequence[str]) -> int:
    about = (
        "Bring the ratings of an archive, a backup or an entry of the trash into the store: they become the "
        "live history, with the ratings that only the store knows on top. The history that was live answers "
        "until then, and goes to the trash. Stopped at any point, run it again."
    )
    options = load(RestoreOptions, argv, os.environ, command="foldin restore", about=about)
    from foldin.recovering import run_restore

    return run_restore(options, FrontDoorSettings.from_environment(os.environ))


def _undo(argv: Sequence[str]) -> int:
    about = (
        "Without a name: list the histories in the trash. With one: make that history live again, with the "
        "ratings on top that came in since by other ways than POST /train."
    )
    options = load(UndoOptions, argv, os.environ, command="foldin undo", about=about)
    from foldin.recovering import run_undo

    return run_undo(options, FrontDoorSettings.from_environment(os.environ))


def _verify(argv: Sequence[str]) -> int:
    about = (
        "Compare the store with its archive, user by user, while everything runs; exit code 1 where they "
        "differ. Users who rate meanwhile are counted, not compared."
    )
    options = load(VerifyOptions, argv, os.environ, command="foldin verify", about=about)
    from foldin.recovering import run_verify

    return run_verify(options, FrontDoorSettings.from_environment(os.environ))


def _torture(argv: Sequence[str]) -> int:
    about = (
        "Torture a stack of its own: clients rate, forget, ask and train while processes are killed and "
        "frozen, connections cut, clocks moved, disks filled and the power cut. Every answer, the store and "
        "the archive are held against what was acknowledged; exit code 1 where anything is wrong. Needs a C "
        "compiler, and Linux."
    )
    options = load(TortureOptions, argv, os.environ, command="foldin torture", about=about)
    from foldin.torture.campaign import run_torture

    return run_torture(options, FrontDoorSettings.from_environment(os.environ))


def _bench(argv: Sequence[str]) -> int:
    from foldin.bench import bench

    return bench(argv)


def _keys(argv: Sequence[str]) -> int:
    from foldin.keys import keys

    return keys(argv, os.environ)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Those of a command that takes none: any argument is refused."""


def _settings(argv: Sequence[str]) -> int:
    load(NoOptions, argv, {}, command="foldin settings", about="Print all settings, as Markdown.")
    from foldin.reference import settings_reference

    print(settings_reference(), end="")
    return 0


def _version(argv: Sequence[str]) -> int:
    load(NoOptions, argv, {}, command="foldin version", about="Print the version of foldin and of Python.")
    from importlib.metadata import version

    print(f"foldin {version('foldin')} (Python {sys.version.split()[0]})")
    return 0


# What runs each command with the arguments behind its name, and what the list of commands says of it.
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "up": (_up, "run everything on this machine"),
    "import": (_import, "give a running Foldin the ratings of a file"),
    "backup": (_backup, "copy all ratings into a folder, while everything runs"),
    "restore": (_restore, "bring the ratings of an archive or a backup back"),
    "undo": (_undo, "bring a history back that was replaced"),
    "verify": (_verify, "compare the store with its archive"),
    "torture": (_torture, "check that faults lose nothing, on a stack of its own"),
    "evaluate": (_evaluate, "compare engines on a file of ratings, or players in the environment"),
    "bench": (_bench, "measure speed and accuracy (from a checkout)"),
    "keys": (_keys, "make, list and remove keys of the API"),
    "settings": (_settings, "print every setting"),
    "version": (_version, "print the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 when something failed on the way, 2 when a person must change something."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="foldin",
        description="An asynchronous recommender with a feature store.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        listed.add_parser(name, help=summary, add_help=False)
    # The name alone: a command reads what follows itself, and reports all that is wrong with it together.
    run, _ = COMMANDS[parser.parse_args(arguments[:1]).command]
    try:
        return run(arguments[1:])
    except CannotStartError as exc:
        print(f"foldin: {exc}", file=sys.stderr)
        return 2
    except (StackFailedError, ImportStoppedError, RecoveryStoppedError) as exc:
        print(f"foldin: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
