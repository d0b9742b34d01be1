"""One archive segment: a Parquet file that is written whole or not at all, and shows when it was damaged.

Invariant: under its final name a segment is complete, on disk, and equal to its checksum. A file is written
beside under a temporary name, synced, renamed, and the folder synced; nothing is ever changed in place.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.archive.events import CONTEXT, SCHEMA, Span, Spans, type_codes
from trainer.errors import ArchiveFailedError, ArchiveRefusedError, SegmentDamagedError, SegmentGoneError

METADATA_KEY = b"foldin"
# Grows when a segment of today could not be read by an older trainer. One with events that are no ratings,
# which a trainer of format 1 would learn as ratings, has the second number, one with contexts of ratings the
# third; others are written as ever.
FORMAT, EVENTS_FORMAT, RATINGS_FORMAT = 3, 2, 1
TEMPORARY = ".tmp"
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
    table: pa.Table,
    spans: Spans,
    *,
    step: Step,
    guard: Guard,
) -> Segment:
    """Write `table` under `name`, unless the guard raises.

    Raises `ArchiveFailedError` with nothing left under the final name. Repeating is safe.
    """
    if CONTEXT.name in table.schema.names and table[CONTEXT.name].null_count == table.num_rows:
        # Those that had any were erased.
        table = table.drop_columns(CONTEXT.name)
    path = directory / str(name)
    temporary = path.with_name(path.name + TEMPORARY)
    covered = {str(p): [*span.first, *span.last, span.events] for p, span in sorted(spans.items())}
    header = {
        "format": _format_of(table),
        "rows": table.num_rows,
        "spans": covered,
        "digest": digest(table, covered),
    }
    try:
        step("segment:write")
        with pa.OSFile(str(temporary), "wb") as file:
            # Dictionaries for the columns that repeat their values; positions, counts and times hardly do.
            pq.write_table(
                table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()}),
                file,
                row_group_size=ROW_GROUP_ROWS,
                compression="zstd",
                compression_level=1,
                use_dictionary=["partition", "user_id", "item_id", "item_row", "rating"],
                write_page_checksum=True,
            )
        step("segment:written")
        # In this order: a name that a power cut leaves must not stand before content that it takes away.
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        step("segment:synced")
        guard()
        temporary.rename(path)
        step("segment:renamed")
        sync_directory(directory)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise ArchiveFailedError(f"cannot write {directory}: {exc.strerror or exc}") from exc
    step("segment:done")
    return Segment(path, name, dict(spans), table.num_rows)


def open_segment(path: Path) -> pa.OSFile:
    """Return a segment's open file, which can be read to its end even when it is replaced meanwhile.

    Raises `SegmentGoneError` where there is none, `SegmentDamagedError`, `ArchiveFailedError` where this
    process has too many files open.
    """
    try:
        return pa.OSFile(str(path), "rb")
    except FileNotFoundError as exc:
        raise SegmentGoneError(path.name) from exc
    except OSError as exc:
        if exc.errno in {errno.EMFILE, errno.ENFILE}:
            raise ArchiveFailedError(f"cannot open {path}: too many open files, see `ulimit -n`") from exc
        raise SegmentDamagedError(path, f"unreadable ({_first_line(exc)})") from exc


def read_segment(path: Path, file: pa.NativeFile | None = None) -> tuple[pa.Table, dict[int, Span]]:
    """Return the verified events of a segment and its spans. `file`: as `open_segment` returned it.

    Raises `SegmentDamagedError`, `SegmentGoneError` where there is no file, or `ArchiveRefusedError` for a
    format newer than this version's.
    """
    with open_segment(path) if file is None else file as opened:
        try:
            table = pq.read_table(opened, page_checksum_verification=True)
        except (OSError, pa.ArrowException, ValueError) as exc:
            raise SegmentDamagedError(path, f"unreadable ({_first_line(exc)})") from exc
    # Parquet has checked its pages, not that all rows and the right spans are there.
    header = _header(path, table.schema.metadata)
    table = table.replace_schema_metadata(None)
    if not table.schema.equals(SCHEMA) and not table.schema.equals(SCHEMA.append(CONTEXT)):
        raise SegmentDamagedError(path, "has other columns")
    spans = _parse_spans(path, header)
    if header.get("rows") != table.num_rows or header.get("digest") != digest(table, header["spans"]):
        raise SegmentDamagedError(path, "checksum does not match")
    return table, spans


def inspect_segment(path: Path, name: SegmentName) -> Segment:
    """Return what the footer of a segment says, without reading its rows. Raises as `read_segment`."""
    try:
        footer = pq.read_metadata(path)
    except FileNotFoundError as exc:
        raise SegmentGoneError(path.name) from exc
    except (OSError, pa.ArrowException, ValueError) as exc:
        raise SegmentDamagedError(path, f"unreadable ({_first_line(exc)})") from exc
    return Segment(path, name, _parse_spans(path, _header(path, footer.metadata)), int(footer.num_rows))


def digest(table: pa.Table, spans: object) -> str:
    """Return the SHA-256 over the bytes of the columns, however the table is cut in chunks, and the header's
    spans.
    """
    state = hashlib.sha256(json.dumps(spans, sort_keys=True).encode())
    for field in table.schema:
        chunks = [chunk for chunk in table[field.name].chunks if len(chunk)]
        if pa.types.is_primitive(field.type):
            for chunk in chunks:
                state.update(np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).data)
            continue
        texts = []
        for chunk in chunks:
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            texts.append((ends, memoryview(data or b"")))
        # All lengths, then all texts: so the digest does not depend on where the chunks end, and no two
        # columns share it.
        for ends, _ in texts:
            state.update(np.diff(ends).astype("<i4").data)
        for ends, text in texts:
            state.update(text[ends[0] : ends[-1]])
    return state.hexdigest()


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _format_of(table: pa.Table) -> int:
    if CONTEXT.name in table.schema.names:
        return FORMAT
    return EVENTS_FORMAT if type_codes(table).any() else RATINGS_FORMAT


def _header(path: Path, metadata: dict[bytes, bytes] | None) -> dict[str, object]:
    try:
        header = json.loads((metadata or {})[METADATA_KEY])
        number = header["format"] if isinstance(header, dict) else None
    except (KeyError, ValueError) as exc:
        raise SegmentDamagedError(path, "has no header") from exc
    if number not in {FORMAT, EVENTS_FORMAT, RATINGS_FORMAT}:
        # Whole, and of another version or program: not ours to set aside.
        raise ArchiveRefusedError(
            f"{path} has format {str(number)[:20]}, this version reads up to {FORMAT}: "
            "use the version that wrote it"
        )
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
