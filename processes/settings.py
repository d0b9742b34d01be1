"""Settings of a process, declared once: from the declaration come reading, flags, help and the reference.

A settings class is a frozen dataclass whose fields are made by `setting(...)`. A flag wins over a variable, a
variable over the default. Invariant: all mistakes of one start are reported together, and nothing here reads
the environment of the process by itself.
"""

import argparse
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import EllipsisType
from typing import Any, Generic, TypeVar, cast

from processes.errors import CannotStartError

T = TypeVar("T")
Told = tuple[str | None, str | None]
C = TypeVar("C", bound=str)

HIDDEN = argparse.SUPPRESS  # help of a flag that only our own processes give each other
# Names that `logging` knows.
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# With a slip in it, too: it must not become a folder of this host.
_LIKE_AN_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/")
# Variables that were settings once, without `FOLDIN_`: left out in silence, a limit would be missed.
_GONE = {"QUOTAS": "nginx bounds requests and connections now (docs/operations.md)"}


class SettingsError(CannotStartError):
    """A person must change a setting. `problems`: which and to what, one sentence each."""

    def __init__(self, *problems: str) -> None:
        # One line, as every process says why it cannot start.
        super().__init__("; ".join(problems))
        self.problems = problems


class Environment(dict[str, str]):
    """Variables, with those of a file below them. `file`: what the file says, by variable or, of a setting
    without one, by `section.key`; `sources`: where in the file it stands, by the same.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        file: Mapping[str, str] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(variables)
        self.file = file or {}
        self.sources = sources or {}


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared setting. `variable` and `flag`: its names, None where it has none of that kind; without
    both it has the flag of its field's name. A flag without dashes is a positional argument.

    `many`: several values, separated by commas or spaces. `shown`: the default as the reference shows it.
    `metavar`: its value in the help. `excludes`: the field, declared below this one, of a flag that cannot be
    given beside this one.
    """

    help: str
    parse: Callable[[str], Any]
    variable: str | None
    flag: str | None
    many: bool
    shown: str
    metavar: str | None
    excludes: str | None

    @property
    def switch(self) -> bool:
        """Whether the flag has no value."""
        return self.parse is switch

    @property
    def options(self) -> Sequence[str]:
        """What it may be, where only some texts are allowed."""
        return self.parse.options if isinstance(self.parse, _OneOf) else ()

    @property
    def is_path(self) -> bool:
        """Whether it names a file or folder."""
        return self.metavar == "PATH" or self.parse in {Path, data_path, data_folder}

    @property
    def positional(self) -> bool:
        """Whether it is told by its place."""
        return self.flag is not None and not self.flag.startswith("-")

    @property
    def described(self) -> str:
        """The help of its flag, with its default and its variable."""
        words = self.help
        if not self.switch and self.shown not in {"", "none"}:
            words += f" (default: {self.shown.replace('`', '')})"
        return words if self.variable is None else f"{words} [{self.variable}]"

    def value_of(self, text: str) -> Any:
        """Parse the text of a flag or a variable. Raises ValueError with what it must be."""
        if not self.many:
            return self.parse(text)
        return tuple(self.parse(part) for part in text.replace(",", " ").split())


def setting(
    default: T | EllipsisType,
    help: str,  # noqa: A002 - the word that argparse has for it
    parse: Callable[[str], Any] = str,
    *,
    variable: str | None = None,
    flag: str | None = None,
    many: bool = False,
    shown: str | None = None,
    secret: bool = False,
    metavar: str | None = None,
    excludes: str | None = None,
) -> T:
    """Declare a field of a settings class. `default`: `...` where a value is needed, False for a switch.

    `secret`: its value is in no `repr`, and so in no log.
    """
    if default is False:
        parse = switch
    if metavar is None:
        metavar = _metavar(parse, default)
    shown = _shown(default) if shown is None else shown
    declared = Setting(help, parse, variable, flag, many, shown, metavar, excludes)
    kept: Any = MISSING if default is ... else default
    # Typed as the value, as `dataclasses.field` is: the decorator puts the value in the field's place.
    found: T = field(default=kept, repr=not secret, metadata={"setting": declared})
    return found


