"""A place in an archive on an object store, which answers what the archive asks a `pathlib.Path`. Invariant:
it has no state of its own, and folders are there as long as a file is in them.
"""

import errno
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import total_ordering

from trainer.archive.storage.commits import BESIDE, Names, StoredFile
from trainer.archive.storage.object_archive import ObjectArchive
from trainer.archive.storage.object_files import ObjectFiles


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
    def files(self) -> ObjectFiles:
        """What is done with files here."""
        return ObjectFiles(self.archive)

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
