"""Which commands there are, as data: what runs each, and what declares its options, by the names of modules.

Invariant: nothing here is imported before the command that needs it is called. Help and a wrong flag answer
in a tenth of a second, before numpy and aiohttp are loaded, and the supervisor of a stack never loads them.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from processes import module_name


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or one of a group. `run`: `module:function`, which takes the options and the
    FrontDoorSettings, and returns the exit code. `options`: `module:class` of the options. `raw`: the
    function takes the arguments as they are. `usage`: what they are, without options. `prints`: what `--json`
    prints. `commands`: of a group, which runs none itself.
    """

    name: str
    summary: str
    about: str
    run: str = ""
    options: str = ""
    prints: str = ""
    usage: str = ""
    raw: bool = False
    commands: tuple["Command", ...] = ()


def loaded(name: str) -> Any:
    """Return what `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module_name(module)), attribute)


# What is said of a command is in the present tense of `foldin --help`, and wrapped by who shows it.
UP = Command(
    "up",
    "run everything on this machine",
    "Run the whole stack on this machine: an embedded Valkey, the trainer, the service, and a rating "
    "environment of simulated users, in which a player predicts and learns, to be watched; it plays where no "
    "ratings are stored yet. Ctrl-C ends it. Started again on the same data, everything is still known.",
    "foldin.up:up",
    "foldin.settings:StackOptions",
    "a line when all runs (`event` is `ready`, with `api`, `environment`, `data`), and one at the end "
    "(`stopped`)",
)
IMPORT = Command(
    "import",
    "give a running Foldin the ratings of a file",
    "Import ratings: MovieLens (u.data, ratings.dat, ratings.csv), RecBole (.inter), CSV and Parquet with "
    "named columns, NDJSON as `foldin export` writes it; text also gzipped. Importing again does no harm: "
    "the last rating of a user for an item counts. With --items, titles, categories and attributes of items "
    "for the catalogue: what was hidden or deleted there stays so, where the file does not say `hidden`. "
    "With --users, attributes of users.",
    "foldin.importing:run_any_import",
    "foldin.settings:ImportOptions",
    "`file`, `target`, `written`, `left_out` (rows; with --items or --users values), `seconds`; with --items "
    "or --users `still_deleted`, of those written; a dry run of ratings has `ratings`, "
    "`users`, `items` and `scale`, too",
)
EXPORT = Command(
    "export",
    "write ratings, items or users of a running Foldin to a file",
    "Export from the API of a running Foldin as NDJSON, CSV or Parquet, which `foldin import` reads; the API "
    "takes NDJSON, too. A file is there whole or not at all; one that breaks off is begun again. Before an "
    "empty store imports it, give that by `PUT /schema` what `GET /schema` answers: CSV has no types.",
    "foldin.commands.export.run:run_export",
    "foldin.settings:ExportOptions",
    "`what`, `rows`, `file`, `format`, `bytes`, `seconds`; without --output the rows themselves",
)
EVALUATE = Command(
    "evaluate",
    "compare engines on a file of ratings, or players in the environment",
    "Compare engines on the ratings of a file: a part is learned, the rest is predicted.",
    "foldin.evaluating:run_evaluate",
    "foldin.evaluating:EvaluateOptions",
    "a line for each engine and split as it is finished; without FILE one document",
    raw=True,
)
# Described beside it; what runs both is that of `evaluate`, which tells them apart.
COURSE = Command(
    "evaluate",
    "",
    "Without FILE, the course's protocol in the rating environment.",
    options="evaluation.course.settings:EvaluationSettings",
)
BENCH = Command(
    "bench",
    "measure speed and accuracy (from a checkout)",
    "Run the benchmark NAME with the arguments behind it; without a name all of them. --list names them.",
    "foldin.commands.bench:run_bench",
    prints="`benchmark`, `exit_code`, `seconds`; with --list `benchmarks`",
    usage="[NAME [ARGUMENTS]]",
    raw=True,
)
BACKUP = Command(
    "backup",
    "copy all ratings into a folder, while everything runs",
    "Back up all ratings and items, as of now, into a folder, while everything runs. Again into the same "
    "folder only what is new is copied. `foldin restore DIR` makes a whole store of it.",
    "foldin.recovering:run_backup",
    "foldin.settings:BackupOptions",
    "`folder`, `identity`, `epoch`, `events`, `items`, `files`, `bytes`, `created`",
)
RESTORE = Command(
    "restore",
    "bring the ratings of an archive or a backup back",
    "Bring the ratings of an archive, a backup or an entry of the trash into the store: they become the live "
    "history, with the ratings that only the store knows on top. The history that was live answers until "
    "then, and goes to the trash. Stopped at any point, run it again.",
    "foldin.recovering:run_restore",
    "foldin.settings:RestoreOptions",
    "`source`, `dry_run`, and `generation`, null where nothing went live",
)
UNDO = Command(
    "undo",
    "bring a history back that was replaced",
    "Without a name: list the histories in the trash. With one: make that history live again, with the "
    "ratings on top that came in since by other ways than POST /train.",
    "foldin.recovering:run_undo",
    "foldin.settings:UndoOptions",
    "`entries`, or as `restore`",
)
VERIFY = Command(
    "verify",
    "compare the store with its archive",
    "Compare the store with its archive, user by user, while everything runs; exit code 1 where they "
    "differ. Users who rate meanwhile are counted, not compared.",
    "foldin.recovering:run_verify",
    "foldin.settings:VerifyOptions",
    "`same`, `users`, `ratings`, `moved`, `count` of differences, and the first of these",
)
DOCTOR = Command(
    "doctor",
    "look for what is wrong, and say what to do",
    "Look at the store, the service, the trainer, clocks, memory, disk, ports and limits of this machine. "
    "Say of each whether it is well and what to do; exit code 1 where something fails, not for warnings. "
    "Changes nothing.",
    "foldin.commands.doctor.run:run_doctor",
    "foldin.settings:DoctorOptions",
    "`worst`, and `checks`, each with `name`, `status`, `found` and `advice`",
)
# Name, summary, options, what runs it, and what `--json` prints.
_KEYS = (
    ("add", "make a key and print it, once", "AddOptions", "add_key", "`name`, `role`, and `key` or `file`"),
    (
        *("ensure", "make the key of a file, unless the store knows it already", "EnsureOptions"),
        *("ensure_key_file", "`name`, `role`, `file`"),
    ),
    (
        *("list", "print names, roles and dates; keys themselves are not stored", "ListOptions"),
        *("list_keys", "`keys`, and how many are `unreadable`"),
    ),
    (
        *("remove", "let the keys of this name in no longer", "RemoveOptions", "remove_key"),
        "`name`, and how many keys `remain`",
    ),
)
KEYS = Command(
    "keys",
    "make, list and remove keys of the API",
    "Make, list and remove keys of the API. `read` may ask, `rate` may besides rate and take ratings back, "
    "`operate` may besides train, roll back and forget users. Running services know of a change within two "
    "seconds.",
    commands=tuple(
        Command(
            name,
            about,
            f"{about[0].upper()}{about[1:]}.",
            f"foldin.keys:{run}",
            f"foldin.keys:{options}",
            prints,
        )
        for name, about, options, run, prints in _KEYS
    ),
)
RECOMMEND = Command(
    "recommend",
    "print the best items for a user",
    "Print the best items for a user, with their titles where the catalogue has them. `score` orders the "
    "list and has no unit; `rating` is what the user is expected to give.",
    "foldin.commands.asking:run_recommend",
    "foldin.settings:RecommendOptions",
    "the answer of `GET /recommend/{user_id}`",
)
STATUS = Command(
    "status",
    "say what a running Foldin knows and answers from",
    "Print which generation is live, how much it knows, and how well it predicts. Exit code 1 where the "
    "store does not answer.",
    "foldin.commands.asking:run_status",
    "foldin.settings:AskOptions",
    "the answer of `GET /status`",
)
TRAIN = Command(
    "train",
    "fit again on all ratings, now",
    "Fit again on all ratings now, and wait until the new generation is live. Ctrl-C ends the waiting, not "
    "the fit. Without a trainer it waits on: `foldin doctor` says whether one runs.",
    "foldin.commands.asking:run_train",
    "foldin.settings:AskOptions",
    "`generation`, `seconds`",
)
FORGET = Command(
    "forget",
    "forget a user everywhere",
    "Delete all that is known of a user, in the store and in the archive, and print the receipt. It cannot "
    "be undone: a terminal asks first, a script gives --yes.",
    "foldin.commands.asking:run_forget",
    "foldin.settings:ForgetOptions",
    "the receipt, as `DELETE /users/{user_id}` answers it",
)
CLIENT_EXAMPLE = Command(
    "client-example",
    "print five lines that rate and ask, for the running service",
    "Print a working example in curl, Python or JavaScript for the address of the service that runs here: it "
    "rates an item, and asks for a prediction and for recommendations.",
    "foldin.commands.example:run_example",
    "foldin.settings:ExampleOptions",
    "the text of each language by its name",
)
SIZE = Command(
    "size",
    "say what a deployment of a given size takes",
    "Say what so many users, items and ratings take: memory and servers of the store, disk, memory of the "
    "service and of a fit, how long fit and publication take, and what each figure rests on. Numbers may end "
    "in k, M or B.",
    "foldin.sizing.run:run_size",
    "foldin.sizing.run:SizeOptions",
    "`figures`, each with `part`, `name`, `value`, `unit` and `rests_on`",
)
# Raw, as what it takes is declared in `torture/`, which is in a checkout alone: so it is with benchmarks.
TORTURE = Command(
    "torture",
    "check that faults lose nothing, on a stack of its own (from a checkout)",
    "Torture a stack of its own: clients rate, forget, ask, train and put documents while processes are "
    "killed and frozen, connections cut, clocks moved, disks filled and the power cut. Every answer, the "
    "store and the archive are held against what was acknowledged; exit code 1 where anything is wrong. "
    "`judge CALLS` checks the answers that an earlier run has logged again. --help names its options.",
    "foldin.commands.bench:run_torture",
    prints="`exit_code`, `seconds`",
    usage="[judge CALLS] [OPTIONS]",
    raw=True,
)
SETTINGS = Command(
    "settings",
    "print every setting",
    "Print all settings, as Markdown.",
    "foldin.reference:run_settings",
    "foldin.settings:NoOptions",
    "`settings`: `process`, `variable`, `flag`, `default`, `help` and the key in `file` of each",
)
VERSION = Command(
    "version",
    "print the version",
    "Print the version of foldin and of Python.",
    "foldin.commands.version:run_version",
    "foldin.settings:NoOptions",
    "`foldin`, `python`",
)

# In the order of a first week: run, feed, look, keep, mend.
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(UP, IMPORT, RECOMMEND, STATUS, TRAIN, EXPORT, EVALUATE, FORGET, BACKUP, RESTORE, UNDO, VERIFY),
        *(DOCTOR, KEYS, SIZE),
        *(CLIENT_EXAMPLE, TORTURE, BENCH, SETTINGS, VERSION),
    )
}
