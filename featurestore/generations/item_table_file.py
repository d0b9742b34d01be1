"""The item table of a generation, and the blobs beside it, as files that the workers of a host share.
Invariant: a file is mapped only after its bytes have the checksum that was published.

The first worker that wants one writes the file under a lock and renames it; all map it copy-on-write, so
that rows folded in later cost only the pages that they touch.
"""

import asyncio
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np
import numpy.typing as npt

from factors import Float32s
from featurestore.errors import GenerationBroken, StoreError, StoreRefused
from featurestore.generations.manifest import Blob, GenerationMeta

# Room for items that come before the next fit.
GROWTH = 1.1
# A small table has room as well, of which a tenth would be little.
SPARE_ROWS = 1024
# The lock is the kernel's: it goes with the process that held it, so it is asked for again and again.
LOCK_POLL_S = 0.02
# As long as a large table may take.
LOCK_WAIT_S = 120.0
# A part that has not changed for so long is left from a process that was killed.
STALE_FILE_S = 3_600.0
# Read between two looks of other threads at the interpreter.
CHECK_BYTES = 1 << 24
# Checking so much takes about 50 ms; a smaller table is checked each time. A larger one that was checked is
# marked with what the system says of it (device, number, size, times of change, this boot), and not read
# again.
MARKED_BYTES = 1 << 26
# Pieces of the table are written together: a hand-over to a thread costs as much as writing 100 KB.
WRITE_BYTES = 1 << 22
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Piece = bytes | memoryview
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file named `name` must hold: `size` bytes with the checksum `crc32`, and where `row_bytes` are
    given, spare rows of so many bytes behind them. `what` begins at `key` in the store.
    """

    name: str
    size: int
    crc32: int
    what: str
    key: str
    row_bytes: int = 0

    @property
    def file_size(self) -> int:
        """Bytes of a new file."""
        rows = self.size // self.row_bytes if self.row_bytes else 0
        return self.size + (int(rows * GROWTH) - rows + SPARE_ROWS) * self.row_bytes

    def fits(self, file_size: int) -> bool:
        """Whether a file of so many bytes may hold this: another version may leave other room."""
        if not self.row_bytes:
            return file_size == self.size
        return file_size > self.size and file_size % self.row_bytes == 0


class TableCache:
    """The folder of one namespace's files."""

    def __init__(self, folder: Path, namespace: str) -> None:
        """Raises `StoreRefused` where the folder cannot be written, or another user may write there, who
        would choose what is served.
        """
        self._folder = folder
        self._namespace = namespace
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
            owners = {folder.lstat().st_uid, found.st_uid}
            if not owners <= {0, os.getuid()} or found.st_mode & stat.S_IWOTH:
                raise PermissionError(errno.EPERM, "another user may write there")
            probe = folder / f".{namespace}.{os.getpid()}.probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as exc:
            raise StoreRefused(
                f"the cache folder {folder} cannot be written ({exc.strerror}): "
                "give FOLDIN_CACHE_DIR a folder of this user"
            ) from exc

    async def table(self, meta: GenerationMeta, pieces: AsyncIterator[Piece]) -> Float32s:
        """The table (capacity, item_width) of a generation, private to this process when written to. Rows
        that the generation does not have are spare, and hold nothing yet. `pieces`: its bytes, asked for only
        where no worker of this host has written them yet.

        Raises `GenerationBroken` where checksum or length does not fit, `StoreError` where the file cannot be
        written.
        """
        row_bytes = 4 * meta.model.item_width
        content = self._content(
            meta, "items", meta.item_rows * row_bytes, meta.crc32, "item table", row_bytes=row_bytes
        )
        mapped = await self._mapped(content, pieces)
        return mapped.view("<f4").reshape(-1, meta.model.item_width)

    async def blob(
        self, meta: GenerationMeta, name: str, blob: Blob, pieces: AsyncIterator[Piece]
    ) -> memoryview:
        """The bytes of the blob `name` as a buffer, private to this process when written to.

        Raises as `table` does.
        """
        content = self._content(meta, name, blob.size, blob.crc32, name.replace("_", " "), first=blob.first)
        return (await self._mapped(content, pieces)).data

    def _content(
        self,
        meta: GenerationMeta,
        kind: str,
        size: int,
        checksum: int,
        what: str,
        *,
        first: int = 0,
        row_bytes: int = 0,
    ) -> _Content:
        epoch, number = meta.summary.epoch, meta.summary.generation
        name = f"{self._namespace}.e{epoch}.g{number}.{checksum:08x}.{kind}"
        # Only the table has keys of its own.
        key = f"{self._namespace}.{epoch}:generation:{number}:{'items' if row_bytes else 'index'}:{first}"
        return _Content(name, size, checksum, what, key, row_bytes)

    async def _mapped(self, content: _Content, pieces: AsyncIterator[Piece]) -> _Bytes:
        path, part = self._folder / content.name, self._folder / f".{content.name}.{os.getpid()}.part"
        try:
            mapped = await asyncio.to_thread(_map, path, content)
            if mapped is not None:
                return mapped
            async with self._locked():
                # Another worker may have written it meanwhile.
                mapped = await asyncio.to_thread(_map, path, content)
                if mapped is None:
                    try:
                        await _write(part, content, pieces)
                        part.replace(path)
                        _mark(path)
                    finally:
                        part.unlink(missing_ok=True)
                    mapped = await asyncio.to_thread(_map, path, content)
        except OSError as exc:
            why = f"the {content.what} cannot be written to {self._folder}: {exc.strerror}"
            raise StoreError(why) from exc
        if mapped is None:
            raise GenerationBroken(f"{path} does not hold what was written to it")
        return mapped

    def remove_unused(self, generations: Collection[int], current: int) -> None:
        """Remove files of generations that are no longer there. A process that has one mapped keeps it."""
        for path in self._folder.glob(f"{self._namespace}.*"):
            number = re.search(r"\.g(\d+)\.", path.name)
            if number is not None and int(number[1]) != current and int(number[1]) not in generations:
                path.unlink(missing_ok=True)
        for path in self._folder.glob(f".{self._namespace}.*.checked"):
            if not (self._folder / path.name.removeprefix(".").removesuffix(".checked")).exists():
                path.unlink(missing_ok=True)
        for path in self._folder.glob(f".{self._namespace}.*.part"):
            if time.time() - path.stat().st_mtime > STALE_FILE_S:
                path.unlink(missing_ok=True)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        with (self._folder / f".{self._namespace}.lock").open("wb") as file:
            end = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        why = "another worker has been writing an item table for too long"
                        raise StoreError(why) from None
                await asyncio.sleep(LOCK_POLL_S)
            yield


