"""What the archive does with files, on an object store: `files.py` says what each means. Invariant: an
upload that its commit did not name, as far as is known, is removed, or noted to be.
"""

import shutil
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from trainer.archive.storage.commits import BESIDE, Names, StoredFile
from trainer.archive.storage.object_archive import ObjectArchive
from trainer.archive.storage.ranges import RangeFile

if TYPE_CHECKING:
    from trainer.archive.storage.object_path import ObjectPath

# Requests side by side: one gets some 50 MB/s of a store that is near, and waits 20 ms for its first byte.
_AT_ONCE = 8
# Of one request: more would be held in memory by each of these.
_PART_BYTES = 8_388_608


class StagedObject:
    """A file in memory until it is uploaded: a segment has some 30 MB."""

    def __init__(self, path: "ObjectPath") -> None:
        self._path = path
        self._sink = pa.BufferOutputStream()
        self._content: bytes | None = None
        self._uploaded: StoredFile | None = None

    def open(self) -> pa.NativeFile:
        """As `Staged`."""
        return self._sink

    def read(self) -> pa.NativeFile:
        """As `Staged`."""
        return pa.BufferReader(self._written())

    def _written(self) -> bytes:
        if self._content is None:
            self._content = self._sink.getvalue().to_pybytes()
        return self._content

    def sync(self) -> None:
        """As `Staged`."""
        path, content = self._path, self._written()
        if path.is_beside:
            path.archive.put_beside(path.key, content)
        else:
            self._uploaded = path.archive.upload(path.key, content)

    def put_in_place(self) -> None:
        """As `Staged`."""
        uploaded, self._uploaded = self._uploaded, None
        if uploaded is None:
            return

        def edit(files: Names) -> None:
            files[self._path.key] = uploaded

        try:
            self._path.archive.edit(edit)
        except OSError:
            self._path.archive.discard(uploaded)
            raise

    def discard(self) -> None:
        """As `Staged`."""
        if self._uploaded is not None:
            self._path.archive.discard(self._uploaded)


class ObjectFiles:
    """As `Files`."""

    def __init__(self, archive: ObjectArchive) -> None:
        self._archive = archive

    def open(self, path: "ObjectPath") -> pa.NativeFile:
        """As `Files`."""
        entry = path.entry()
        if entry is None:
            raise FileNotFoundError(path.key)
        return RangeFile.opened(self._archive.client, entry.key, entry.size)

    def staged(self, path: "ObjectPath") -> StagedObject:
        """As `Files`."""
        return StagedObject(path)

    def append(self, path: "ObjectPath", content: bytes) -> None:
        """As `Files`."""
        staged = StagedObject(path)
        staged.open().write((path.read_bytes() if path.is_file() else b"") + content)
        staged.sync()
        staged.put_in_place()

    def link(self, path: "ObjectPath", target: "ObjectPath") -> None:
        """As `Files`."""

        def edit(files: Names) -> None:
            files[target.key] = files[path.key]

        if not path.is_file():
            raise FileNotFoundError(path.key)
        self._archive.edit(edit)

    def remove_tree(self, path: "ObjectPath") -> None:
        """As `Files`."""

        def edit(files: Names) -> None:
            for key in [key for key in files if key.startswith(f"{path.key}/")]:
                del files[key]

        if path.is_dir():
            self._archive.edit(edit)

    def sync_directory(self, path: "ObjectPath") -> None:
        """As `Files`: a commit is durable."""

    def batch(self, path: "ObjectPath") -> AbstractContextManager[None]:
        """As `Files`."""
        return self._archive.batch()

    def at_one_moment(self, path: "ObjectPath") -> AbstractContextManager[None]:
        """As `Files`."""
        return self._archive.at_one_moment()

    def forget_replaced(self, path: "ObjectPath") -> None:
        """As `Files`."""
        self._archive.forget_replaced()

    def remove_unnamed(self, path: "ObjectPath") -> None:
        """As `Files`."""
        self._archive.remove_unnamed()

    def read_ahead(self, paths: "Collection[ObjectPath]") -> None:
        """As `Files`. What cannot be fetched is found missing when it is read."""
        entries = [entry for path in paths if (entry := path.entry()) is not None]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for entry in entries:
                threads.submit(self._archive.client.tail, entry.key, entry.size)

    def with_descriptors(self, files: Sequence[Any], folder: Path) -> list[BinaryIO]:
        """As `Files`."""
        # The newest first: they are merged soonest, and of a large archive a copy takes minutes.
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(partial(_copied, folder), files[::-1]))[::-1]

    def beside(self, path: "ObjectPath") -> "ObjectPath":
        """As `Files`."""
        return path / BESIDE


def _copied(folder: Path, file: pa.NativeFile) -> BinaryIO:
    copy: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        with file:
            shutil.copyfileobj(file, copy, _PART_BYTES)
        copy.flush()
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy
