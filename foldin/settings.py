"""What the `foldin` command takes: the options of its subcommands, and what it reads in the environment.

Only the standard library and `processes` at import: the supervisor of a stack lives as long as the stack.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

from processes.settings import Environment, choice, data_folder, data_path, nested, real, setting, url, whole

# What the columns of contexts are called by, before the name of the field.
CONTEXT_PREFIX = "context."
FILE_FORMATS = ("auto", "movielens", "recbole", "csv", "parquet", "ndjson")
FORMAT_HELP = f"layout of the file: {', '.join(FILE_FORMATS)}"
DEFAULT_API = "http://127.0.0.1:8080"
DEFAULT_DATA = Path("data")  # where `foldin up` has it
# Of `foldin import --items` and `--users`: what else is named in --columns is an attribute, by its type.
USER_FIELDS = ("user_id",)
ITEM_FIELDS = ("item_id", "title", "categories", "hidden", "available_from", "available_until", "image")
ATTRIBUTE_TYPES = ("number", "text", "list", "time", "boolean")
_PORT = whole(1, 65_535)


def columns(text: str) -> dict[str, str]:
    """Parse `user=NAME,item=NAME,rating=NAME,timestamp=NAME`: the file's names of the columns."""
    found = named_columns(text)
    roles = {role for role in found if not role.startswith(CONTEXT_PREFIX)}
    if not {"user", "item", "rating"} <= roles <= {"user", "item", "rating", "timestamp"}:
        raise ValueError("must name user, item and rating, and perhaps timestamp and context.NAME")
    return found


def named_columns(text: str) -> dict[str, str]:
    """Parse `NAME=VALUE,...`, each name once."""
    found: dict[str, str] = {}
    for part in text.split(","):
        role, equals, name = part.partition("=")
        if not equals or not role or role in found or not (name or role == "timestamp"):
            raise ValueError(
                "must look like user=NAME,item=NAME,rating=NAME,timestamp=NAME (timestamp= for none; numbers "
                "are positions in a file without a header), or with --items item=NAME,year=number"
            )
        found[role] = name
    return found


