"""Epochs that are no longer needed, kept for a while. Invariant: whatever held ratings comes here whole, by
one rename, and leaves only by its age, or by the size of all with a line that says so.

An entry is a folder as it was in the archive, without its fits, and a file that says why it is here. A user
who is forgotten is taken out of every entry.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.archive.epoch_archive import ALL_OF_A_USER, EpochArchive, uncovered
from trainer.archive.events import string_array
from trainer.archive.identity import SHOWN
from trainer.archive.json_files import read_json, write_json
from trainer.archive.segments import (
    DAMAGED,
    TEMPORARY,
    Guard,
    SegmentName,
    inspect_segment,
    sync_directory,
)
from trainer.errors import ArchiveFailedError, ArchiveRefusedError, SegmentDamagedError, SegmentGoneError

NOTE = "trash.json"
_REMOVING = ".removing"
_UNFINISHED = ".unfinished"

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
) -> list[tuple[TrashEntry, Literal["age", "size"]]]:
    """Return which entries to remove, and for what: those older than `keep_s`, then the oldest until the
    rest has `most_bytes` at most. The newest stays for its time, whatever its size.
    """
    ordered = sorted(entries, key=lambda entry: entry.at)
    old = [entry for entry in ordered if now - entry.at > keep_s]
    left = ordered[len(old) :]
    found: list[tuple[TrashEntry, Literal["age", "size"]]] = [(entry, "age") for entry in old]
    size = sum(entry.size_bytes for entry in left)
    for entry in left[:-1]:
        if size <= most_bytes:
            break
        found.append((entry, "size"))
        size -= entry.size_bytes
    return found


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
        if not self.folder.is_dir():
            return []
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
        try:
            if not _holds_ratings(folder):
                shutil.rmtree(folder)
                sync_directory(folder.parent)
                return None
            # What a fit left can be made again, and would have to be searched for every user forgotten.
            shutil.rmtree(folder / "fits", ignore_errors=True)
            note = self._note(folder, epoch, identity, why)
            write_json(folder / NOTE, note)
            target = self._target(note)
            self._guard()
            folder.rename(target)
            sync_directory(self.folder)
            sync_directory(folder.parent)
        except OSError as exc:
            raise ArchiveFailedError(f"cannot move {folder}: {exc.strerror or exc}") from exc
        return _entry(target, note)

    def keep(self, paths: Sequence[Path], epoch: int, identity: str, why: Why) -> TrashEntry:
        """Keep files of an epoch that are about to be replaced, under their names in a new entry."""
        try:
            self.folder.mkdir(exist_ok=True)
            beside = self.folder / f"epoch-{epoch:06d}{_UNFINISHED}"
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for path in paths:
                _link(path, beside / path.name)
            note = self._note(beside, epoch, identity, why)
            write_json(beside / NOTE, note)
            target = self._target(note)
            self._guard()
            beside.rename(target)
            sync_directory(self.folder)
        except OSError as exc:
            raise ArchiveFailedError(f"cannot keep files in {self.folder}: {exc.strerror or exc}") from exc
        return _entry(target, note)

    def erase(self, user_id: bytes) -> int:
        """Take a user out of every entry; return how many events there were. Repeating is safe.

        Damaged files, which cannot be searched, are removed.
        """
        erased = 0
        for path in self._folders():
            if _may_have(path, user_id):
                archive = EpochArchive(path, 0, guard=self._guard)
                erased += archive.erase(user_id, ALL_OF_A_USER)
        return erased

    def remove(self, entry: TrashEntry) -> None:
        """Remove an entry for good. What a kill leaves of it is removed with the next one."""
        try:
            self._guard()
            entry.path.rename(entry.path.with_name(entry.path.name + _REMOVING))
            for leftover in self.folder.glob(f"*{_REMOVING}"):
                shutil.rmtree(leftover)
            sync_directory(self.folder)
        except OSError as exc:
            raise ArchiveFailedError(f"cannot remove {entry.path}: {exc.strerror or exc}") from exc

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        ends = (_REMOVING, _UNFINISHED)
        return [
            path for path in self.folder.glob("epoch-*") if path.is_dir() and not path.name.endswith(ends)
        ]

    def _note(self, folder: Path, epoch: int, identity: str, why: Why) -> dict[str, Any]:
        ratings, users = _count(folder)
        at = self._clock().timestamp()
        return {
            "epoch": epoch,
            "identity": identity,
            "why": why,
            "at": at,
            "ratings": ratings,
            "users": users,
        }

    def _target(self, note: dict[str, Any]) -> Path:
        self.folder.mkdir(exist_ok=True)
        at = datetime.fromtimestamp(note["at"], UTC).strftime("%Y%m%dT%H%M%S%fZ")
        identity = note["identity"][:SHOWN] or "unknown"
        return self.folder / f"epoch-{note['epoch']:06d}.{identity}.{at}"


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
    """Damaged files count: a person may get something out of them."""
    if any(folder.glob(f"*{DAMAGED}")):
        return True
    for name, path in uncovered(folder):
        try:
            if inspect_segment(path, name).rows:
                return True
        except SegmentDamagedError:
            return True
    return False


def _count(folder: Path) -> tuple[int, int]:
    """Events and users of the segments that can be read."""
    rows, users = 0, [pa.array([], type=pa.string())]
    for _, path in uncovered(folder):
        try:
            column = _user_ids(path)
        except SegmentDamagedError:
            continue
        rows += len(column)
        users.append(pc.unique(column))
    return rows, len(pc.unique(pa.chunked_array(users)))


def _may_have(folder: Path, user_id: bytes) -> bool:
    """Say whether an entry must be searched in full: the user is in it, or part of it cannot be read, or a
    kill left files there that others have replaced.
    """
    log = uncovered(folder)
    left = [path for path in folder.iterdir() if SegmentName.parse(path.name.removesuffix(TEMPORARY))]
    if len(left) > len(log) or any(folder.glob(f"*{DAMAGED}")):
        return True
    wanted = string_array([user_id])[0]
    for _, path in log:
        try:
            if pc.any(pc.equal(_user_ids(path), wanted)).as_py():
                return True
        except SegmentDamagedError:
            return True
        except SegmentGoneError:
            continue
    return False


def _user_ids(path: Path) -> pa.ChunkedArray:
    try:
        with pa.OSFile(str(path), "rb") as file:
            return pq.read_table(file, columns=["user_id"], page_checksum_verification=True)["user_id"]
    except FileNotFoundError as exc:
        raise SegmentGoneError(path.name) from exc
    except (OSError, pa.ArrowException, ValueError, KeyError) as exc:
        raise SegmentDamagedError(path, "unreadable") from exc


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        # A file system without links.
        shutil.copy2(path, target)
