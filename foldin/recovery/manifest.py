"""The manifest of a backup: what an epoch's folder must have. Invariant: it is written last, so a folder with
one was whole when it was written, and what is missing or damaged since is found by size and checksum.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from processes.errors import CannotStartError
from trainer.archive.json_files import read_json, write_json

NAME = "manifest.json"
# What a list of items is called, by its checksum, and a catalogue, where there is one.
ITEMS, CATALOGUE = "items-*.list", "items-*.catalogue"
# A checksum is read through in parts: some 5 ms each.
CHUNK_BYTES = 4_194_304


@dataclass(frozen=True, slots=True)
class File:
    """A file of a backup, by its name."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup has. `identity`: of its store; `scale`: as `FOLDIN_SCALE` has it; `cut`: last stream id
    of each partition when it began, all of which is in it; `created`: seconds since 1970.
    """

    identity: str
    namespace: str
    partitions: int
    scale: str
    epoch: int
    cut: dict[str, str]
    files: dict[str, File]
    events: int
    items: int
    created: float

    def write(self, folder: Path) -> None:
        """Put it in place, on disk when this returns. Raises OSError."""
        write_json(folder / NAME, asdict(self))

    @property
    def items_file(self) -> str:
        """The name of the list of items."""
        return self._called(ITEMS) or "items.list"

    @property
    def catalogue_file(self) -> str | None:
        """The name of the catalogue; None for a backup without one."""
        return self._called(CATALOGUE)

    def _called(self, pattern: str) -> str | None:
        return next((name for name in self.files if PurePath(name).match(pattern)), None)

    def check(self, folder: Path) -> None:
        """Raise `CannotStartError` naming the first file that is missing or not as it was."""
        # All of each file, not only its size: a disk that was put away for a year forgets bits, not ends.
        for name, file in self.files.items():
            path = folder / name
            try:
                found = file_of(path)
            except OSError as exc:
                raise CannotStartError(
                    f"the backup is not whole: {path} is missing ({exc.strerror})"
                ) from exc
            if found != file:
                raise CannotStartError(f"the backup is damaged: {path} is not what was written")


def read_manifest(folder: Path, *, skip_damaged: bool = False) -> Manifest | None:
    """Return the manifest of a folder; None where there is none. `skip_damaged`: nor where it cannot be read.

    Raises `CannotStartError` where it cannot be read, `ArchiveRefusedError` for a newer format.
    """
    path = folder / NAME
    content = read_json(path)
    if content is None:
        return None
    try:
        # What a later version of the same format adds is left alone.
        known = {field.name: content[field.name] for field in fields(Manifest)}
        files: dict[str, Any] = known["files"]
        known["files"] = {name: File(int(each["size"]), str(each["sha256"])) for name, each in files.items()}
        return Manifest(**known)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        if skip_damaged:
            return None
        raise CannotStartError(
            f"the backup is damaged: {path} cannot be read; --skip-damaged restores what can be"
        ) from exc


def file_of(path: Path) -> File:
    """Return size and checksum of a file. Raises OSError."""
    state, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            state.update(part)
            size += len(part)
    return File(size, state.hexdigest())