_URL = (
    "address of the API",
    "that of the stack on --data, if one runs there; else this machine, at `FOLDIN_PORT`",
)
_DATA = ("the stack that runs on this directory", "`data`")
_KEY = ("API key, where the API asks for one; in the variable or a file others cannot see it",)
_KEY_FILE = ("file that holds the API key", Path)


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Those of a command that takes none: any argument is refused."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Options of `foldin up`. Without `play` and `no_play` a player plays if the store has no ratings."""

    FILE_SECTION: ClassVar[str] = "up"

    data: Path = setting(DEFAULT_DATA, "folder where the data lives", data_path, metavar="DIR")
    host: str = setting(
        "127.0.0.1",
        "address to listen on: by the default this machine alone is answered; beyond it, as by 0.0.0.0, the "
        "API asks for a key, which the first start makes",
        variable="FOLDIN_HOST",
        flag="--host",
    )
    port: int = setting(8080, "port of the API and its page", _PORT, variable="FOLDIN_PORT", flag="--port")
    environment_port: int = setting(
        8081,
        "port of the rating environment",
        _PORT,
        variable="FOLDIN_ENVIRONMENT_PORT",
        flag="--environment-port",
    )
    workers: int = setting(
        1, "processes of the service", whole(1, 256), variable="FOLDIN_WORKERS", flag="--workers"
    )
    play: bool = setting(
        False, "let the player play beside ratings that the store has already", excludes="no_play"
    )
    no_play: bool = setting(False, "no player, as for data of your own")
    adopt: bool = setting(
        False,
        "where the archive is not this store's: keep the store as it is, and put the archive into its trash",
    )

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        found = []
        # Of two flags the loader tells; one of them, or both, may be the file's.
        if self.play and self.no_play:
            found.append("play and no_play exclude each other: leave one out")
        if self.port == self.environment_port:
            both = f"the service and the environment cannot both have port {self.port}"
            found.append(f"{both}: choose another with --environment-port")
        return found


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of `foldin import`. `url`, `data`: where to, see `importing.open_sink`."""

    path: Path = setting(..., "file of ratings", data_path, flag="FILE")
    url: str | None = setting(
        None,
        "hand the ratings to the API at this address, as any client would",
        url,
        shown="",
        excludes="data",
    )
    data: Path | None = setting(
        None,
        "write to the store of the stack that runs on this directory",
        data_path,
        metavar="DIR",
        shown="./data, if a stack runs there; else the store in `FOLDIN_REDIS_URL`; else the API on "
        "this machine, at `FOLDIN_PORT`",
    )
    format: str = setting("auto", FORMAT_HELP, choice(FILE_FORMATS))
    columns: Mapping[str, str] | None = setting(
        None,
        "names of the columns in a CSV or Parquet file; also type=.. where rows are events (a view, a "
        "purchase), with the rating as their value, and context.NAME=..; numbers are positions in a CSV file "
        "without a header. With --items item=..,title=.., with --users user=..; NAME=TYPE of others",
        named_columns,
        shown="by their names",
        metavar="user=..,item=..,rating=..,timestamp=..",
    )
    on_bad: Literal["refuse", "skip"] = setting(
        "refuse",
        "bad rows, or values of items and users: `refuse` writes nothing if there is one, `skip` leaves them "
        "out",
        choice(("refuse", "skip")),
    )
    resume: bool = setting(False, "go on where an import of this file was stopped")
    items: bool = setting(
        False,
        "the file has items for the catalogue: CSV, Parquet, NDJSON or RecBole's .item",
        excludes="resume",
    )
    users: bool = setting(
        False,
        "the file has users and their attributes: CSV, Parquet, NDJSON or RecBole's .user",
        excludes="resume",
    )
    undelete: bool = setting(
        False, "with --items: bring back what was deleted; without, a deleted item of the file stays deleted"
    )
    dry_run: bool = setting(
        False,
        "read and check the whole file, tell what it has and what would be written, and write nothing",
        excludes="resume",
    )
    scale: str | None = setting(
        None,
        "scale of a store that has no ratings yet, low:high[:step]; one that has any keeps its own",
        shown="that of the ratings",
        metavar="LOW:HIGH[:STEP]",
    )
    key: str | None = setting(None, *_KEY, variable="FOLDIN_API_KEY", flag="--key", secret=True)
    key_file: Path | None = setting(None, *_KEY_FILE, variable="FOLDIN_API_KEY_FILE", flag="--key-file")

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        named = self.columns or {}
        if self.items and self.users:
            return ["--items and --users exclude each other: leave one out"]
        if self.undelete and not self.items:
            return ["--undelete goes with --items"]
        if self.items or self.users:
            fields = {*USER_FIELDS, "user"} if self.users else {*ITEM_FIELDS, "item"}
            types = {each for name, each in named.items() if name not in fields}
            wrong = ", ".join(sorted(types - set(ATTRIBUTE_TYPES)))
            return [f"--columns says {wrong}, which is no type of an attribute"] if wrong else []
        found: list[str] = []
        roles = {"user", "item", "rating", "timestamp", "type"}
        # With a type the rating is the value of an event, which may have none.
        least = {"user", "item", "type" if "type" in named else "rating"}
        others = {name for name in named if not name.startswith("context.")}
        if named and not least <= others <= roles:
            found.append(
                "--columns must name user, item and rating, or type, and perhaps timestamp and context.NAME"
            )
        return found


_STACK = (
    "the stack that runs on this directory",
    "./data, if a stack runs there; else what `FOLDIN_REDIS_URL` and `FOLDIN_ARCHIVE_DIR` name",
)


def moment(text: str) -> float:
    """Parse a time, ISO 8601 or seconds since 1970, as seconds since 1970."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"must be a time like 2026-11-26T08:30:00Z, or seconds since 1970, not {text!r}"
            ) from None
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if not 0 < seconds <= time.time():
        raise ValueError(f"must be a time in the past, not {text!r}")
    return seconds


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """Options of `foldin backup`."""

    path: Path = setting(
        ...,
        "folder of the backup; what it has already is not copied again",
        data_folder,
        flag="DIR",
        metavar="PATH",
    )
    data: Path | None = setting(None, _STACK[0], data_path, shown=_STACK[1])


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """Options of `foldin restore`. `path`: where from; None for the archive."""

    path: Path | None = setting(
        None,
        "where the ratings come from: an archive, a backup, an entry of the trash",
        data_folder,
        flag="SOURCE",
        metavar="PATH",
        shown="the archive itself",
    )
    data: Path | None = setting(None, _STACK[0], data_path, shown=_STACK[1])
    to: float | None = setting(
        None,
        "leave out what arrived after this time (2026-11-26T08:30:00Z, or seconds since 1970), and what only "
        "the store knows",
        moment,
        shown="",
    )
    erasures: Path | None = setting(
        None,
        "ledger of erasures newer than the source: an `erasures-*.log`, or the archive that has it",
        data_path,
        shown="of the source and of the archive",
    )
    dry_run: bool = setting(False, "say what would change, and change nothing")
    skip_damaged: bool = setting(
        False, "leave out what cannot be read of the source, in place of refusing it"
    )
    skip_damaged_ledger: bool = setting(
        False, "go on where a record of the ledger of erasures is damaged: who was forgotten may come back"
    )


