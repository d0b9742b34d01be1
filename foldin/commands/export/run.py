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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import msgspec

from foldin.address import find_api, told_problem, with_key
from foldin.commands.export.formats import (
    CsvWriter,
    LinesWriter,
    ParquetWriter,
    What,
    Writer,
    columns_of,
)
from foldin.commands.progress import Shown
from foldin.commands.settings import ExportOptions
from foldin.errors import ExportStoppedError
from foldin.settings import FrontDoorSettings
from processes.errors import CannotStartError
from processes.settings import api_key_of

# Between two parts of an answer: a service sends as fast as it is read.
SILENT_S = 60.0
CONNECT_S = 10.0  # to a service that is there
# So long a service that is busy is asked again: a worker takes two exports at a time, a quota fills again.
BUSY_S = 60.0
_LEAST_WAIT_S = 1.0  # whatever an answer says
_PART_BYTES = 1_048_576  # read at a time: some ten thousand ratings
_LONGEST_LINE = 16_777_216  # bytes; the longest item has a thousandth of that
_ENDS = {".csv": "csv", ".parquet": "parquet"}

MakeWriter = Callable[[Mapping[str, Any]], Writer]
"""Makes the writer of an export, of what GET /schema answers."""


class EmittedRows:
    """A writer that prints each row as `--json` does."""

    def __init__(self, emit: Callable[[object], None]) -> None:
        self._emit = emit

    def add(self, lines: Sequence[bytes]) -> None:
        """As in Writer."""
        for line in lines:
            self._emit(msgspec.json.decode(line))

    def close(self) -> None:
        """As in Writer."""


def run_export(options: ExportOptions, settings: FrontDoorSettings) -> int:
    """Export; return the exit code.

    Raises CannotStartError (nothing was written) and ExportStoppedError (there is no file; what went to
    standard output is a part).
    """
    end = "" if options.output is None else options.output.suffix.lower()
    kind = options.format or _ENDS.get(end, "ndjson")
    url = find_api(options.url, options.data, settings)
    headers = with_key(api_key_of(options.key, options.key_file))
    began = time.monotonic()

    # Each place to write to makes its writer when the first answer has come: until then there is nothing.
    def export(make: MakeWriter) -> int:
        return asyncio.run(_export(url, headers, options.what, make, tabular=kind != "ndjson"))

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


def _writer(file: BinaryIO, what: What, kind: str, schema: Mapping[str, Any]) -> Writer:
    if kind == "ndjson":
        return LinesWriter(file)
    columns = columns_of(what, schema)
    return CsvWriter(file, columns) if kind == "csv" else ParquetWriter(file, columns)


async def _export(
    url: str, headers: Mapping[str, str], what: What, make: MakeWriter, *, tabular: bool
) -> int:
    """Write all rows; return how many. Raises CannotStartError, ExportStoppedError."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        # A table has all columns before its first row; lines name their own.
        schema: Any = {}
        if tabular:
            async with _asked(session, url, "/schema") as response:
                schema = msgspec.json.decode(await response.read())
        rows = 0
        async with _asked(session, url, f"/export/{what}") as response:
            writer = make(schema)
            with Shown(f"Exporting {what}") as shown:
                async for lines in _lines(response):
                    writer.add(lines)
                    rows += len(lines)
                    shown.done(rows, None)
            writer.close()
    return rows


@asynccontextmanager
async def _asked(
    session: aiohttp.ClientSession, url: str, path: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the answer of a call, which is made again for `BUSY_S` where the service is busy. Raises
    CannotStartError before the answer has begun, ExportStoppedError since.
    """
    began, until, waited = False, time.monotonic() + BUSY_S, False
    try:
        while True:
            async with session.get(url + path) as response:
                if response.status == HTTPStatus.OK:
                    began = True
                    yield response
                    return
                why, wait_s = await told_problem(response), _busy_for(response)
            if time.monotonic() + wait_s > until:
                raise CannotStartError(f"{url}{path} answers {why}")
            if not waited:
                print(f"foldin: waiting, as {url} answers {why}", file=sys.stderr)
            waited = True
            await asyncio.sleep(wait_s)
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        why = " ".join(str(exc).split()) or "no answer in time"
        if not began:
            raise CannotStartError(
                f"no API answers at {url} ({why}): start one with `foldin up`, or give --url or --data"
            ) from exc
        raise ExportStoppedError(
            f"the export broke off ({why}); it cannot be gone on with, so begin it again"
        ) from exc


def _busy_for(response: aiohttp.ClientResponse) -> float:
    """Return in how many seconds a service that is busy may be asked again; infinity where that is no use."""
    again_s = response.headers.get("Retry-After", "")
    busy = response.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    return max(_LEAST_WAIT_S, float(again_s)) if busy and again_s.isdecimal() else math.inf


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
    """Yield the lines of an answer, some at a time. Raises ExportStoppedError where one is cut off."""
    rest = b""
    async for part in response.content.iter_chunked(_PART_BYTES):
        # What follows the last end of a line is the beginning of the next.
        *lines, rest = (rest + part).split(b"\n")
        if lines:
            yield lines
        if len(rest) > _LONGEST_LINE:
            raise ExportStoppedError(f"{response.url} answers with lines without an end: it is no Foldin API")
    if rest:
        raise ExportStoppedError("the export broke off within a line: begin it again")


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
            raise ExportStoppedError(f"{path} cannot be written ({exc.strerror or exc})") from exc
    finally:
        beside.unlink(missing_ok=True)
