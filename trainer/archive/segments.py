"""One archive segment: a Parquet file that is written whole or not at all, and shows when it was damaged.

Invariant: under its final name a segment is complete, durable, and equal to its checksum; nothing is ever
changed in place.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.archive.events import CONTEXT, SCHEMA, Rows, Span, Spans
from trainer.archive.files import Staged, open_file, sync_directory
from trainer.errors import (
    ArchiveFailedError,
    SegmentDamagedError,
    SegmentGoneError,
    SegmentUnreadError,
    other_format,
)

METADATA_KEY = b"foldin"
# Grows when a segment of today could not be read by an older trainer.
FORMAT = 2
DAMAGED = ".damaged"
# Row groups bound the memory of a streaming reader; a quarter of a million rows is some 10 MB.
ROW_GROUP_ROWS = 262_144

Guard = Callable[[], None]
"""Asked right before a commit; raises when this process may not commit any more."""

Step = Callable[[str], None]
"""Called with the name of each step before it is done. Tests kill the process there."""


def no_step(_name: str) -> None:
    """Do nothing between steps."""


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """Which segments of the log a file stands for: numbers `first` to `last`; the higher `revision` is
    newer.
    """

    first: int
    last: int
    revision: int = 0

    _PATTERN = re.compile(r"(\d{10})-(\d{10})\.r(\d+)\.parquet")

    def __str__(self) -> str:
        return f"{self.first:010d}-{self.last:010d}.r{self.revision}.parquet"

    @classmethod
    def parse(cls, name: str) -> "SegmentName | None":
        """Return the name of a segment file; None for any other file."""
        match = cls._PATTERN.fullmatch(name)
        return None if match is None else cls(*(int(group) for group in match.groups()))

    def covers(self, other: "SegmentName") -> bool:
        """Say whether this file makes `other` superfluous."""
        inside = self.first <= other.first and other.last <= self.last
        wider = (self.first, self.last) != (other.first, other.last)
        return inside and (wider or self.revision > other.revision)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment on disk: its name, what of the streams it covers, and how many rows it has."""

    path: Path
    name: SegmentName
    spans: Spans
    rows: int


def write_segment(
    directory: Path,
    name: SegmentName,
    rows: Rows,
    spans: Spans,
    *,
    step: Step,
    guard: Guard,
) -> Segment:
    """Write `rows` under `name`, unless the guard raises. Of them some row groups are in memory at a time.

    Raises `ArchiveFailedError` with nothing left under the final name. Repeating is safe.
    """
    path = directory / str(name)
    write_file(path, rows, spans, step=step, guard=guard)
    return Segment(path, name, dict(spans), rows.count)


def write_file(path: Path, rows: Rows, spans: Spans, *, step: Step, guard: Guard) -> None:
    """Write a segment under a name that need not be one of the log's; as `write_segment`."""
    # Those that had any may have been erased.
    rows = rows.without_empty_context()
    staged = Staged(path)
    covered = {str(p): [*span.first, *span.last, span.events] for p, span in sorted(spans.items())}
    header = {
        "format": FORMAT,
        "rows": rows.count,
        "spans": covered,
        "digest": digest(rows, covered),
    }
    try:
        step("segment:write")
        _write_groups(staged, rows, json.dumps(header).encode())
        step("segment:written")
        staged.sync()
        step("segment:synced")
        guard()
        staged.put_in_place()
        step("segment:renamed")
        sync_directory(path.parent)
    except (SegmentDamagedError, ArchiveFailedError):
        # Of what is read: a part of it must not stay beside the log, where no erasure looks.
        staged.discard()
        raise
    except OSError as exc:
        staged.discard()
        raise ArchiveFailedError(f"cannot write {path.parent}: {exc.strerror or exc}") from exc
    step("segment:done")


