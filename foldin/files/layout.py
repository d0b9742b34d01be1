"""The layout of a file: separator, quoting, header, and which column is which.

Invariant: nothing is guessed silently. The first line decides, and a file that fits no layout is refused with
the names of the columns that it has.
"""

import csv
import gzip
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from foldin.settings import CONTEXT_PREFIX
from processes.errors import CannotStartError

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"  # of sheets of Excel, too
PARQUET_MAGIC = b"PAR1"
BOM = b"\xef\xbb\xbf"
HEAD_BYTES = 64 * 1024  # the first line of the widest table fits
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# The one vocabulary of guessed names, of ratings and catalogues: without case, spaces and punctuation, the
# first that a file has. From MovieLens, RecBole, Amazon reviews, Goodreads, and tables of shops.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "user": ("userid", "user", "uid", "reviewerid", "customerid", "customer", "memberid", "username"),
    "item": (
        *("itemid", "item", "iid", "movieid", "movie", "productid", "asin", "bookid", "isbn", "sku"),
        *("product", "id", "title", "name"),
    ),
    "rating": ("rating", "score", "stars", "overall", "bookrating", "ratingvalue", "userrating", "value"),
    "timestamp": (
        *("timestamp", "time", "unixreviewtime", "date", "createdat", "ratedat", "datetime", "when", "ts"),
        *("ratedon", "createdon", "created", "reviewtime", "reviewdate"),
    ),
}
# RecBole's types of columns.
_RECBOLE = {"token", "token_seq", "float", "float_seq"}
# Of a line, beside `context`.
NDJSON_MEMBERS = ("user_id", "item_id", "rating", "timestamp")
NDJSON_COLUMNS = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read a file. `kind`: `text`, `ndjson` or `parquet`. `columns`: the roles user, item, rating
    and perhaps timestamp and `context.NAME`, each with its position in `names`. `separator`: one character,
    or the `::` of MovieLens. `header_lines`: lines before the first rating.
    """

    kind: str
    names: tuple[str, ...]
    columns: Mapping[str, int]
    compressed: bool = False
    separator: str = ","
    quoted: bool = False
    header_lines: int = 0

    @property
    def may_have_contexts(self) -> bool:
        """Whether rows may have contexts: lines of NDJSON say it themselves."""
        return self.kind == "ndjson" or any(role.startswith(CONTEXT_PREFIX) for role in self.columns)

    @property
    def unread(self) -> list[str]:
        """Names of the columns that are not read."""
        read = set(self.columns.values())
        return [name or f"#{at + 1}" for at, name in enumerate(self.names) if at not in read]

    def describe(self) -> str:
        """Return the layout in a few words."""
        what = {"::": "`::`", "\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
        kinds = {"parquet": "Parquet", "ndjson": "NDJSON"}
        text = kinds.get(self.kind) or f"text with {what[self.separator]}"
        named = ", ".join(f"{role}={self.names[position]}" for role, position in self.columns.items())
        return f"{'gzipped ' if self.compressed else ''}{text}; {named}"


class CountingFile(io.RawIOBase):
    """A file that tells how far it was read, from any thread.

    What is read through it may be unpacked on the way: the progress is that of the file on the disk.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.total_bytes = os.fstat(self._file.fileno()).st_size
        self.read_bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: object, /) -> int:
        """Read as `io.RawIOBase.readinto`, and count."""
        count = self._file.readinto(buffer) or 0  # type: ignore[arg-type] # the buffer protocol has no name before 3.12
        self.read_bytes += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_text(file: CountingFile, layout: Layout) -> IO[bytes]:
    """Open the bytes of a text file, decompressed."""
    buffered = io.BufferedReader(file, 1024 * 1024)  # a call of the system for each megabyte
    return gzip.GzipFile(fileobj=buffered, mode="rb") if layout.compressed else buffered  # type: ignore[return-value]


