"""Files of a folder: of this host's disk, or of a share that hosts have mounted. Invariant: under its name a
file is complete and on disk; it is written beside under a temporary name, synced, renamed, and the folder
synced.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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


class Staged:
    """A file that is written beside the one that it becomes. Every method raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + TEMPORARY)

    def open(self) -> pa.NativeFile:
        """Return the file to write into, from its beginning."""
        return pa.OSFile(str(self._temporary), "wb")

    def read(self) -> pa.NativeFile:
        """Return what was written, to be read."""
        return open_file(self._temporary)

    def sync(self) -> None:
        """Make what was written durable."""
        # Before the rename: a file that a power cut leaves half written must not stand under its final name.
        with self._temporary.open("rb+") as written:
            os.fsync(written.fileno())

    def put_in_place(self) -> None:
        """Give it its name, durably after `sync_directory` of its folder."""
        self._temporary.rename(self._path)

    def discard(self) -> None:
        """Remove the temporary file. Raises nothing."""
        self._temporary.unlink(missing_ok=True)


def open_file(path: Path) -> pa.NativeFile:
    """Return an open file. Raises OSError."""
    return pa.OSFile(str(path), "rb")


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file, durably when this returns. Raises OSError."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def link(path: Path, target: Path) -> None:
    """Give a file another name, too. Raises OSError."""
    try:
        os.link(path, target)
    except OSError:
        # A file system without links.
        shutil.copy2(path, target)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[pa.NativeFile]:
    """Give an open file, which is in place under `path`, durably, when the block has ended, or not at all.
    Raises OSError.
    """
    staged = Staged(path)
    try:
        with staged.open() as file:
            yield file
        staged.sync()
        staged.put_in_place()
        sync_directory(path.parent)
    except OSError:
        staged.discard()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in place, durable when this returns. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder are durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
