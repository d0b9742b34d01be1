"""A place in an archive on an object store, which answers what the archive asks a `pathlib.Path`. Invariant:
it has no state of its own, and folders are there as long as a file is in them; and what the archive does with
files there: an upload that its commit did not name, as far as is known, is removed, or noted to be.
"""

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial, total_ordering
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from trainer.archive.storage.client import RangeFile
from trainer.archive.storage.local import Files, Staged
from trainer.archive.storage.object_archive import BESIDE, Names, ObjectArchive, StoredFile

# Requests side by side: one gets some 50 MB/s of a store that is near, and waits 20 ms for its first byte.
_AT_ONCE = 8
# Of one request: more would be held in memory by each of these.
_PART_BYTES = 8_388_608


@dataclass(frozen=True, slots=True)
class Stat:
    """Of what the archive asks a file. `st_mtime`: when it was written, in seconds since 1970."""

    st_size: int
    st_mtime: float


@total_ordering
class ObjectPath:
    """A file or folder of `archive`. What asks the store raises OSError."""

    __slots__ = ("archive", "parts")

    def __init__(self, archive: ObjectArchive, parts: tuple[str, ...] = ()) -> None:
        self.archive = archive
        self.parts = parts

    @property
    def key(self) -> str:
        """Its path in the archive."""
        return "/".join(self.parts)

    @property
    def is_beside(self) -> bool:
        """Whether it is no file of commits, but one that another process than the leader put there."""
        return self.parts[:1] == (BESIDE,)

    @property
    def name(self) -> str:
        """Its last part; '' of the archive itself."""
        return self.parts[-1] if self.parts else ""

    @property
    def parent(self) -> "ObjectPath":
        """The folder that it is in; of the archive itself the same."""
        return ObjectPath(self.archive, self.parts[:-1])

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.archive, (*self.parts, *name.split("/")))

    def with_name(self, name: str) -> "ObjectPath":
        """Return another place of the same folder."""
        return self.parent / name

    def __str__(self) -> str:
        return "/".join([str(self.archive), *self.parts])

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and self._identity == other._identity

    def __lt__(self, other: "ObjectPath") -> bool:
        return self.parts < other.parts

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.archive.client.address, self.parts

    def absolute(self) -> "ObjectPath":
        """As `Path` has it."""
        return self

    def resolve(self) -> "ObjectPath":
        """As `Path` has it."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Say whether it is in another folder, whichever archive that is of."""
        return isinstance(other, ObjectPath) and f"{self}/".startswith(f"{other}/")

    def match(self, pattern: str) -> bool:
        """Say whether its name fits a pattern without folders."""
        return fnmatchcase(self.name, pattern)

    def entry(self) -> StoredFile | None:
        """Return which object it is; None where it is no file."""
        return self._listed().get(self.key)

    def is_file(self) -> bool:
        """As `Path` has it."""
        return self.entry() is not None

    def is_dir(self) -> bool:
        """As `Path` has it."""
        return any(True for _ in self._below())

    def exists(self) -> bool:
        """As `Path` has it."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> list["ObjectPath"]:
        """As `Path` has it, in order."""
        return self.glob("*")

    def glob(self, pattern: str) -> list["ObjectPath"]:
        """Return what fits a pattern of as many names as are to fit, in order."""
        depth, wanted = len(self.parts), pattern.split("/")
        found = {tuple(key.split("/")[: depth + len(wanted)]) for key, _ in self._below()}
        return [
            ObjectPath(self.archive, parts)
            for parts in sorted(found)
            if len(parts) == depth + len(wanted) and all(map(fnmatchcase, parts[depth:], wanted))
        ]

    def stat(self) -> Stat:
        """Return size and time; of a folder those of all that is in it and of the last."""
        entry = self.entry()
        found = [file for _, file in self._below()] if entry is None else [entry]
        if not found:
            raise self._missing()
        return Stat(sum(file.size for file in found), max(file.at for file in found))

    def open(self, _mode: str) -> io.BytesIO:
        """Return what is in it, to be read as bytes."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """As `Path` has it."""
        entry = self.entry()
        if entry is None:
            raise self._missing()
        return self.archive.client.read(entry.key)

    def read_text(self, encoding: str) -> str:
        """As `Path` has it."""
        return self.read_bytes().decode(encoding)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """As `Path` has it: there is nothing to do."""

    def rmdir(self) -> None:
        """As `Path` has it: there is nothing to do."""

    def unlink(self, missing_ok: bool = False) -> None:
        """As `Path` has it."""

        def edit(files: Names) -> None:
            if files.pop(self.key, None) is None and not missing_ok:
                raise self._missing()

        self.archive.edit(edit)

    def rename(self, target: "ObjectPath") -> "ObjectPath":
        """As `Path` has it: a file in the place of another, or a folder with all that is in it."""

        def edit(files: Names) -> None:
            moved = [key for key in files if key == self.key or key.startswith(f"{self.key}/")]
            if not moved:
                raise self._missing()
            for key in moved:
                files[target.key + key[len(self.key) :]] = files.pop(key)

        self.archive.edit(edit)
        return target

    def _listed(self) -> Mapping[str, StoredFile]:
        return self.archive.files_beside() if self.is_beside else self.archive.files()

    def _below(self) -> Iterable[tuple[str, StoredFile]]:
        start = f"{self.key}/" if self.parts else ""
        return ((key, file) for key, file in self._listed().items() if key.startswith(start))

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))


class StagedObject(Staged):
    """A file in memory until it is uploaded: a segment has some 30 MB."""

    def __init__(self, path: ObjectPath) -> None:
        super().__init__(path)
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


class ObjectFiles(Files):
    """As `Files`."""

    def __init__(self, archive: ObjectArchive) -> None:
        self._archive = archive

    def open(self, path: ObjectPath) -> pa.NativeFile:
        """As `Files`."""
        entry = path.entry()
        if entry is None:
            raise FileNotFoundError(path.key)
        return RangeFile.opened(self._archive.client, entry.key, entry.size)

    def staged(self, path: ObjectPath) -> StagedObject:
        """As `Files`."""
        return StagedObject(path)

    def append(self, path: ObjectPath, content: bytes) -> None:
        """As `Files`."""
        staged = StagedObject(path)
        staged.open().write((path.read_bytes() if path.is_file() else b"") + content)
        staged.sync()
        staged.put_in_place()

    def link(self, path: ObjectPath, target: ObjectPath) -> None:
        """As `Files`."""

        def edit(files: Names) -> None:
            files[target.key] = files[path.key]

        if not path.is_file():
            raise FileNotFoundError(path.key)
        self._archive.edit(edit)

    def remove_tree(self, path: ObjectPath) -> None:
        """As `Files`."""

        def edit(files: Names) -> None:
            for key in [key for key in files if key.startswith(f"{path.key}/")]:
                del files[key]

        if path.is_dir():
            self._archive.edit(edit)

    def sync_directory(self, path: ObjectPath) -> None:
        """As `Files`: a commit is durable."""

    def batch(self, path: ObjectPath) -> AbstractContextManager[None]:
        """As `Files`."""
        return self._archive.batch()

    def at_one_moment(self, path: ObjectPath) -> AbstractContextManager[None]:
        """As `Files`."""
        return self._archive.at_one_moment()

    def forget_replaced(self, path: ObjectPath) -> None:
        """As `Files`."""
        self._archive.forget_replaced()

    def remove_unnamed(self, path: ObjectPath) -> None:
        """As `Files`."""
        self._archive.remove_unnamed()

    def read_ahead(self, paths: Collection[ObjectPath]) -> None:
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

    def beside(self, path: ObjectPath) -> ObjectPath:
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