def _write_groups(staged: Staged, rows: Rows, header: bytes) -> None:
    with (
        staged.open() as file,
        # Dictionaries for the columns that repeat their values; positions, counts and times hardly do.
        pq.ParquetWriter(
            file,
            rows.schema.with_metadata({METADATA_KEY: header}),
            compression="zstd",
            compression_level=1,
            use_dictionary=["partition", "user_id", "item_id", "item_row", "type_code", "rating"],
            write_page_checksum=True,
        ) as writer,
    ):
        waiting, begun = rows.schema.empty_table(), False
        for part in rows.read(rows.schema.names):
            waiting = pa.concat_tables([waiting, part])
            # Whole groups: a merge of small segments must not have as many small ones.
            whole = waiting.num_rows - waiting.num_rows % ROW_GROUP_ROWS
            if whole:
                writer.write_table(waiting.slice(0, whole), ROW_GROUP_ROWS)
                waiting, begun = waiting.slice(whole), True
        if waiting.num_rows or not begun:
            writer.write_table(waiting, ROW_GROUP_ROWS)


def open_segment(path: Path) -> pa.NativeFile:
    """Return a segment's open file, which can be read to its end even when it is replaced meanwhile.

    Raises `SegmentGoneError` where there is none, `SegmentDamagedError`, `ArchiveFailedError` where the disk,
    or this process, is in the way.
    """
    with _reading(path):
        return open_file(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what can be read and does not fit, which another read would find again, from a read that failed:
    of a file that was not seen nothing is known, and it must not be set aside or removed.
    """
    try:
        yield
    except FileNotFoundError as exc:
        raise SegmentGoneError(path.name) from exc
    except (MemoryError, pa.ArrowCancelled) as exc:
        raise ArchiveFailedError(f"cannot read {path}: {_first_line(exc)}") from exc
    except (OSError, pa.ArrowException, ValueError) as exc:
        # Parquet tells of bytes that do not fit by an OSError, too: one that no system call has numbered.
        if isinstance(exc, OSError) and exc.errno:
            if exc.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                limits = "" if exc.errno == errno.ENOMEM else ", see `ulimit -n`"
                raise ArchiveFailedError(f"cannot read {path}: {os.strerror(exc.errno)}{limits}") from exc
            raise SegmentUnreadError(path, os.strerror(exc.errno)) from exc
        raise SegmentDamagedError(path, f"unreadable ({_first_line(exc)})") from exc


def read_segment(path: Path, file: pa.NativeFile | None = None) -> pa.Table:
    """Return the verified events of a segment. `file`: as `open_segment` returned it.

    Raises `SegmentDamagedError`, `SegmentGoneError` where there is no file, `ArchiveFailedError` where it
    could not be read, or `ArchiveRefusedError` for a format newer than this version's.
    """
    columns = dict(read_columns(path, open_segment(path) if file is None else file))
    return pa.table(list(columns.values()), schema=pa.schema(list(columns)))


def open_rows(path: Path, file: pa.NativeFile) -> Rows:
    """Return the verified events of an open segment, which are read a row group at a time as long as the file
    is open; so they are verified. Raises as `read_segment`; so does reading them.
    """
    reader, schema, header = _opened(path, file)

    def read(names: Sequence[str]) -> Iterator[pa.Table]:
        for group in range(reader.num_row_groups):
            with _reading(path):
                part = reader.read_row_group(group, columns=list(names), use_threads=False)
            yield part.replace_schema_metadata(None).select(names)

    rows = Rows(schema, read, reader.metadata.num_rows)
    if header.get("rows") != rows.count or header.get("digest") != digest(rows, header["spans"]):
        raise SegmentDamagedError(path, "checksum does not match")
    return rows


def read_parts(path: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the verified events of a segment a row group at a time, of these columns. Raises as
    `read_segment`.
    """
    with open_segment(path) as file:
        yield from open_rows(path, file).read(names)


def _opened(path: Path, file: pa.NativeFile) -> tuple[pq.ParquetFile, pa.Schema, dict[str, object]]:
    """Return what reads an open segment, its schema and its header. Raises as `read_segment`."""
    with _reading(path):
        reader = pq.ParquetFile(file, page_checksum_verification=True)
        schema = reader.schema_arrow
    header = _header(path, schema.metadata)
    schema = schema.remove_metadata()
    if not schema.equals(SCHEMA) and not schema.equals(SCHEMA.append(CONTEXT)):
        raise SegmentDamagedError(path, "has other columns")
    _parse_spans(path, header)
    return reader, schema, header


def read_columns(path: Path, file: pa.NativeFile) -> Iterator[tuple[pa.Field, pa.ChunkedArray]]:
    """Yield the columns of an open segment, one after the other: only one is in memory. What has been yielded
    is verified when the iteration has ended; the file is closed then.

    Raises as `read_segment`.
    """
    with file as opened:
        reader, schema, header = _opened(path, opened)
        state = _digest_of(header["spans"])
        for field in schema:
            with _reading(path):
                table = reader.read([field.name], use_threads=False)
            _add_column(state, field, Rows.of(table))
            yield field, table.column(0)
            del table
        if header.get("rows") != reader.metadata.num_rows or header.get("digest") != state.hexdigest():
            raise SegmentDamagedError(path, "checksum does not match")


def read_user_ids(path: Path) -> pa.ChunkedArray:
    """Return whose events a segment has, one for each; its other columns are not read. Raises as
    `read_segment`.
    """
    with open_segment(path) as file, _reading(path):
        table = pq.read_table(file, columns=["user_id"], page_checksum_verification=True)
    if "user_id" not in table.schema.names:
        raise SegmentDamagedError(path, "has other columns")
    return table["user_id"]


def read_spans(path: Path, file: pa.NativeFile) -> dict[int, Span]:
    """Return what the footer of an open segment says that it covers, without reading its rows. Raises as
    `read_segment`.
    """
    with _reading(path):
        footer = pq.read_metadata(file)
    return _parse_spans(path, _header(path, footer.metadata))


def inspect_segment(path: Path, name: SegmentName) -> Segment:
    """Return what the footer of a segment says, without reading its rows. Raises as `read_segment`."""
    with open_segment(path) as file, _reading(path):
        footer = pq.read_metadata(file)
    return Segment(path, name, _parse_spans(path, _header(path, footer.metadata)), int(footer.num_rows))


def digest(rows: Rows, spans: object) -> str:
    """Return the SHA-256 over the bytes of the columns, however the rows are cut in parts, and the header's
    spans.
    """
    state = _digest_of(spans)
    for field in rows.schema:
        _add_column(state, field, rows)
    return state.hexdigest()


def _digest_of(spans: object) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(spans, sort_keys=True).encode())