def find_layout(path: Path, kind: str, columns: Mapping[str, str] | None) -> Layout:
    """Return the layout of a file; `kind` is one of `FILE_FORMATS`, `columns` names columns that it may not
    find.

    Raises CannotStartError: no such file, empty, not gzip after all, or columns that cannot be told apart.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise CannotStartError(f"{path} is no file, and is read more than once: save what it gives first")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        compressed = head.startswith(GZIP_MAGIC)
        if compressed:
            with gzip.open(path, "rb") as unpacked:
                head = unpacked.read(HEAD_BYTES)
    except (OSError, EOFError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise CannotStartError(f"{path} cannot be read ({reason}): check the path and the file") from exc
    if head.startswith(PARQUET_MAGIC) or kind == "parquet":
        is_parquet = head.startswith(PARQUET_MAGIC)
        return _clear(
            path, _parquet_layout(path, kind, columns, compressed=compressed, is_parquet=is_parquet)
        )
    _check_text(path, head)
    first = head.removeprefix(BOM).decode("utf-8", "replace").partition("\n")[0].removesuffix("\r")
    if not first.strip():
        raise CannotStartError(
            f"{path} is empty, or begins with an empty line: give a file with a rating in each line"
        )
    if "\r" in first:
        # All of it would be its first line.
        raise CannotStartError(f"lines of {path} end with a carriage return alone: give them newlines")
    if kind in {"auto", "ndjson"} and first.lstrip().startswith("{"):
        if columns:
            raise CannotStartError(f"{path} is NDJSON, whose members have names: leave --columns out")
        return Layout("ndjson", NDJSON_MEMBERS, NDJSON_COLUMNS, compressed=compressed)
    return _clear(path, _text_layout(path, first, kind, columns, compressed=compressed))


def _check_text(path: Path, head: bytes) -> None:
    """Raise CannotStartError for a file that begins as no text does."""
    if head.startswith(ZIP_MAGIC):
        raise CannotStartError(
            f"{path} is an Excel or ZIP file: save its sheet as CSV (UTF-8), or unpack it first"
        )
    if b"\0" in head.partition(b"\n")[0]:
        raise CannotStartError(f"{path} is no text in UTF-8: save it as CSV (UTF-8), or as Parquet")


def _clear(path: Path, layout: Layout) -> Layout:
    """Return a layout whose columns have names of their own. Raises CannotStartError."""
    if CONTEXT_PREFIX in layout.names:
        raise CannotStartError(
            f"{path} has a column {CONTEXT_PREFIX} without a name: name it, as in {CONTEXT_PREFIX}hour"
        )
    used = [layout.names[position] for position in layout.columns.values()]
    twice = [name for name in used if layout.names.count(name) > 1]
    if twice:
        raise CannotStartError(f"{path} has two columns {twice[0]}: leave one, or give one another name")
    return layout


def _text_layout(
    path: Path, first: str, kind: str, columns: Mapping[str, str] | None, *, compressed: bool
) -> Layout:
    if columns is None and kind in {"auto", "movielens"} and (layout := _movielens(first)):
        return replace(layout, compressed=compressed)
    if columns is None and kind in {"auto", "recbole"} and (layout := _recbole(first)):
        return replace(layout, compressed=compressed)
    # MovieLens has a CSV, too: `ratings.csv` of the newer data sets.
    if kind in {"auto", "csv", "movielens"}:
        return replace(_csv(path, first, columns), compressed=compressed)
    raise CannotStartError(
        f"{path} does not look like a {kind} file (its first line is {first[:80]!r}): give another --format, "
        "or --columns"
    )


def _movielens(first: str) -> Layout | None:
    """Layout of `u.data` (tabs) and `ratings.dat` (`::`): user, item, rating, timestamp, no header."""
    for separator in ("\t", "::"):
        fields = first.split(separator)
        if len(fields) == 4 and all(NUMBER.fullmatch(field) for field in fields[2:]):
            roles = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
            return Layout("text", tuple(roles), roles, separator=separator)
    return None


def _recbole(first: str) -> Layout | None:
    """Layout with tabs and a header like `user_id:token<TAB>item_id:token<TAB>rating:float`."""
    typed = recbole_header(first)
    if typed is None or len(typed) < 3:
        return None
    names = tuple(name for name, _ in typed)
    columns = _by_synonyms(names)
    return Layout("text", names, columns, separator="\t", header_lines=1) if columns else None


def recbole_header(first: str) -> list[tuple[str, str]] | None:
    """Return name and type of each column of a header of RecBole's; None of any other."""
    typed = [field.rpartition(":")[::2] for field in first.split("\t")]
    return typed if all(kind in _RECBOLE for _, kind in typed) else None


