"""Files of a folder: of this host's disk, or of a share that hosts have mounted. Invariant: under its name a
file is complete and on disk; it is written beside under a temporary name, synced, renamed, and the folder
synced.
"""

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

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


Own = Any
"""A path of the kind that the implementation is for."""


class WithDescriptor(Protocol):
    """An open file that another process can read."""

    def fileno(self) -> int:
        """Return its descriptor."""

    def close(self) -> None:
        """Close it."""


class Staged:
    """A file that is written and has no name yet: here one beside that which it becomes, in a folder. Every
    method raises OSError.
    """

    def __init__(self, path: Own) -> None:
        self._path = path

    @property
    def _temporary(self) -> Path:
        return Path(self._path.with_name(self._path.name + TEMPORARY))

    def open(self) -> pa.NativeFile:
        """Return what it is written into, from its beginning."""
        return pa.OSFile(str(self._temporary), "wb")

    def read(self) -> pa.NativeFile:
        """Return what was written, to be read."""
        return pa.OSFile(str(self._temporary), "rb")

    def sync(self) -> None:
        """Have what was written durable."""
        # Before it has its name: one that a power cut leaves must not stand before content that it takes
        # away.
        with self._temporary.open("rb+") as written:
            os.fsync(written.fileno())

    def put_in_place(self) -> None:
        """Give it its name, durably after `sync_directory` of its folder."""
        self._temporary.rename(self._path)

    def discard(self) -> None:
        """Remove what has no name. Raises nothing."""
        self._temporary.unlink(missing_ok=True)


class Files:
    """What is done with the files of one kind of place: here with those of folders. Every method raises
    OSError.
    """

    def open(self, path: Own) -> pa.NativeFile:
        """Return an open file. Of objects what is read last may be gone: FileNotFoundError then."""
        return pa.OSFile(str(path), "rb")

    def staged(self, path: Own) -> Staged:
        """Return a file to be written and put in place under this path."""
        return Staged(path)

    def append(self, path: Own, content: bytes) -> None:
        """Add to the end of a file, durably when this returns."""
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def link(self, path: Own, target: Own) -> None:
        """Have the same file under another name, too."""
        try:
            os.link(path, target)
        except OSError:
            # A file system without links.
            shutil.copy2(path, target)

    def remove_tree(self, path: Own) -> None:
        """Remove a folder with all that is in it."""
        shutil.rmtree(path)

    def sync_directory(self, path: Own) -> None:
        """Wait until the names in a folder are durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def batch(self, path: Own) -> AbstractContextManager[None]:
        """Take what this thread renames and removes within the block as one step, where that can be."""
        # In a folder each step counts when it is done.
        return nullcontext()

    def at_one_moment(self, path: Own) -> AbstractContextManager[None]:
        """Look only once which files there are for what this thread asks within the block, where that is a
        request.
        """
        # A folder is near enough.
        return nullcontext()

    def forget_replaced(self, path: Own) -> None:
        """Remove at once what is kept for readers of files that have no name any more."""
        # Of a folder nothing is kept.

    def remove_unnamed(self, path: Own) -> None:
        """Remove what writers that were replaced have put there since, and could not name."""
        # Who opens a folder removes what is left there.

    def read_ahead(self, paths: Collection[Own]) -> None:
        """Fetch the ends of files, side by side, which are opened next."""
        # A disk is near enough.

    def with_descriptors(self, files: Sequence[pa.NativeFile], folder: Path) -> "Sequence[WithDescriptor]":
        """Return open files that another process can read by their descriptors. `folder`: of this host, which
        has room for copies that have no name.
        """
        return list(files)

    def beside(self, path: Own) -> Own:
        """Return where one who does not lead may put ledgers of the archive at `path`."""
        return path


FOLDERS = Files()