def _add_column(state: "hashlib._Hash", field: pa.Field, rows: Rows) -> None:
    if pa.types.is_primitive(field.type):
        for chunk in _chunks(rows, field.name):
            state.update(np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).data)
        return
    # All lengths, then all texts: so the digest does not depend on where the chunks end, and no two columns
    # share it.
    for ends, _ in map(_texts, _chunks(rows, field.name)):
        state.update(np.diff(ends).astype("<i4").data)
    for ends, text in map(_texts, _chunks(rows, field.name)):
        state.update(text[ends[0] : ends[-1]])


def _chunks(rows: Rows, name: str) -> Iterator[pa.Array]:
    return (chunk for part in rows.read([name]) for chunk in part[name].chunks if len(chunk))


def _texts(chunk: pa.Array) -> tuple[npt.NDArray[np.int32], memoryview]:
    """Return where the texts of a chunk begin and end, and what they are cut from."""
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return ends, memoryview(data or b"")


def _header(path: Path, metadata: dict[bytes, bytes] | None) -> dict[str, object]:
    try:
        header = json.loads((metadata or {})[METADATA_KEY])
        number = header["format"] if isinstance(header, dict) else None
    except (KeyError, ValueError) as exc:
        raise SegmentDamagedError(path, "has no header") from exc
    if number != FORMAT:
        # Whole, and of another version or program: not ours to set aside.
        raise other_format(path, str(number)[:20], FORMAT)
    return header  # type: ignore[no-any-return]  # json gives Any; the fields are checked where they are read


def _parse_spans(path: Path, header: dict[str, object]) -> dict[int, Span]:
    try:
        entries = dict(header["spans"])  # type: ignore[call-overload]  # whatever is no mapping raises here
        return {
            int(p): Span((int(a), int(b)), (int(c), int(d)), int(events))
            for p, (a, b, c, d, events) in entries.items()
        }
    except (KeyError, TypeError, ValueError) as exc:
        raise SegmentDamagedError(path, "has an unreadable header") from exc


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
