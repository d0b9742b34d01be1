"""Reads a file of ratings from its start to its end, a batch at a time.

Invariant: memory is bounded, and the number of every line is known. A text file is cut where a line ends and
no quote is open, so that each chunk can be parsed by itself. A line of NDJSON, as `POST /ratings` takes and
`foldin export` writes it, that is no such rating is a bad row with its number, and no more columns are made
than contexts may have fields.
"""

import re
import zlib
from collections.abc import Generator, Iterator
from math import isfinite
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from featurestore.ratings.context_schema import MOST_FIELDS, ContextKind
from foldin.files.contexts import SHOWN_CHARACTERS, may_be_context
from foldin.files.layout import BOM, CountingFile, Layout, open_text
from foldin.files.rows import BadRow, Batch, Lines, RowRules
from foldin.settings import CONTEXT_PREFIX
from processes.errors import CannotStartError, in_plain_words

CHUNK_BYTES = 2 * 1024 * 1024  # about 100,000 ratings
# A quote that is never closed makes the rest of the file one row.
MAX_ROW_BYTES = 32 * 1024 * 1024
PARQUET_ROWS = 65_536  # as many ratings as a chunk of text has, about
# In place of `::`, as the parser takes one character: no id holds it, since it is no text.
UNIT_SEPARATOR = b"\x1f"


