"""`foldin export`: ratings, items or users of a running service, over its API.

Invariant: a file has all, or is not there: rows go to a file beside it, which takes its name when the last
of them is on the disk. An export cannot be gone on with, since users come in no order: one that breaks off
says so, and is begun again.
"""

import asyncio
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from foldin.address import api_client, find_api, told_problem, told_silence
from foldin.commands.export.formats import (
    CsvWriter,
    LinesWriter,
    ParquetWriter,
    What,
    Writer,
    columns_of,
)
from foldin.errors import StoppedError
from foldin.progress import Shown
from foldin.settings import ExportOptions, FrontDoorSettings
from foldin_client import AsyncClient, BusyError, FoldinError, ProblemError
from foldin_client.models import SchemaBody
from foldin_client.wire import without_user
from processes.errors import CannotStartError
from processes.settings import api_key_of

# Between two parts of an answer: a service sends as fast as it is read.
SILENT_S = 60.0
# So long a service that is busy is asked again: a worker takes two exports at a time, a quota fills again.
BUSY_S = 60.0
_LEAST_WAIT_S = 1.0  # whatever an answer says
_SHOWN_ROWS = 1_000  # between two looks of the bar: one takes longer than a row
_EXPORTS = {
    "ratings": AsyncClient.export_ratings,
    "items": AsyncClient.export_items,
    "users": AsyncClient.export_users,
}
_ENDS = {".csv": "csv", ".parquet": "parquet"}

MakeWriter = Callable[[SchemaBody], Writer]
"""Makes the writer of an export, of what GET /schema answers."""


class EmittedRows:
    """A writer that prints each row as `--json` does."""

    def __init__(self, emit: Callable[[object], None]) -> None:
        self._emit = emit

    def add(self, row: msgspec.Struct) -> None:
        """As in Writer."""
        self._emit(msgspec.to_builtins(row))

    def close(self) -> None:
        """As in Writer."""


def run_export(options: ExportOptions, settings: FrontDoorSettings) -> int:
    """Export; return the exit code.

    Raises CannotStartError (nothing was written) and StoppedError (there is no file; what went to
    standard output is a part).
    """
    end = "" if options.output is None else options.output.suffix.lower()
    kind = options.format or _ENDS.get(end, "ndjson")
    url = find_api(options.url, options.data, settings)
    key = api_key_of(options.key, options.key_file)
    began = time.monotonic()

    # Each place to write to makes its writer when the first answer has come: until then there is nothing.
    def export(make: MakeWriter) -> int:
        return asyncio.run(_export(url, key, options.what, make, tabular=kind != "ndjson"))

    if options.output is None or options.to_stdout:
        if settings.json and kind != "ndjson":
            raise CannotStartError("--json prints NDJSON: leave --format out, or name a file by --output")
        if settings.json:
            export(lambda _schema: EmittedRows(settings.emit))
            return 0
        try:
            export(lambda schema: _writer(sys.stdout.buffer, options.what, kind, schema))
        except BrokenPipeError:
            # A reader that has enough, as `head`, is no failure. Python's flush at exit finds an open file.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    with _new_file(options.output, replace=options.overwrite) as file:
        rows = export(lambda schema: _writer(file, options.what, kind, schema))
        size = file.seek(0, os.SEEK_END)
    took_s = time.monotonic() - began
    print(f"{rows:,} {options.what} written to {options.output} ({kind}, {size:,} bytes) in {took_s:.1f} s.")
    settings.emit(
        {
            "what": options.what,
            "rows": rows,
            "file": options.output,
            "format": kind,
            "bytes": size,
            "seconds": round(took_s, 3),
        }
    )
    return 0


def _writer(file: BinaryIO, what: What, kind: str, schema: SchemaBody) -> Writer:
    if kind == "ndjson":
        return LinesWriter(file)
    columns = columns_of(what, schema)
    return CsvWriter(file, columns) if kind == "csv" else ParquetWriter(file, columns)


async def _export(url: str, key: str | None, what: What, make: MakeWriter, *, tabular: bool) -> int:
    """Write all rows; return how many. Raises CannotStartError, StoppedError."""
    writer, rows, until, waited = None, 0, time.monotonic() + BUSY_S, False
    shown_url = without_user(url)
    async with api_client(url, key, timeout_s=SILENT_S) as client:
        while True:
            try:
                # A table has all columns before its first row; lines name their own.
                schema = await client.get_schema() if tabular else SchemaBody()
                with Shown(f"Exporting {what}") as shown:
                    async for row in _EXPORTS[what](client):
                        writer = writer or make(schema)
                        writer.add(row)
                        rows += 1
                        if rows % _SHOWN_ROWS == 0:
                            shown.done(rows, None)
                (writer or make(schema)).close()
                return rows
            except ProblemError as exc:
                again_s = exc.retry_after_s if isinstance(exc, BusyError) else None
                wait_s = math.inf if again_s is None else max(_LEAST_WAIT_S, again_s)
                if time.monotonic() + wait_s > until:
                    raise CannotStartError(f"{shown_url} answers {told_problem(exc)}") from exc
                if not waited:
                    print(f"foldin: waiting, as {shown_url} answers {told_problem(exc)}", file=sys.stderr)
                waited = True
                await asyncio.sleep(wait_s)
            except FoldinError as exc:
                if writer is None:
                    raise CannotStartError(told_silence(url, exc)) from exc
                why = f"the export broke off ({exc})"
                raise StoppedError(f"{why}; it cannot be gone on with, so begin it again") from exc


@contextmanager
def _new_file(path: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """Yield a file that takes its name at the end, when it is on the disk; it is removed where this fails.

    Raises CannotStartError where there is a file of that name that is not to `replace`, or none can be made.
    """
    if path.is_dir() or (path.exists() and not replace):
        advice = "choose another name" if path.is_dir() else "choose another name, or give --overwrite"
        raise CannotStartError(f"{path} is there already: {advice}")
    # In the same folder, so that the last step is a rename within one file system.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        file = beside.open("xb")
    except OSError as exc:
        raise CannotStartError(f"{path} cannot be written ({exc.strerror}): choose another --output") from exc
    try:
        try:
            with file:
                yield file
                file.flush()
                # Before the rename: a power cut must not leave a whole name with half a file.
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as exc:
            raise StoppedError(f"{path} cannot be written ({exc.strerror or exc})") from exc
    finally:
        beside.unlink(missing_ok=True)