def plain_names(names: Sequence[str]) -> list[str]:
    """Return names of columns as those in use are listed: without case, spaces and punctuation."""
    return [re.sub(r"[^a-z]", "", name.lower()) for name in names]


def _csv(path: Path, first: str, columns: Mapping[str, str] | None) -> Layout:
    separator = max(",\t;|", key=first.count)
    quoted = separator != "\t"  # files with tabs do not quote
    fields = tuple(
        next(csv.reader([first], delimiter=separator, quotechar='"' if quoted else None, strict=False))
    )
    # Columns that are all numbers are positions: the first line is a rating already.
    if columns and all(value.isascii() and value.isdigit() for value in columns.values()):
        names = tuple(str(position + 1) for position in range(len(fields)))
        return Layout("text", names, _by_names(path, names, columns), separator=separator, quoted=quoted)
    names = tuple(field.strip() for field in fields)
    found = _by_names(path, names, columns) if columns else _by_synonyms(names)
    if found is None:
        raise CannotStartError(_unclear(path, names))
    return Layout("text", names, found, separator=separator, quoted=quoted, header_lines=1)


def _parquet_layout(
    path: Path, kind: str, columns: Mapping[str, str] | None, *, compressed: bool, is_parquet: bool
) -> Layout:
    if not is_parquet or compressed or kind not in {"auto", "parquet"}:
        raise CannotStartError(
            f"{path} is {'' if is_parquet else 'not '}a Parquet file{' in gzip' * compressed}: "
            f"give another --format{', or unpack it first (Parquet packs by itself)' if compressed else ''}"
        )
    try:
        names = tuple(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as exc:
        raise CannotStartError(f"{path} is a damaged Parquet file ({exc}): make it again") from exc
    found = _by_names(path, names, columns) if columns else _by_synonyms(names)
    if found is None:
        raise CannotStartError(_unclear(path, names))
    return Layout("parquet", names, found)


def _by_names(path: Path, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    told = {role: name for role, name in columns.items() if name}
    missing = [name for name in told.values() if name not in names]
    if missing:
        raise CannotStartError(
            f"{path} has no column {', '.join(missing)}: name some of {', '.join(names)} with --columns"
        )
    found = {role: names.index(name) for role, name in told.items()}
    at = _guessed(names, "timestamp")
    # Told to be none by `timestamp=`, or of another meaning.
    if at is None or "timestamp" in columns or at in found.values():
        return found
    return {**found, "timestamp": at}


def _by_synonyms(names: Sequence[str]) -> dict[str, int] | None:
    found = {role: at for role in SYNONYMS if (at := _guessed(names, role)) is not None}
    found |= {
        name: names.index(name)
        for name in names
        if name.startswith(CONTEXT_PREFIX) and name != CONTEXT_PREFIX
    }
    return found if {"user", "item", "rating"} <= set(found) else None


def _guessed(names: Sequence[str], role: str) -> int | None:
    plain = plain_names(names)
    return next((plain.index(word) for word in SYNONYMS[role] if word in plain), None)


def _unclear(path: Path, names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    if any(NUMBER.fullmatch(name) for name in names):
        return (
            f"the first line of {path} ({shown}) looks like a rating, not like names of columns: say by "
            "their places what they are, as with --columns user=1,item=2,rating=3"
        )
    rest = ""
    if not any("rat" in name.lower() for name in names):
        rest = "; a file of items is read with --items, one of users with --users"
    return (
        f"cannot tell user, item and rating of {path} apart: say which of its columns ({shown}) they are "
        f"with --columns user=NAME,item=NAME,rating=NAME, and timestamp=NAME if one has times{rest}"
    )