class RatingsFile:
    """A file that can be read more than once. `position` of `total_bytes`: how far, in bytes on the disk."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self.total_bytes = path.stat().st_size
        self.position = 0
        self._taken = 0

    def read(self, rules: RowRules) -> Generator[Batch, None, None]:
        """Yield every row of the file in its order, checked. Raises CannotStartError where it is damaged."""
        self._taken = 0
        with CountingFile(self.path) as counted:
            read = self._parquet if self.layout.kind == "parquet" else self._text
            batches = read(counted, rules)
            try:
                for batch in batches:
                    # What a buffer has read ahead is no batch yet.
                    self.position = self._taken or counted.read_bytes
                    yield batch
            except (OSError, EOFError, zlib.error, pa.ArrowException) as exc:
                raise CannotStartError(f"{self.path} is damaged ({exc}): fetch or make it again") from exc
            finally:
                batches.close()

    def _text(self, counted: CountingFile, rules: RowRules) -> Generator[Batch, None, None]:
        with open_text(counted, self.layout) as file:
            line = 1
            for chunk in _chunks(file, self.path, quoted=self.layout.quoted):
                data = chunk.removeprefix(BOM) if line == 1 else chunk
                count = data.count(b"\n")
                if not self.layout.compressed:
                    self._taken += len(chunk)
                first = line
                if line == 1:
                    for _ in range(self.layout.header_lines):
                        data = data.partition(b"\n")[2]
                        first += 1
                yield self._parse(data, first, line + count - 1, rules)
                line += count

    def _parse(self, data: bytes, first: int, last: int, rules: RowRules) -> Batch:
        layout = self.layout
        if layout.kind == "ndjson":
            rows, numbers, no_rows = parse_lines(data, first, rules)
            return rules.check(rows, numbers, last, no_rows)
        separator = layout.separator
        if separator == "::":
            data, separator = data.replace(b"::", UNIT_SEPARATOR), "\x1f"
        torn: list[tuple[int, str]] = []

        def odd_row(row: pacsv.InvalidRow) -> str:
            torn.append((row.number, f"{row.actual_columns} columns instead of {row.expected_columns}"))
            return "skip"

        positions = layout.columns
        names = [str(position) for position in range(len(layout.names))]
        if data.strip():
            table = pacsv.read_csv(
                pa.BufferReader(data),
                # One block: rows are numbered from its start.
                pacsv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
                pacsv.ParseOptions(
                    delimiter=separator,
                    quote_char='"' if layout.quoted else False,
                    newlines_in_values=layout.quoted,
                    invalid_row_handler=odd_row,
                ),
                pacsv.ConvertOptions(
                    include_columns=[names[position] for position in positions.values()],
                    # Bytes: a row that is no rating keeps its line and gets a reason.
                    column_types=dict.fromkeys(names, pa.binary()),
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
        else:
            table = pa.table({names[position]: pa.array([], pa.binary()) for position in positions.values()})
        starts = self._row_lines(data, first, table.num_rows + len(torn))
        lines = np.delete(starts, [number - 1 for number, _ in torn]) if torn else starts
        columns = {role: _one(table.column(names[position])) for role, position in positions.items()}
        bad = tuple(BadRow(int(starts[number - 1]), reason) for number, reason in torn)
        return rules.check(columns, lines, last, bad)

    def _row_lines(self, data: bytes, first: int, n_rows: int) -> Lines:
        """Return the line on which each row begins: an empty line is no row, a row in quotes has several."""
        text = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        if n_rows == ends.size:  # as in almost all files
            return np.arange(first, first + n_rows, dtype=np.int64)
        quotes = np.flatnonzero(text == ord('"')) if self.layout.quoted else ends[:0]
        # A line ends a row where the number of quotes before its end is even.
        last_lines = np.flatnonzero(np.searchsorted(quotes, ends) % 2 == 0)
        first_lines = np.concatenate(([0], last_lines[:-1] + 1))
        lengths = ends[last_lines] - np.concatenate(([-1], ends))[first_lines] - 1
        returns = (text[np.maximum(ends[last_lines] - 1, 0)] == ord("\r")) & (lengths > 0)
        starts = first_lines[lengths - returns > 0]
        # A quote in the middle of a value that is not quoted breaks the count: then the line is about right.
        return first + np.resize(starts, n_rows)

    def _parquet(self, counted: CountingFile, rules: RowRules) -> Generator[Batch, None, None]:
        layout = self.layout
        line = 0
        with pq.ParquetFile(self.path) as file:
            names = {role: layout.names[position] for role, position in layout.columns.items()}
            total = max(file.metadata.num_rows, 1)
            self._check_types(file.schema_arrow, names)
            for record in file.iter_batches(PARQUET_ROWS, columns=list(dict.fromkeys(names.values()))):
                columns = {role: record.column(name) for role, name in names.items()}
                lines = np.arange(line + 1, line + 1 + record.num_rows, dtype=np.int64)
                line += record.num_rows
                # Columns lie apart in the file: the share of its rows stands for that of its bytes.
                counted.read_bytes = int(counted.total_bytes * line / total)
                yield rules.check(columns, lines, line)

    def _check_types(self, schema: pa.Schema, names: dict[str, str]) -> None:
        def is_text(kind: pa.DataType) -> bool:
            inner = kind.value_type if pa.types.is_dictionary(kind) else kind
            return bool(
                pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_binary(inner)
            )

        def is_number(kind: pa.DataType) -> bool:
            return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

        for role, name in names.items():
            kind = schema.field(name).type
            fits = {
                "user": is_text(kind) or pa.types.is_integer(kind),
                "item": is_text(kind) or pa.types.is_integer(kind),
                "rating": is_number(kind) or pa.types.is_string(kind),
                "timestamp": is_number(kind)
                or pa.types.is_string(kind)
                or pa.types.is_timestamp(kind)
                or pa.types.is_date(kind),
                "type": is_text(kind),
                "context": may_be_context(kind),
            }
            if not fits[role.partition(".")[0]]:
                held = (
                    "numbers with fractions"
                    if pa.types.is_floating(kind)
                    else "text"
                    if is_text(kind)
                    else kind
                )
                raise CannotStartError(
                    f"column {name} of {self.path} holds {held}, which cannot be a {role}: convert it, or "
                    "name another with --columns"
                )


def _one(column: pa.ChunkedArray) -> pa.Array:
    """Return the column in one piece (it has one block, or none)."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _chunks(file: IO[bytes], path: Path, *, quoted: bool) -> Iterator[bytes]:
    """Yield chunks of about CHUNK_BYTES, each ending with the end of a row, the last one, too."""
    rest = b""
    while True:
        data = file.read(CHUNK_BYTES)
        if not data:
            break
        rest += data
        end = _end_of_row(rest, quoted=quoted)
        if end:
            yield rest[:end]
            rest = rest[end:]
        if len(rest) > MAX_ROW_BYTES:
            raise CannotStartError(
                f"{path} has a row of more than {MAX_ROW_BYTES // 2**20} MB: look for a quote that is never "
                "closed"
            )
    if rest:
        yield rest if rest.endswith(b"\n") else rest + b"\n"