async def _write(part: Path, content: _Content, pieces: AsyncIterator[Piece]) -> None:
    """Write a file with its spare rows.

    Raises `GenerationBroken` where it is not what was published.
    """
    some: list[Piece] = []
    size = some_bytes = checksum = 0
    # Written and added up in a thread while the next pieces come from the store.
    writing: asyncio.Task[int] | None = None
    with part.open("wb") as file:
        try:
            async for data in pieces:
                some.append(data)
                some_bytes += len(data)
                size += len(data)
                if some_bytes >= WRITE_BYTES:
                    if writing is not None:
                        checksum = await writing
                    write = asyncio.to_thread(_append, file, some, checksum)
                    writing = asyncio.create_task(write, name="write an item table")
                    some, some_bytes = [], 0
        finally:
            if writing is not None:
                checksum = await writing
        checksum = await asyncio.to_thread(_append, file, some, checksum)
        if checksum != content.crc32 or size != content.size:
            raise GenerationBroken(
                f"the {content.what} that begins there is not what was written", content.key
            )
        # A hole: no spare row is read before it is written.
        file.truncate(content.file_size)


def _append(file: IO[bytes], pieces: Sequence[Piece], checksum: int) -> int:
    for data in pieces:
        file.write(data)
        checksum = crc32(data, checksum)
    return checksum


def _mark_of(path: Path) -> tuple[Path, str] | None:
    """Where the mark of a file is, and what it must say; None for a small file, and where this system cannot
    tell its boots apart.
    """
    found = path.stat()
    try:
        boot = BOOT_ID.read_text("ascii").strip()
    except OSError:
        return None
    if found.st_size < MARKED_BYTES:
        return None
    stamp = f"{boot} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    return path.with_name(f".{path.name}.checked"), stamp


def _mark(path: Path) -> None:
    """Say of a large file that it was checked."""
    if mark := _mark_of(path):
        part = mark[0].with_name(f"{mark[0].name}.{os.getpid()}.part")
        part.write_text(mark[1], "ascii")
        # Renamed into place, so that a mark is whole.
        part.replace(mark[0])


def _is_marked(path: Path) -> bool:
    mark = _mark_of(path)
    try:
        return mark is not None and mark[0].read_text("ascii") == mark[1]
    except FileNotFoundError:
        return False


def _map(path: Path, content: _Content) -> _Bytes | None:
    """The file mapped copy-on-write; None where there is none that holds this."""
    try:
        size = path.stat().st_size
        # An empty file cannot be mapped.
        if not size or not content.fits(size):
            return None
        marked = _is_marked(path)
        mapped = np.memmap(path, dtype=np.uint8, mode="c", shape=(size,))
    except FileNotFoundError:
        return None
    if marked:
        return np.asarray(mapped)
    data = memoryview(mapped[: content.size])  # type: ignore[arg-type]  # an array is a buffer
    checksum = 0
    for start in range(0, len(data), CHECK_BYTES):
        checksum = crc32(data[start : start + CHECK_BYTES], checksum)
    if checksum != content.crc32:
        return None
    _mark(path)
    return np.asarray(mapped)
