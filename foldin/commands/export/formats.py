"""Writes exported rows as NDJSON, CSV or Parquet.

Invariant: a value that a format has no place for stops the export; none is left out or changed.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Literal, Protocol, TextIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from foldin.errors import StoppedError
from foldin.settings import CONTEXT_PREFIX, ITEM_FIELDS, USER_FIELDS
from foldin_client.models import SchemaBody

What = Literal["ratings", "items", "users"]
Row = Mapping[str, Any]
RATING_FIELDS = ("user_id", "item_id", "rating", "timestamp")
# Between the texts of a list in a cell of a CSV file, as `foldin import` reads them.
BAR = "|"
_FIELD_TYPES = {
    "rating": pa.float64(),
    "timestamp": pa.float64(),
    "hidden": pa.bool_(),
    "categories": pa.list_(pa.string()),
}
_TYPES = {"number": pa.float64(), "boolean": pa.bool_(), "list": pa.list_(pa.string())}
_ROWS_A_GROUP = 100_000  # of a Parquet file: some megabytes


class Writer(Protocol):
    """One format. `close` writes what is left."""

    def add(self, row: msgspec.Struct) -> None:
        """Write a row. Raises StoppedError, OSError."""

    def close(self) -> None:
        """Write what is left, and leave the file open. Raises OSError."""


def columns_of(what: What, schema: SchemaBody) -> dict[str, str]:
    """Return the columns of a table by name, each with the type of its attribute or field of a context; ""
    for what every row may have.

    Raises StoppedError where two columns would have one name.
    """
    fields: tuple[str, ...] = RATING_FIELDS
    more: dict[str, str] = {}
    if what == "ratings":
        more = {f"{CONTEXT_PREFIX}{name}": each.kind for name, each in schema.context.items()}
    else:
        fields, more = (ITEM_FIELDS, schema.items) if what == "items" else (USER_FIELDS, schema.users)
    # Where the names of a table and those of attributes meet, one would hide the other.
    if twice := sorted(set(fields) & set(more)):
        raise StoppedError(
            f"an attribute is called {twice[0]}, as a field is, and a table has one column of a name: export "
            "as ndjson"
        )
    return {**dict.fromkeys(fields, ""), **more}


class LinesWriter:
    """NDJSON, as it comes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, row: msgspec.Struct) -> None:
        """As in Writer."""
        self._file.write(msgspec.json.encode(row) + b"\n")

    def close(self) -> None:
        """As in Writer."""
        self._file.flush()


class _EndedByNewlines:
    """Takes rows that end with both, and writes them with a newline alone. Python up to 3.12 quotes a
    carriage return only where its rows end with one, and a reader takes either for the end of a row.
    """

    def __init__(self, text: TextIO) -> None:
        self._text = text

    def write(self, row: str) -> int:
        """Write one whole row."""
        return self._text.write(row.removesuffix("\r\n") + "\n")


class CsvWriter:
    """CSV with a header; lists have bars between their texts. Raises StoppedError for names of columns
    that a header cannot have.
    """

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        _require_header(list(columns))
        # Not the platform's line ends: the file is the same wherever it is written.
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._columns = columns
        self._csv = csv.DictWriter(_EndedByNewlines(self._text), list(columns), lineterminator="\r\n")
        self._csv.writeheader()

    def add(self, row: msgspec.Struct) -> None:
        """As in Writer."""
        cells = flat(row, self._columns)
        self._csv.writerow({name: self._cell(cells, name) for name in cells})

    def close(self) -> None:
        """As in Writer."""
        self._text.flush()
        self._text.detach()

    def _cell(self, cells: Row, name: str) -> Any:
        value = cells[name]
        if isinstance(value, list):
            wrong = [text for text in value if BAR in text or text != text.strip() or not text]
            if wrong:
                raise _no_place(cells, name, f"the text {wrong[0]!r} in a list", empty="" in value)
            if not value and name != "categories":  # which are none where they are not given
                raise _no_place(cells, name, "a list of no texts")
            return BAR.join(value)
        if value == "":
            raise _no_place(cells, name, "a text of no letters", empty=True)
        return str(value).lower() if isinstance(value, bool) else value


def _require_header(names: Sequence[str]) -> None:
    """Raise StoppedError where a reader would take the header for another."""
    found = "".join(names)
    wrong = [name for name in names if name != name.strip() or not {"\r", "\n"}.isdisjoint(name)]
    # `foldin import` takes what there is most of in the first line for what is between its columns.
    wrong += [name for sign in "\t;|" if found.count(sign) >= len(names) for name in names if sign in name]
    # Without a tab all of the header is one column of RecBole's.
    wrong += [name for name in names[-1:] if name.endswith((":token", ":token_seq", ":float", ":float_seq"))]
    if wrong:
        raise StoppedError(
            f"a column is called {wrong[0]!r}, which the header of CSV cannot say: export as ndjson "
            "or parquet"
        )


def _no_place(cells: Row, name: str, what: str, *, empty: bool = False) -> StoppedError:
    """Return the error for a value of a row that CSV cannot say. `empty`: it has an empty text, which
    `foldin import` takes for no value in Parquet, too.
    """
    row = ", ".join(repr(cells[field]) for field in ("user_id", "item_id") if field in cells)
    formats = "ndjson" if empty else "ndjson or parquet"
    return StoppedError(f"{name} of {row} has {what}, which a cell of CSV cannot say: export as {formats}")


class ParquetWriter:
    """Parquet, a group of rows at a time."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._schema = pa.schema(
            [
                (name, (_TYPES.get(kind) if kind else _FIELD_TYPES.get(name)) or pa.string())
                for name, kind in columns.items()
            ]
        )
        self._file = pq.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: msgspec.Struct) -> None:
        """As in Writer."""
        self._rows.append(flat(row, self._columns))
        if len(self._rows) >= _ROWS_A_GROUP:
            self._write()

    def close(self) -> None:
        """As in Writer."""
        self._write()
        self._file.close()

    def _write(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []


def flat(struct: msgspec.Struct, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with its attributes and its context as columns.

    Raises StoppedError for one that came after the export began.
    """
    row = msgspec.to_builtins(struct)
    # One level: what a reader of tables expects, and `foldin import` takes.
    found = {name: value for name, value in row.items() if name not in {"attributes", "context"}}
    found |= row.get("attributes") or {}
    found |= {f"{CONTEXT_PREFIX}{name}": value for name, value in (row.get("context") or {}).items()}
    if new := sorted(found.keys() - columns.keys()):
        raise StoppedError(f"{new[0]} is new since the export began: export again")
    return found
