"""Reads a file of items, or of users: CSV, Parquet, NDJSON, and RecBole's `.item` and `.user`.

Invariant: a column has one type, told or inferred from all of its values, and an empty cell is no value.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from featurestore.catalogue.item import AttributeType
from featurestore.catalogue.schema import MOST_NAME_BYTES, TYPES, Types, parse_time, shown_time
from foldin.files import layout
from foldin.files.layout import BOM, GZIP_MAGIC, NUMBER, PARQUET_MAGIC, plain_names, recbole_header
from processes.errors import CannotStartError

_TITLES = ("title", "name", "movietitle", "booktitle", "productname")
# Names that files use for the fields of an item, as `layout.SYNONYMS` has those of ratings.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "item_id": tuple(word for word in layout.SYNONYMS["item"] if word not in _TITLES),
    "title": _TITLES,
    "categories": ("categories", "category", "genres", "genre", "class"),
    "hidden": ("hidden",),
    "available_from": ("availablefrom",),
    "available_until": ("availableuntil",),
    "image": ("image", "imageurl", "imurl", "poster"),
}
# The same of users: what is no id is an attribute.
USER_SYNONYMS: Mapping[str, tuple[str, ...]] = {"user_id": (*layout.SYNONYMS["user"], "id")}
# So few values of another type may be slips; more are what the column has.
_STRAY_PART = 0.01
_SHOWN = 40  # characters of a bad value
_FLOATS_WHOLE = 2**53  # behind it a float is several whole numbers
_TRUTH = {"true": True, "false": False}
_SEQUENCES = {"token_seq", "float_seq"}
# What a column of a text file may be: the first that all its values are.
_INFERRED: tuple[AttributeType, ...] = ("boolean", "number", "time", "text")


@dataclass(frozen=True, slots=True)
class ItemsFile:
    """Items of a file as POST /items takes them, or users in the same form. `types`: of its attributes, by
    name; `columns`: which column each field is; `remarks`: what was left out, or may be a mistake, a line
    each; `left_out`: how many values were.
    """

    rows: list[dict[str, Any]]
    types: dict[str, AttributeType]
    columns: dict[str, str]
    remarks: Sequence[str] = ()
    left_out: int = 0


def read_items_file(
    path: Path,
    columns: Mapping[str, str] | None,
    held: Types,
    *,
    skip_bad: bool = False,
    names: Mapping[str, tuple[str, ...]] = SYNONYMS,
) -> ItemsFile:
    """Read a file of items. `columns`: the column of a field, or the type of another column; `held`: the
    types that attributes have already; `skip_bad`: leave out values of another type than their column;
    `names`: how columns of the fields are called, the one of the id first.

    Raises CannotStartError: no such file, damaged, no column of ids, a value of another type than its column.
    """
    fields, told = dict[str, str](), dict[str, str](held)
    for name, each in (columns or {}).items():
        # `item` and `user`, as of ratings, or as the API has them.
        field_name = f"{name}_id" if f"{name}_id" in names else name
        (fields if field_name in names else told)[field_name] = each
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        if data.startswith(PARQUET_MAGIC):
            table = pq.read_table(pa.BufferReader(data))
            return _Table(path, table, names, fields, told, skip_bad).read()
        data = data.removeprefix(BOM)
        if data[:64].lstrip()[:1] == b"{":
            return _of_lines(path, data)
        return _of_text(path, data, names, fields, told, skip_bad=skip_bad)
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise CannotStartError(f"{path} cannot be read ({why}): check the path and the file") from exc


def _of_lines(path: Path, data: bytes) -> ItemsFile:
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = msgspec.json.decode(line) if line.strip() else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise CannotStartError(f"line {number} of {path} is no JSON ({exc}): mend it") from exc
        if row is not None and not isinstance(row, dict):
            raise CannotStartError(f"line {number} of {path} is no JSON object: mend it")
        rows += [row] if row is not None else []
    # The service infers the types, as it does of any call.
    return ItemsFile(rows, {}, {})


def _of_text(
    path: Path,
    data: bytes,
    names: Mapping[str, tuple[str, ...]],
    fields: Mapping[str, str],
    told: Mapping[str, str],
    *,
    skip_bad: bool,
) -> ItemsFile:
    first = data.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")
    typed = recbole_header(first)
    separator = "\t" if typed else max(",\t;", key=first.count)
    quote = None if separator == "\t" else '"'
    header = next(csv.reader([first], delimiter=separator, quotechar=quote, strict=False))
    found = [name for name, _ in typed] if typed else [name.strip() for name in header]
    if len(set(found)) < len(found):
        raise CannotStartError(f"{path} has two columns of one name: rename one")
    table = pacsv.read_csv(
        pa.BufferReader(data),
        pacsv.ReadOptions(column_names=found, skip_rows=1),
        pacsv.ParseOptions(
            delimiter=separator, quote_char=quote or False, newlines_in_values=quote is not None
        ),
        # Texts: what they are is decided by all values of a column.
        pacsv.ConvertOptions(column_types=dict.fromkeys(found, pa.string()), strings_can_be_null=False),
    )
    sequences = {name for name, kind in typed or () if kind in _SEQUENCES}
    types = {**dict.fromkeys(sequences, "list"), **told}
    return _Table(path, table, names, fields, types, skip_bad, frozenset(sequences)).read()


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of items. `names`, `skip_bad`: see `read_items_file`; `fields`: the column of a field, where
    told; `told`: types of other columns; `spaced`: columns whose lists have spaces between their texts, not
    bars; `remarks`: are added to.
    """

    path: Path
    table: pa.Table
    names: Mapping[str, tuple[str, ...]]
    fields: Mapping[str, str]
    told: Mapping[str, str]
    skip_bad: bool
    spaced: frozenset[str] = frozenset()
    remarks: list[str] = field(default_factory=list)

    def read(self) -> ItemsFile:
        """Return its items. Raises CannotStartError."""
        fields = self._find_fields()
        by_column = {column: role for role, column in fields.items()}
        types: dict[str, AttributeType] = {}
        rows: list[dict[str, Any]] = [{} for _ in range(self.table.num_rows)]
        left_out = 0
        for column in self.table.column_names:
            role = by_column.get(column)
            cells = self._cells(column, _id_of if role == self.id else _plain)
            if role is not None:
                for row, cell in zip(rows, cells, strict=True):
                    if cell is not None:
                        row[role] = self._field(role, column, cell)
                continue
            if not 0 < len(column.encode()) <= MOST_NAME_BYTES:
                raise CannotStartError(f"a column of {self.path} has no usable name ({column[:_SHOWN]!r})")
            kind = types[column] = self._type(column, cells)
            bad = 0
            for number, (row, cell) in enumerate(zip(rows, cells, strict=True), 1):
                value = None if cell is None else self._value(column, kind, cell, number)
                bad += value is None and cell is not None
                if value is not None:
                    row.setdefault("attributes", {})[column] = value
            left_out += bad
            if bad:
                self.remarks.append(f"{bad:,} values of {column} are no {kind}, and were left out")
        for number, row in enumerate(rows, 1):
            if not row.get(self.id):
                raise CannotStartError(f"row {number} of {self.path} has no id in {fields[self.id]}: mend it")
        return ItemsFile(rows, types, fields, self.remarks, left_out)

    def _cells(self, column: str, plain: Callable[[Any], Any]) -> list[Any]:
        values = self.table.column(column)
        if pa.types.is_timestamp(values.type):
            # Python's times have no nanoseconds.
            values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        try:
            return list(map(plain, values.to_pylist()))
        except (ValueError, OverflowError) as exc:
            raise CannotStartError(f"{column} of {self.path} cannot be read ({exc}): mend it") from exc

    @property
    def id(self) -> str:
        """The field that names a row."""
        return next(iter(self.names))

    def _find_fields(self) -> dict[str, str]:
        names = self.table.column_names
        missing = [column for column in self.fields.values() if column not in names]
        if missing:
            shown = ", ".join(missing)
            raise CannotStartError(f"{self.path} has no column {shown}: name some of {', '.join(names)}")
        plain = plain_names(names)
        found = dict(self.fields)
        for name, words in self.names.items():
            known = next((names[plain.index(word)] for word in words if word in plain), None)
            if name not in found and known is not None and known not in found.values():
                found[name] = known
        if self.id not in found:
            raise CannotStartError(
                f"cannot tell which column of {self.path} has the ids ({', '.join(names[:20])}): say so with "
                f"--columns {self.id.removesuffix('_id')}=NAME"
            )
        return found

    def _field(self, role: str, column: str, cell: Any) -> Any:
        if role == "categories":
            return self._texts(column, cell)
        if role == "hidden":
            return _TRUTH.get(str(cell).lower(), cell)
        if role in {"available_from", "available_until"}:
            value = float(cell) if isinstance(cell, str) and NUMBER.fullmatch(cell) else cell
            # JSON has no infinity, and null would be no limit.
            return str(cell) if value in {math.inf, -math.inf} else value
        return str(cell)

    def _texts(self, column: str, cell: Any) -> list[str]:
        if isinstance(cell, list):
            return [str(each) for each in cell if each is not None]
        parts = str(cell).split(" " if column in self.spaced else "|")
        return [part.strip() for part in parts if part.strip()]

    def _type(self, column: str, cells: list[Any]) -> AttributeType:
        if (told := self.told.get(column)) is not None:
            return next(kind for kind in TYPES if kind == told)
        given = [cell for cell in cells if cell is not None]
        if any(isinstance(cell, list) for cell in given):
            return "list"
        stray = ""
        for kind in _INFERRED:
            bad = [cell for cell in given if _read(kind, cell) is None]
            if not bad:
                break
            if not stray and len(bad) <= _STRAY_PART * len(given):
                shown = ", ".join(str(cell)[:_SHOWN] for cell in bad[:3])
                stray = (
                    f"{len(bad):,} of {len(given):,} values of {column} are no {kind} ({shown}): --columns "
                    f"{column}={kind} --on-bad skip leaves them out"
                )
        self.remarks.extend([stray] if stray else [])
        return kind

    def _value(self, column: str, kind: AttributeType, cell: Any, number: int) -> Any:
        found = self._texts(column, cell) if kind == "list" else _read(kind, cell)
        if found is None and not self.skip_bad:
            why = f"row {number} of {self.path}: {column} is {str(cell)[:_SHOWN]!r}, which is no {kind}"
            raise CannotStartError(f"{why}: mend it, or say another type with --columns {column}=TYPE")
        return found