def _end_of_row(data: bytes, *, quoted: bool) -> int:
    """Return where the last whole row in `data` ends, 0 if there is none."""
    # Quotes inside a quoted value come in pairs: an odd number before a line's end is an open one.
    end = data.rfind(b"\n") + 1
    while quoted and end and data.count(b'"', 0, end) % 2:
        # The last quote is the one that is still open: its row began before it.
        end = data.rfind(b"\n", 0, data.rfind(b'"', 0, end)) + 1
    return end


Value = float | str | bool


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str | int
    item_id: str | int
    rating: float
    timestamp: float | str | None = None
    context: dict[str, Value | None] | None = None


_DECODER = msgspec.json.Decoder(_Line)
_AT = re.compile(r"^(must be .*) - at \$\.(.*)$")


def parse_lines(
    data: bytes, first: int, rules: RowRules
) -> tuple[dict[str, pa.Array], Lines, tuple[BadRow, ...]]:
    """Return the columns of whole lines, the number of the line of each row, and the lines that are none.
    `first`: the number of the first line.
    """
    rows: list[_Line] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    contexts: dict[str, dict[int, Value]] = {}
    kinds: dict[str, ContextKind] = {}
    for number, text in enumerate(data.split(b"\n"), first):
        if not text.strip():
            continue
        try:
            row = _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            bad.append(BadRow(number, _AT.sub(r"\2 \1", in_plain_words(str(exc)))))
            continue
        given = {name: value for name, value in (row.context or {}).items() if value is not None}
        if len(contexts.keys() | given.keys()) > MOST_FIELDS:
            bad.append(BadRow(number, f"context: a file may give {MOST_FIELDS} fields"))
            continue
        for name in given.keys() - kinds.keys():
            kinds[name] = rules.fields.told(name, _kind(given[name]))
        if wrong := [name for name, value in given.items() if kinds[name] != _kind(value)]:
            shown = repr(given[wrong[0]])[:SHOWN_CHARACTERS]
            bad.append(BadRow(number, f"{CONTEXT_PREFIX}{wrong[0]} is of another kind than {shown}"))
            continue
        for name, value in given.items():
            contexts.setdefault(name, {})[len(rows)] = value
        rows.append(row)
        lines.append(number)
    columns = {
        "user": pa.array([str(row.user_id) for row in rows], pa.string()),
        "item": pa.array([str(row.item_id) for row in rows], pa.string()),
        "rating": pa.array([row.rating for row in rows], pa.float64()),
    }
    if any(row.timestamp is not None for row in rows):
        columns["timestamp"] = _times([row.timestamp for row in rows], rules.now)
    for name, values in contexts.items():
        column = [values.get(place) for place in range(len(rows))]
        is_text = any(isinstance(value, str) for value in values.values())
        columns[CONTEXT_PREFIX + name] = (
            pa.array(column, pa.string())
            if is_text
            else pa.array([None if value is None else float(value) for value in column], pa.float64())
        )
    return columns, np.array(lines, np.int64), tuple(bad)


def _kind(value: Value) -> ContextKind:
    return "category" if isinstance(value, str) else "number"


def _times(times: list[float | str | None], now: float) -> pa.Array:
    """Return times as numbers, or as texts where one is; `now` where a line has none, if that is known."""
    there = [now if time is None and isfinite(now) else time for time in times]
    if any(isinstance(time, str) for time in there):
        return pa.array([None if time is None else str(time) for time in there], pa.string())
    return pa.array(there, pa.float64())