def nested(cls: type[T], *, without: Sequence[str] = ()) -> T:
    """Declare a field that is a settings class itself, read along with its owner but for `without`."""
    found: T = field(default_factory=cls, metadata={"nested": cls, "without": frozenset(without)})
    return found


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Make a parser of a whole number between `low` and `high`, both included."""

    def parse(text: str) -> int:
        # Not int() alone: it takes 1_000 and the digits of other scripts, too.
        number = int(text) if re.fullmatch(r"\s*[+-]?\d{1,40}\s*", text, re.ASCII) else None
        if number is None or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {text!r}")
        return number

    return parse


def real(low: float, high: float, what: str = "a number") -> Callable[[str], float]:
    """Make a parser of a finite number between `low` and `high`, both included."""

    def parse(text: str) -> float:
        try:
            # Not float() alone: it takes 1_000 and the digits of other scripts, too.
            number = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            number = math.nan
        if not low <= number <= high:  # NaN is refused by this, too
            raise ValueError(f"must be {what} from {low:g} to {high:g}, not {text!r}")
        return number

    return parse


@dataclass(frozen=True, slots=True)
class _OneOf(Generic[C]):
    options: Sequence[C]

    def __call__(self, text: str) -> C:
        """Return the option itself, not the text: it keeps its literal type."""
        for option in self.options:
            if text == option:
                return option
        raise ValueError(f"must be {' or '.join(self.options)}, not {text!r}")


def data_path(text: str) -> Path:
    """Parse the path of a file or folder of data, whose name must be UTF-8: Parquet files have no other."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"must be a path in UTF-8, not {text!r}") from None
    return Path(text)


def data_folder(text: str) -> Path:
    """Parse the path of a folder of ratings."""
    if _LIKE_AN_ADDRESS.match(text):
        # Without the text: an address may have a key in it.
        raise ValueError(
            "must be a folder of this host, not an object store: name an empty folder, which the trainer "
            'fills from the store (see "Where the archive lies" in docs/operations.md)'
        )
    return data_path(text)


def program(text: str) -> str:
    """Parse the path of a program, or its name on PATH."""
    if shutil.which(text) is None:
        raise ValueError(f"must be a program that can be run, by its path or its name, not {text!r}")
    return text


def choice(options: Sequence[C]) -> Callable[[str], C]:
    """Make a parser of one of `options`, which the help shows."""
    return _OneOf(options)


def switch(text: str) -> bool:
    """Parse the yes or no of a variable."""
    if text.lower() not in {"0", "1", "false", "true", "no", "yes"}:
        raise ValueError(f"must be 0 or 1, not {text!r}")
    return text.lower() in {"1", "true", "yes"}


def url(text: str) -> str:
    """Parse the address of an HTTP server; a slash at its end is taken off."""
    if not text.startswith(("http://", "https://")) or not text.split("://", 1)[1].strip("/"):
        shown = text.rpartition("@")[2]  # a password may stand before it
        raise ValueError(f"must be an address that begins with http:// or https://, not {shown!r}")
    return text.rstrip("/")