def _plain(cell: Any) -> Any:
    """Return a cell without what only a table has: no text at all, NaN, and Parquet's bytes, decimals and
    times. Raises ValueError.
    """
    if isinstance(cell, list):
        return list(map(_plain, cell))
    if isinstance(cell, bytes):
        cell = cell.decode()
    if isinstance(cell, Decimal):
        cell = float(cell)
    if isinstance(cell, datetime) and cell.tzinfo is None:
        cell = cell.replace(tzinfo=UTC)
    if isinstance(cell, date):
        return cell.isoformat()
    return None if cell == "" or (isinstance(cell, float) and math.isnan(cell)) else cell


def _id_of(cell: Any) -> str | None:
    """Return the id that a cell is: a text, or a whole number as its digits; None where there is none.

    Raises ValueError for anything else, which would be the id of another item.
    """
    if isinstance(cell, Decimal) and cell == cell.to_integral_value():
        cell = int(cell)
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < _FLOATS_WHOLE:
        cell = int(cell)
    # Bytes are text; an empty one, and NaN, are none.
    found = _plain(cell)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(cell, str | bytes | int):
        raise ValueError(f"{cell!s:.{_SHOWN}} is no id: texts and whole numbers are")
    return str(found)


def _read(kind: AttributeType, cell: Any) -> Any:
    """Return a cell as a value of a type; None where it is none."""
    found: Any = None
    match kind, cell:
        case "boolean", bool():
            found = cell
        case "boolean", str():
            found = _TRUTH.get(cell.lower())
        case "number", int() | float() if not isinstance(cell, bool):
            found = cell if math.isfinite(cell) else None
        case "number", str() if NUMBER.fullmatch(cell):
            found = number if math.isfinite(number := float(cell)) else None
        case "time", int() | float():
            found = None if parse_time(cell) is None else cell
        case "time", str():
            seconds = parse_time(float(cell) if NUMBER.fullmatch(cell) else cell)
            found = None if seconds is None else shown_time(seconds)
        case "text", _:
            found = str(cell)
    return found
