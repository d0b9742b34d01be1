"""Epochs that are no longer needed, kept for a while. Invariant: whatever held ratings comes here whole, by
one rename, and leaves only by its age, or by the size of all with a line that says so.

An entry is a folder as it was in the archive, without its fits, and a file that says why it is here. A user
who is forgotten is taken out of every entry.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import string_array
from trainer.archive.files import TEMPORARY, link, sync_directory
from trainer.archive.identity import SHOWN
from trainer.archive.json_files import read_json, write_json
from trainer.archive.listing import uncovered
from trainer.archive.segments import (
    DAMAGED,
    Guard,
    SegmentName,
    inspect_segment,
    read_user_ids,
)
from trainer.errors import (
    ArchiveFailedError,
    ArchiveRefusedError,
    Failures,
    SegmentDamagedError,
    SegmentGoneError,
    archive_errors,
)

NOTE = "trash.json"
_REMOVING = ".removing"
_UNFINISHED = ".unfinished"

# A machine asks for the time within minutes of a start.
_SURE_S = 3_600.0

Removal = Literal["age", "size"]
Why = Literal["replaced", "abandoned", "adopted", "rebuilt"]
"""A newer epoch took its place; it was given up; a person said so; it was rebuilt from the store."""


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """A folder in the trash. `at`: when it came, seconds since 1970; `identity`: of its store, "" where it
    did not say; `ratings`, `users`: how many events and users its segments had then.
    """

    path: Path
    epoch: int
    identity: str
    why: str
    at: float
    ratings: int
    users: int
    size_bytes: int


def surplus(
    entries: Sequence[TrashEntry], now: float, keep_s: float, most_bytes: int
) -> list[tuple[TrashEntry, Removal]]:
    """Return which entries to remove, and for what: those older than `keep_s`, then the oldest until the
    rest has `most_bytes` at most. The newest stays for its time, whatever its size.
    """
    ordered = sorted(entries, key=lambda entry: entry.at)
    old = [entry for entry in ordered if now - entry.at > keep_s]
    left = ordered[len(old) :]
    found: list[tuple[TrashEntry, Removal]] = [(entry, "age") for entry in old]
    size = sum(entry.size_bytes for entry in left)
    for entry in left[:-1]:
        if size <= most_bytes:
            break
        found.append((entry, "size"))
        size -= entry.size_bytes
    return found


class Overdue:
    """Since when entries have been too old, by a clock that is never set. That of the machine may be
    years ahead after a start, until it is set right.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def confirmed(
        self, found: Sequence[tuple[TrashEntry, Removal]], now: float, keep_s: float
    ) -> list[tuple[TrashEntry, Removal]]:
        """Return what is to go of what `surplus` has `found`: one that is too old once it has been for an
        hour on end, or for `keep_s` where that is less.
        """
        old = {entry.path.name for entry, why in found if why == "age"}
        self._since = {name: self._since.get(name, now) for name in old}
        latest = now - min(keep_s, _SURE_S)
        return [
            (entry, why) for entry, why in found if why != "age" or self._since[entry.path.name] <= latest
        ]