def load(
    cls: type[T], argv: Sequence[str], environ: Mapping[str, str], *, command: str = "", about: str = ""
) -> T:
    """Read a settings class from flags and variables.

    `environ`: an `Environment` has what a file says below its variables; of settings without a variable it
    counts for a class that names its section as `FILE_SECTION`.

    Raises SettingsError with every mistake found; what `cls.problems()` says, where there is such a method,
    counts too. Prints the help and exits on `--help`.
    """
    if not {"-h", "--help"}.isdisjoint(argv):
        _parser(cls, command, about, shown=True).print_help()
        sys.exit(0)
    given, rest = _flags(cls, argv)
    errors = []
    for entry, declared in declarations(cls):
        if declared.excludes and None not in (given[entry.name], given[declared.excludes]):
            other = "--" + declared.excludes.replace("_", "-")
            errors.append(f"{declared.flag} and {other} exclude each other: leave one out")
        if declared.positional:
            given[entry.name] = next((text for text in rest if not text.startswith("-")), None)
            if given[entry.name] is not None:
                rest.remove(given[entry.name])
    known = [declared.flag.lstrip("-") for _, declared in declarations(cls) if declared.flag]
    for argument in rest:
        name = argument.partition("=")[0]
        near = get_close_matches(name.lstrip("-"), known, n=1, cutoff=0.75) if name[:2] == "--" else []
        errors.append(f"unknown argument {argument}" + "".join(f": is --{flag} meant?" for flag in near))
    errors += [
        f"FOLDIN_{name} is no setting: {now}" for name, now in _GONE.items() if environ.get(f"FOLDIN_{name}")
    ]
    made = _make(cls, frozenset(), given, environ, errors, section=getattr(cls, "FILE_SECTION", None))
    if made is not None:
        errors.extend(getattr(made, "problems", list)())
    if errors:
        raise SettingsError(*errors)
    return cast("T", made)


def left_over(cls: type[Any], argv: Sequence[str]) -> list[str]:
    """Return what no flag of a settings class takes: what is given by its place, and unknown flags.

    Raises SettingsError.
    """
    return _flags(cls, argv)[1]


