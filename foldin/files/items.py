"""Reads a file of items: CSV, Parquet, NDJSON, and RecBole's `.item`. Invariant: a column has one type, told
or inferred from all of its values, and an empty cell is no value.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from featurestore.catalogue.item import AttributeType
from featurestore.catalogue.schema import MOST_NAME_BYTES, TYPES, Types, parse_time, shown_time
from foldin.files.layout import BOM, GZIP_MAGIC, NUMBER, PARQUET_MAGIC
from processes.errors import CannotStartError

# Of the fields of an item, names that files use, without case, spaces and punctuation: MovieLens, RecBole,
# Amazon, Goodreads.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "item_id": ("itemid", "item", "id", "iid", "movieid", "productid", "asin", "bookid", "isbn"),
    "title": ("title", "name", "movietitle", "booktitle"),
    "categories": ("categories", "category", "genres", "genre", "class"),
    "hidden": ("hidden",),
    "available_from": ("availablefrom",),
    "available_until": ("availableuntil",),
    "image": ("image", "imageurl", "imurl", "poster"),
}
# RecBole's types of columns.
_RECBOLE = {"token", "token_seq", "float", "float_seq"}
# So few values of another type may be slips; more are what the column has.
_STRAY_PART = 0.01
_SHOWN = 40  # characters of a bad value
_TRUTH = {"true": True, "false": False}
_SEQUENCES = {"token_seq", "float_seq"}
# What a column of a text file may be: the first that all its values are.
_INFERRED: tuple[AttributeType, ...] = ("boolean", "number", "time", "text")


@dataclass(frozen=True, slots=True)
class ItemsFile:
    """Items of a file as POST /items takes them. `types`: of its attributes, by name; `columns`: which column
    each field is; `remarks`: what was left out, or may be a mistake, a line each.
    """

    rows: list[dict[str, Any]]
    types: dict[str, AttributeType]
    columns: dict[str, str]
    remarks: Sequence[str] = ()


def read_items_file(
    path: Path, columns: Mapping[str, str] | None, held: Types, *, skip_bad: bool = False
) -> ItemsFile:
    """Read a file of items. `columns`: the column of a field, or the type of another column; `held`: the
    types that attributes have already; `skip_bad`: leave out values of another type than their column.

    Raises CannotStartError: no such file, damaged, no column of ids, a value of another type than its column.
    """
    fields = {name: column for name, column in (columns or {}).items() if name in SYNONYMS}
    told: dict[str, str] = {
        **held,
        **{name: each for name, each in (columns or {}).items() if name not in fields},
    }
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        if data.startswith(PARQUET_MAGIC):
            return _Table(path, pq.read_table(pa.BufferReader(data)), fields, told, skip_bad).read()
        data = data.removeprefix(BOM)
        if data[:64].lstrip()[:1] == b"{":
            return _of_lines(path, data)
        return _of_text(path, data, fields, told, skip_bad=skip_bad)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise CannotStartError(f"{path} cannot be read ({why}): check the path and the file") from exc


def _of_lines(path: Path, data: bytes) -> ItemsFile:
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as exc:
            raise CannotStartError(f"line {number} of {path} is no JSON ({exc}): mend it") from exc
        if row is not None and not isinstance(row, dict):
            raise CannotStartError(f"line {number} of {path} is no JSON object: mend it")
        rows += [row] if row is not None else []
    # The service infers the types, as it does of any call.
    return ItemsFile(rows, {}, {})


def _of_text(
    path: Path, data: bytes, fields: Mapping[str, str], told: Mapping[str, str], *, skip_bad: bool
) -> ItemsFile:
    first = data.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")
    typed = [name.rpartition(":") for name in first.split("\t")]
    is_recbole = all(kind in _RECBOLE for _, _, kind in typed)
    separator = "\t" if is_recbole else max(",\t;", key=first.count)
    quote = None if separator == "\t" else '"'
    header = next(csv.reader([first], delimiter=separator, quotechar=quote, strict=False))
    names = [name for name, _, _ in typed] if is_recbole else [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise CannotStartError(f"{path} has two columns of one name: rename one")
    table = pacsv.read_csv(
        pa.BufferReader(data),
        pacsv.ReadOptions(column_names=names, skip_rows=1),
        pacsv.ParseOptions(
            delimiter=separator, quote_char=quote or False, newlines_in_values=quote is not None
        ),
        # Texts: what they are is decided by all values of a column.
        pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
    sequences = {name for name, _, kind in typed if kind in _SEQUENCES} if is_recbole else set()
    types = {**dict.fromkeys(sequences, "list"), **told}
    return _Table(path, table, fields, types, skip_bad, frozenset(sequences)).read()


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of items. `fields`: the column of a field, where told; `told`: types of other columns;
    `skip_bad`: see `read_items_file`; `spaced`: columns whose lists have spaces between their texts, not
    bars; `remarks`: are added to.
    """

    path: Path
    table: pa.Table
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
        for column in self.table.column_names:
            cells = [_plain(cell) for cell in self.table.column(column).to_pylist()]
            if (role := by_column.get(column)) is not None:
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
            if bad:
                self.remarks.append(f"{bad:,} values of {column} are no {kind}, and were left out")
        for number, row in enumerate(rows, 1):
            if not row.get("item_id"):
                raise CannotStartError(
                    f"row {number} of {self.path} has no id in {fields['item_id']}: mend it"
                )
        return ItemsFile(rows, types, fields, self.remarks)

    def _find_fields(self) -> dict[str, str]:
        names = self.table.column_names
        missing = [column for column in self.fields.values() if column not in names]
        if missing:
            shown = ", ".join(missing)
            raise CannotStartError(f"{self.path} has no column {shown}: name some of {', '.join(names)}")
        plain = [re.sub(r"[^a-z]", "", name.lower()) for name in names]
        found = dict(self.fields)
        for name, words in SYNONYMS.items():
            known = next((names[plain.index(word)] for word in words if word in plain), None)
            if name not in found and known is not None and known not in found.values():
                found[name] = known
        if "item_id" not in found:
            raise CannotStartError(
                f"cannot tell which column of {self.path} has the ids ({', '.join(names[:20])}): say so with "
                "--columns item_id=NAME"
            )
        return found

    def _field(self, role: str, column: str, cell: Any) -> Any:
        if role == "categories":
            return self._texts(column, cell)
        if role == "hidden":
            return _TRUTH.get(str(cell).lower(), cell)
        if role in {"available_from", "available_until"}:
            return float(cell) if isinstance(cell, str) and NUMBER.fullmatch(cell) else cell
        return str(cell)

    def _texts(self, column: str, cell: Any) -> list[str]:
        if isinstance(cell, list):
            return [str(each) for each in cell]
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
    """Return a cell without what only a table has: no text at all, and the times of Parquet."""
    if isinstance(cell, datetime) and cell.tzinfo is None:
        cell = cell.replace(tzinfo=UTC)
    return cell.isoformat() if isinstance(cell, date) else None if cell == "" else cell


def _read(kind: AttributeType, cell: Any) -> Any:
    """Return a cell as a value of a type; None where it is none."""
    found: Any = None
    match kind, cell:
        case "boolean", bool():
            found = cell
        case "boolean", str():
            found = _TRUTH.get(cell.lower())
        case "number" | "time", int() | float() if not isinstance(cell, bool):
            found = cell
        case "number", str() if NUMBER.fullmatch(cell):
            found = float(cell)
        case "time", str():
            seconds = parse_time(float(cell) if NUMBER.fullmatch(cell) else cell)
            found = None if seconds is None else shown_time(seconds)
        case "text", _:
            found = str(cell)
    return found