class Trash:
    """The trash of an archive, a folder in it. Blocking: call in a thread.

    Every method raises `ArchiveFailedError` where the disk is in the way.
    """

    def __init__(self, folder: Path, *, guard: Guard, clock: Callable[[], datetime] | None = None) -> None:
        self.folder = folder
        self._guard = guard
        self._clock = clock or (lambda: datetime.now(UTC))

    def clean(self) -> None:
        """Remove what a kill left half made or half removed: it is in the archive, or was to go. For a
        process that has the archive and nothing under way in it. Raises OSError.
        """
        for path in [*self.folder.glob(f"*{_UNFINISHED}"), *self.folder.glob(f"*{_REMOVING}")]:
            shutil.rmtree(path)

    def entries(self) -> list[TrashEntry]:
        """Return what is here, the oldest first. A file of a newer version is not one of ours to remove:
        its entry is left out.
        """
        found = []
        for path in self._folders():
            try:
                note = read_json(path / NOTE)
            except ArchiveRefusedError:
                continue
            found.append(_entry(path, note or {}))
        return sorted(found, key=lambda entry: (entry.at, entry.path.name))

    def move(self, folder: Path, epoch: int, identity: str, why: Why) -> TrashEntry | None:
        """Move the folder of an epoch here; an epoch that never held a rating is removed instead.

        Killed at any step it is to be called again.
        """
        self._guard()
        with archive_errors(f"move {folder}"):
            if not _holds_ratings(folder):
                shutil.rmtree(folder)
                sync_directory(folder.parent)
                return None
            # What a fit left can be made again, and would have to be searched for every user forgotten.
            with contextlib.suppress(OSError):
                shutil.rmtree(folder / "fits")
            entry = self._take(folder, epoch, identity, why)
            sync_directory(folder.parent)
            return entry

    def keep(self, paths: Sequence[Path], epoch: int, identity: str, why: Why) -> TrashEntry:
        """Keep files of an epoch that are about to be replaced, under their names in a new entry."""
        with archive_errors(f"keep files in {self.folder}"):
            self.folder.mkdir(exist_ok=True)
            beside = self.folder / f"epoch-{epoch:06d}{_UNFINISHED}"
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(beside)
            beside.mkdir()
            for path in paths:
                link(path, beside / path.name)
            return self._take(beside, epoch, identity, why)

    def erase(self, before_ms: Mapping[bytes, int]) -> int:
        """Take what users did before a time of the store, `ALWAYS` for all of it, out of every entry; return
        how many events there were. Repeating is safe.

        Damaged files, which cannot be searched, and those that could not be read stay: it raises when it has
        been through all other entries, and the erasure has not ended then.
        """
        erased, failures = 0, Failures()
        for path in self._folders():
            with failures:
                if _may_have(path, before_ms):
                    erased += EpochArchive(path, 0, guard=self._guard, replaceable=False).erase(before_ms)
        failures.throw()
        return erased

    def remove(self, entry: TrashEntry) -> None:
        """Remove an entry for good. What a kill leaves of it is removed with the next one."""
        with archive_errors(f"remove {entry.path}"):
            self._guard()
            entry.path.rename(entry.path.with_name(entry.path.name + _REMOVING))
            for leftover in self.folder.glob(f"*{_REMOVING}"):
                shutil.rmtree(leftover)
            sync_directory(self.folder)

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        ends = (_REMOVING, _UNFINISHED)
        return [
            path for path in self.folder.glob("epoch-*") if path.is_dir() and not path.name.endswith(ends)
        ]

    def _take(self, folder: Path, epoch: int, identity: str, why: Why) -> TrashEntry:
        """Rename a folder to an entry, with a note in it. Raises OSError."""
        ratings, users = _count(folder)
        at = self._clock().timestamp()
        note = {
            "epoch": epoch,
            "identity": identity,
            "why": why,
            "at": at,
            "ratings": ratings,
            "users": users,
        }
        write_json(folder / NOTE, note)
        self.folder.mkdir(exist_ok=True)
        named_at = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%S%fZ")
        target = self.folder / f"epoch-{epoch:06d}.{identity[:SHOWN] or 'unknown'}.{named_at}"
        self._guard()
        folder.rename(target)
        sync_directory(self.folder)
        return _entry(target, note)


def _entry(path: Path, note: dict[str, Any]) -> TrashEntry:
    """Of a note that cannot be read the name and the folder's own time are left."""
    files = [each.stat() for each in path.iterdir() if each.is_file()]
    number = path.name.removeprefix("epoch-").partition(".")[0]
    return TrashEntry(
        path=path,
        epoch=int(note.get("epoch") or (number if number.isdigit() else 0)),
        identity=str(note.get("identity", "")),
        why=str(note.get("why", "unknown")),
        at=float(note.get("at") or path.stat().st_mtime),
        ratings=int(note.get("ratings") or 0),
        users=int(note.get("users") or 0),
        size_bytes=sum(each.st_size for each in files),
    )


def _holds_ratings(folder: Path) -> bool:
    """Files that are damaged, or cannot be read, count: a person may get something out of them."""
    if any(folder.glob(f"*{DAMAGED}")):
        return True
    for name, path in uncovered(folder):
        try:
            if inspect_segment(path, name).rows:
                return True
        except (ArchiveFailedError, SegmentDamagedError):
            return True
    return False


def _count(folder: Path) -> tuple[int, int]:
    """Events and users of the segments that can be read."""
    rows, users = 0, [pa.array([], type=pa.string())]
    for _, path in uncovered(folder):
        try:
            column = read_user_ids(path)
        except (ArchiveFailedError, SegmentDamagedError):
            continue
        rows += len(column)
        users.append(pc.unique(column))
    return rows, len(pc.unique(pa.chunked_array(users)))


def _may_have(folder: Path, user_ids: Iterable[bytes]) -> bool:
    """Say whether an entry must be searched in full: any of the users is in it, or part of it cannot be read,
    or a kill left files there that others have replaced.
    """
    log = uncovered(folder)
    left = [path for path in folder.iterdir() if SegmentName.parse(path.name.removesuffix(TEMPORARY))]
    if len(left) > len(log) or any(folder.glob(f"*{DAMAGED}")):
        return True
    wanted = string_array(list(user_ids))
    for _, path in log:
        try:
            if pc.any(pc.is_in(read_user_ids(path), value_set=wanted)).as_py():
                return True
        except SegmentDamagedError:
            return True
        except SegmentGoneError:
            continue
    return False