def _flags(cls: type[Any], argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    try:
        flags, rest = _parser(cls, "", "", shown=False).parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise SettingsError(str(error)) from error
    return vars(flags), rest


def secret_of(value: str | None, file: Path | None) -> str | None:
    """Return a secret that is given itself or by a file, None for neither.

    Raises SettingsError where the file cannot be read.
    """
    if value is not None or file is None:
        return value
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def api_key_of(value: str | None, file: Path | None) -> str | None:
    """Return a key of the API that is given itself or by a file, None for neither.

    Raises SettingsError where the file cannot be read, and for a key that no header of a request can have.
    """
    key = secret_of(value, file)
    if key is not None and re.fullmatch("[!-~]+", key) is None:
        where = "" if value is not None else f" in {file}"
        raise SettingsError(f"the key{where} cannot be sent: it must be printable ASCII without spaces")
    return key


def _parser(cls: type[Any], command: str, about: str, *, shown: bool) -> argparse.ArgumentParser:
    """Return the parser whose help is shown, or the one that reads.

    argparse stops at its first mistake. So the one that reads knows no positional argument, takes a flag
    without its value, and leaves every value text: `_make` finds what is wrong, all of it.
    """
    # No abbreviations: a flag that is added later must not change what an old command line means.
    parser = argparse.ArgumentParser(
        prog=command,
        description=textwrap.fill(about, 78),
        epilog=_variables_without_flag(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=shown,
        exit_on_error=False,
        allow_abbrev=False,
    )
    groups: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for entry, declared in declarations(cls):
        if declared.flag is None or (declared.positional and not shown):
            continue
        words = HIDDEN if declared.help == HIDDEN else declared.described
        options: dict[str, Any] = {"help": words.replace("%", "%%")}
        if declared.switch:
            options |= {"action": "store_const", "const": "1"}
        elif shown:
            optional = declared.positional and entry.default is not MISSING
            nargs = "+" if declared.many else "?" if optional else None
            options |= {"nargs": nargs, "metavar": declared.metavar}
        else:
            options |= {"nargs": "*"} if declared.many else {"nargs": "?", "const": []}
        target: argparse._ActionsContainer = groups.get(entry.name, parser)
        if shown and declared.excludes is not None:
            target = groups[declared.excludes] = parser.add_mutually_exclusive_group()
        if declared.positional:
            target.add_argument(entry.name, **{**options, "metavar": declared.flag})
        else:
            target.add_argument(declared.flag, dest=entry.name, **options)
    return parser


def declarations(
    cls: type[Any], without: frozenset[str] = frozenset()
) -> Iterator[tuple[Field[Any], Setting]]:
    """Yield every declared setting of a class and of the classes nested in it, with its field."""
    for entry in fields(cls):
        if entry.name in without:
            continue
        if "nested" in entry.metadata:
            yield from declarations(entry.metadata["nested"], entry.metadata["without"])
        elif "setting" in entry.metadata:
            yield entry, _named(entry)


def reference(cls: type[Any], *, without: Sequence[str] = ()) -> str:
    """Return the settings of a class, but for the fields `without`, as a Markdown table."""
    rows = ["| name | default | what it does |", "|---|---|---|"]
    for declared in (found for _, found in declarations(cls, frozenset(without)) if found.help != HIDDEN):
        names = ", ".join(f"`{name}`" for name in (declared.variable, declared.flag) if name is not None)
        rows.append(f"| {names} | {declared.shown} | {declared.help} |")
    return "\n".join(rows) + "\n"


def _named(entry: Field[Any]) -> Setting:
    declared: Setting = entry.metadata["setting"]
    if declared.variable is None and declared.flag is None:
        return replace(declared, flag="--" + entry.name.replace("_", "-"))
    return declared


def _shown(default: object) -> str:
    match default:
        case None:
            return "none"
        case bool():
            return "on" if default else "off"
        case int():
            return f"{default:,}" if default >= 10_000 else str(default)
        case float():
            return f"{default:g}"
        case tuple():
            return " ".join(map(_shown, default))
        case _:
            return "" if default is ... else f"`{default}`"


def _metavar(parse: Callable[[str], Any], default: object) -> str | None:
    if isinstance(parse, _OneOf):
        return f"{{{','.join(parse.options)}}}"
    if parse in {Path, data_path, data_folder}:
        return "PATH"
    return "URL" if parse is url else "N" if isinstance(default, int | float) else None


def _variables_without_flag(cls: type[Any]) -> str | None:
    only = [declared for _, declared in declarations(cls) if declared.variable and declared.flag is None]
    lines = [f"  {declared.variable}: {declared.help} ({declared.shown})" for declared in only]
    return "\n".join(["environment variables:", *lines]) if lines else None


def _told(environ: Mapping[str, str], declared: Setting, section: str | None) -> Told:
    """Return the text of a setting in the environment or its file, and what to call it in a message."""
    name = declared.variable
    file = environ.file if isinstance(environ, Environment) else {}
    sources = environ.sources if isinstance(environ, Environment) else {}
    if name is None and section is not None and declared.flag is not None:
        name = f"{section}.{declared.flag.lstrip('-').replace('-', '_')}"
        return file.get(name), sources.get(name)
    # An empty variable is none: compose files pass on what is not set as empty.
    text = environ.get(name or "") or None
    # What a child inherits of the file's is a variable, too; it is changed in the file.
    from_file = name in sources and file.get(name or "") == text
    return text, sources[name or ""] if from_file else name


def _make(
    cls: type[Any],
    without: frozenset[str],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    errors: list[str],
    *,
    section: str | None,
) -> object | None:
    """Return an object of `cls`; None, with the mistakes added to `errors`, where one cannot be read."""
    values: dict[str, Any] = {}
    before = len(errors)
    for entry in fields(cls):
        if "nested" in entry.metadata:
            inner, left_out = entry.metadata["nested"], entry.metadata["without"]
            values[entry.name] = _make(inner, left_out, flags, environ, errors, section=section)
        elif "setting" in entry.metadata and entry.name not in without:
            declared = _named(entry)
            text, source = flags.get(entry.name), declared.flag
            if text is None:
                text, source = _told(environ, declared, section)
            if text is None and entry.default is not MISSING:
                continue
            # Several values come as a list; a variable holds the same as one text.
            text = text if text is None or isinstance(text, str) else " ".join(text)
            # An empty flag is a variable of a script that was not set, and an empty path is this folder.
            if text is None or not text.strip():
                one_of = declared.parse
                listed = f", {' or '.join(map(str, one_of.options))}" if isinstance(one_of, _OneOf) else ""
                errors.append(f"{source or declared.flag} needs a value{listed}")
                continue
            try:
                values[entry.name] = declared.value_of(text)
            except ValueError as error:
                errors.append(f"{source} {error}")
    return None if len(errors) > before else cls(**values)
