"""Options of `export`, `doctor`, `migrate`, `client-example`, `settings`, `version`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from processes.settings import choice, data_path, real, setting, url, whole


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Those of a command that takes none: any argument is refused."""


_URL = (
    "address of the API",
    "that of the stack on --data, if one runs there; else this machine, at `FOLDIN_PORT`",
)
_DATA = ("the stack that runs on this directory", "`data`")
_KEY = ("API key, where the API asks for one; in the variable or a file others cannot see it",)
_KEY_FILE = ("file that holds the API key", Path)

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
class MigrateOptions:
    """Options of `foldin migrate`."""

    to: str | None = setting(
        None,
        "address of the store to move to, as in `FOLDIN_REDIS_URL`; it must have nothing of this namespace",
        shown="",
        metavar="ADDRESS",
        secret=True,
    )
    source: str | None = setting(
        None,
        "address of the store to move from",
        flag="--from",
        shown="that of the stack on --data, if one runs there; else `FOLDIN_REDIS_URL`",
        metavar="ADDRESS",
        secret=True,
        excludes="data",
    )
    data: Path | None = setting(None, _DATA[0], data_path, shown=_DATA[1], metavar="DIR")
    partitions: int | None = setting(
        None, "parts of the users' keys in the store to move to", whole(1, 4096), shown="16, of a cluster 256"
    )
    dry_run: bool = setting(False, "say whether it can be done, and change nothing")
    abort: bool = setting(
        False,
        "give up a migration that was cut off: the store to move from takes ratings again; with --to what "
        "was copied there is removed",
    )

    def problems(self) -> list[str]:
        """What is contradictory in these options, one sentence each."""
        if self.abort and self.dry_run:
            return ["--abort goes without --dry-run"]
        return [] if self.abort or self.to is not None else ["--to is needed: the store to move to"]


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
