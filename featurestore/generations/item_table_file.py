"""The item table of a generation as a file that the workers of a host share. Invariant: a table is mapped
only after its bytes have the checksum that was published.

The first worker that wants a table writes the file under a lock and renames it; all map it copy-on-write, so
that rows folded in later cost only the pages that they touch.
"""

import asyncio
import fcntl
import os
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np

from factors import Float32s
from featurestore.errors import GenerationBroken, StoreError, StoreRefused
from featurestore.generations.manifest import GenerationMeta

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


class TableCache:
    """The folder of one namespace's tables."""

    def __init__(self, folder: Path, namespace: str) -> None:
        """Raises `StoreRefused` where the folder cannot be written."""
        self._folder = folder
        self._namespace = namespace
        try:
            folder.mkdir(parents=True, exist_ok=True)
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
        summary = meta.summary
        name = f"{self._namespace}.e{summary.epoch}.g{summary.generation}.{meta.crc32:08x}.items"
        path, part = self._folder / name, self._folder / f".{name}.{os.getpid()}.part"
        try:
            mapped = await asyncio.to_thread(_map, path, meta)
            if mapped is not None:
                return mapped
            async with self._locked():
                # Another worker may have written it meanwhile.
                mapped = await asyncio.to_thread(_map, path, meta)
                if mapped is None:
                    try:
                        await _write(part, meta, pieces, f"{self._namespace}.{summary.epoch}")
                        part.replace(path)
                        _mark(path)
                    finally:
                        part.unlink(missing_ok=True)
                    mapped = await asyncio.to_thread(_map, path, meta)
        except OSError as exc:
            raise StoreError(f"the item table cannot be written to {self._folder}: {exc.strerror}") from exc
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


async def _write(part: Path, meta: GenerationMeta, pieces: AsyncIterator[Piece], prefix: str) -> None:
    """Write a table and its spare rows; `prefix`: of its keys.

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
        if checksum != meta.crc32 or size != 4 * meta.item_rows * meta.model.item_width:
            key = f"{prefix}:generation:{meta.summary.generation}:items:0"
            raise GenerationBroken("the item table that begins there is not what was written", key)
        # A hole: no spare row is read before it is written.
        file.truncate(4 * (int(meta.item_rows * GROWTH) + SPARE_ROWS) * meta.model.item_width)


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


def _map(path: Path, meta: GenerationMeta) -> Float32s | None:
    """The file mapped copy-on-write; None where there is none that holds this table."""
    width = meta.model.item_width
    try:
        rows, rest = divmod(path.stat().st_size, 4 * width)
        if rest or rows <= meta.item_rows:
            return None
        marked = _is_marked(path)
        table = np.memmap(path, dtype="<f4", mode="c", shape=(rows, width))
    except FileNotFoundError:
        return None
    if marked:
        return np.asarray(table)
    data = memoryview(table.reshape(-1).view(np.uint8)[: 4 * meta.item_rows * width])  # type: ignore[arg-type]  # an array is a buffer
    checksum = 0
    for start in range(0, len(data), CHECK_BYTES):
        checksum = crc32(data[start : start + CHECK_BYTES], checksum)
    if checksum != meta.crc32:
        return None
    _mark(path)
    return np.asarray(table)