@dataclass(frozen=True, slots=True)
class UndoOptions:
    """Options of `foldin undo`. `name`: of an entry, or `last`; None lists them."""

    name: str | None = setting(
        None, "entry of the trash to bring back, or `last`", flag="NAME", shown="list the trash"
    )
    data: Path | None = setting(None, _STACK[0], data_path, shown=_STACK[1])
    dry_run: bool = setting(False, "say what would change, and change nothing")
    skip_damaged_ledger: bool = setting(
        False, "go on where a record of the ledger of erasures is damaged: who was forgotten may come back"
    )


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Options of `foldin verify`."""

    data: Path | None = setting(None, _STACK[0], data_path, shown=_STACK[1])


WHATS = ("ratings", "items", "users")
FORMATS = ("ndjson", "csv", "parquet")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of `foldin export`. `format`: None goes by the name of the file."""

    what: Literal["ratings", "items", "users"] = setting(
        ...,
        "ratings; items of the catalogue; or users, which are their attributes",
        choice(WHATS),
        flag="WHAT",
    )
    output: Path | None = setting(
        None, "file to write; `-` is standard output", data_path, shown="`-`", metavar="FILE"
    )
    format: Literal["ndjson", "csv", "parquet"] | None = setting(
        None, "ndjson, csv or parquet", choice(FORMATS), shown="by the name of the file, else ndjson"
    )
    overwrite: bool = setting(False, "replace a file that is there")
    url: str | None = setting(None, _URL[0], url, shown=_URL[1], excludes="data")
    data: Path | None = setting(None, _DATA[0], data_path, shown=_DATA[1], metavar="DIR")
    key: str | None = setting(None, *_KEY, variable="FOLDIN_API_KEY", flag="--key", secret=True)
    key_file: Path | None = setting(None, *_KEY_FILE, variable="FOLDIN_API_KEY_FILE", flag="--key-file")

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        if self.format == "parquet" and self.to_stdout:
            return ["--format parquet needs a file: name one by --output"]
        return []

    @property
    def to_stdout(self) -> bool:
        """Whether the rows go to standard output."""
        return self.output is None or str(self.output) == "-"


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """Options of `foldin doctor`."""

    data: Path | None = setting(
        None,
        "folder of the data of a stack, whether one runs on it or not",
        data_path,
        shown="`data`",
        metavar="DIR",
    )
    url: str | None = setting(None, _URL[0], url, shown=_URL[1])
    timeout_s: float = setting(5.0, "seconds that each answer may take", real(0.1, 600.0))
    key: str | None = setting(None, *_KEY, variable="FOLDIN_API_KEY", flag="--key", secret=True)
    key_file: Path | None = setting(None, *_KEY_FILE, variable="FOLDIN_API_KEY_FILE", flag="--key-file")


