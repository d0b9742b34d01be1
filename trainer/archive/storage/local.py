"""Files of a folder: of this host's disk, or of a share that hosts have mounted. Invariant: under its name a
file is complete and on disk; it is written beside under a temporary name, synced, renamed, and the folder
synced.
"""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

TEMPORARY = ".tmp"


def probe_folder(folder: Path) -> None:
    """See that a folder is there and can be written: a full disk and a read-only one are found here. Raises
    OSError.
    """
    # By its number: another trainer may look at the same time.
    probe = folder / f"probe-{os.getpid()}{TEMPORARY}"
    probe.write_bytes(b"\0" * 4096)
    probe.unlink(missing_ok=True)


class StagedFile:
    """A file beside the one that it becomes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + TEMPORARY)

    def open(self) -> pa.NativeFile:
        """As `Staged`."""
        return pa.OSFile(str(self._temporary), "wb")

    def read(self) -> pa.NativeFile:
        """As `Staged`."""
        return pa.OSFile(str(self._temporary), "rb")

    def sync(self) -> None:
        """As `Staged`."""
        # Before it has its name: one that a power cut leaves must not stand before content that it takes
        # away.
        with self._temporary.open("rb+") as written:
            os.fsync(written.fileno())

    def put_in_place(self) -> None:
        """As `Staged`."""
        self._temporary.rename(self._path)

    def discard(self) -> None:
        """As `Staged`."""
        self._temporary.unlink(missing_ok=True)


class LocalFiles:
    """As `Files`."""

    def open(self, path: Path) -> pa.NativeFile:
        """As `Files`."""
        return pa.OSFile(str(path), "rb")

    def staged(self, path: Path) -> StagedFile:
        """As `Files`."""
        return StagedFile(path)

    def append(self, path: Path, content: bytes) -> None:
        """As `Files`."""
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def link(self, path: Path, target: Path) -> None:
        """As `Files`."""
        try:
            os.link(path, target)
        except OSError:
            # A file system without links.
            shutil.copy2(path, target)

    def remove_tree(self, path: Path) -> None:
        """As `Files`."""
        shutil.rmtree(path)

    def sync_directory(self, path: Path) -> None:
        """As `Files`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def batch(self, path: Path) -> Iterator[None]:
        """As `Files`: each step counts when it is done."""
        yield

    @contextlib.contextmanager
    def at_one_moment(self, path: Path) -> Iterator[None]:
        """As `Files`: a folder is near enough."""
        yield

    def forget_replaced(self, path: Path) -> None:
        """As `Files`: nothing is kept."""

    def remove_unnamed(self, path: Path) -> None:
        """As `Files`: who opens a folder removes what is left there."""

    def read_ahead(self, paths: Collection[Path]) -> None:
        """As `Files`: a disk is near enough."""

    def with_descriptors(self, files: Sequence[pa.NativeFile], folder: Path) -> list[Any]:
        """As `Files`."""
        return list(files)

    def beside(self, path: Path) -> Path:
        """As `Files`."""
        return path


LOCAL = LocalFiles()