@dataclass(frozen=True, slots=True)
class AskOptions:
    """Options of `foldin status` and `foldin train`: which service is asked, and with which key."""

    url: str | None = setting(None, _URL[0], url, shown=_URL[1], excludes="data")
    data: Path | None = setting(None, _DATA[0], data_path, shown=_DATA[1], metavar="DIR")
    key: str | None = setting(None, *_KEY, variable="FOLDIN_API_KEY", flag="--key", secret=True)
    key_file: Path | None = setting(None, *_KEY_FILE, variable="FOLDIN_API_KEY_FILE", flag="--key-file")


@dataclass(frozen=True, slots=True)
class RecommendOptions:
    """Options of `foldin recommend`."""

    user: str = setting(..., "id of the user", flag="USER")
    n: int = setting(10, "number of items", whole(1, 100), flag="-n", metavar="N")
    scenario: str | None = setting(
        None, "name of the stored rules that the list follows", shown="", metavar="NAME"
    )
    service: AskOptions = nested(AskOptions)


@dataclass(frozen=True, slots=True)
class ForgetOptions:
    """Options of `foldin forget`."""

    user: str = setting(..., "id of the user", flag="USER")
    yes: bool = setting(False, "forget without asking, as a script must")
    service: AskOptions = nested(AskOptions)


LANGUAGES = ("curl", "python", "javascript")


@dataclass(frozen=True, slots=True)
class ExampleOptions:
    """Options of `foldin client-example`. `language`: None prints all."""

    language: Literal["curl", "python", "javascript"] | None = setting(
        None, "curl, python or javascript", choice(LANGUAGES), flag="LANGUAGE", shown="all of them"
    )
    url: str | None = setting(None, _URL[0], url, shown=_URL[1], excludes="data")
    data: Path | None = setting(None, _DATA[0], data_path, shown=_DATA[1], metavar="DIR")
    key_file: Path | None = setting(None, *_KEY_FILE, variable="FOLDIN_API_KEY_FILE", flag="--key-file")


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """What every command takes."""

    config: Path | None = setting(
        None,
        "file with the settings of all roles; every process takes this one",
        Path,
        variable="FOLDIN_CONFIG",
        flag="--config",
        shown="`foldin.toml` in the current folder, where there is one",
        metavar="FILE",
    )
    json: bool = setting(
        False, "print one JSON document on stdout, or one a line; what is said goes to stderr"
    )


def no_document(_document: object) -> None:
    """Print nothing, as without `--json`."""


@dataclass(frozen=True, slots=True)
class FrontDoorSettings:
    """What the command takes from the environment.

    `redis_url`: a store that is already there, or None for an embedded one. `state_dir`: folder of the
    positions of imports. `open_access`: the API is to ask for no keys. `data`: where the data of a stack
    lives unless a flag says otherwise. `inherited` is handed to every process of the stack, which reads its
    settings there. `emit` takes what `--json` prints, one document a call; it does nothing without.
    """

    redis_url: str | None
    state_dir: Path
    open_access: bool
    inherited: Mapping[str, str]
    data: Path = DEFAULT_DATA
    emit: Callable[[object], None] = field(default=no_document)

    @property
    def json(self) -> bool:
        """Whether documents are printed, and standard output has nothing else."""
        return self.emit is not no_document

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], emit: Callable[[object], None] = no_document
    ) -> "FrontDoorSettings":
        """Read `FOLDIN_REDIS_URL`, and the place where programs keep state (`XDG_STATE_HOME`, else below
        `HOME`).
        """
        if "XDG_STATE_HOME" in environ:
            state = Path(environ["XDG_STATE_HOME"])
        elif "HOME" in environ:
            state = Path(environ["HOME"]) / ".local" / "state"
        else:
            state = Path(tempfile.gettempdir())  # as in a container without a home
        return cls(
            redis_url=environ.get("FOLDIN_REDIS_URL") or None,
            state_dir=state / "foldin",
            open_access=environ.get("FOLDIN_ACCESS") == "open",
            inherited=environ,
            data=Path(environ.file.get("up.data", DEFAULT_DATA))
            if isinstance(environ, Environment)
            else DEFAULT_DATA,
            emit=emit,
        )
