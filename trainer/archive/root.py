"""The archive folder of a namespace. Invariant: one process of a host has it, and the kernel takes it back
when that process ends, however it ends.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from trainer.archive.epoch_archive import EpochArchive, read_spans
from trainer.archive.erasures import Erasures, require_known
from trainer.archive.identity import ArchiveState, read_identity, write_identity
from trainer.archive.segments import TEMPORARY, Guard, Step, no_step
from trainer.archive.trash import Trash, TrashEntry, Why
from trainer.errors import ArchiveBusyError, ArchiveFailedError


class ArchiveRoot:
    """The archive folder of one namespace, held until `close`.

    Raises `ArchiveBusyError` where another process holds it, or its disk has no room for now;
    `ArchiveFailedError` where it cannot be written.
    """

    def __init__(self, root: Path, *, guard: Guard, step: Step = no_step) -> None:
        self.root = root
        self._guard = guard
        self._step = step
        lock: BinaryIO | None = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = lock = _locked(root / "lock")
            # A full disk and a read-only one are found here, before this trainer takes the lease from another
            # host.
            probe = root / f"probe{TEMPORARY}"
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
            self.erasures = Erasures(root, guard=guard)
            self.trash = Trash(root / "trash", guard=guard)
            self.trash.clean()
        except OSError as exc:
            if lock is not None:
                lock.close()
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ArchiveBusyError(
                    f"the disk under {root} is full: make room, it goes on by itself"
                ) from exc
            raise ArchiveFailedError(f"cannot write {root}: {exc.strerror or exc}") from exc
        self._epochs: dict[int, EpochArchive] = {}

    def epochs(self) -> list[int]:
        """Return the numbers of the epochs that have a folder, in order."""
        names = (path.name.removeprefix("epoch-") for path in self.root.glob("epoch-*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def epoch(self, number: int) -> EpochArchive:
        """Return the archive of one epoch, opened (and made) on first use. Slow then: call it in a thread."""
        if number not in self._epochs:
            self._epochs[number] = EpochArchive(
                self.folder(number), number, guard=self._guard, step=self._step
            )
        return self._epochs[number]

    def forget_opened(self) -> None:
        """Open epochs anew: what is on disk counts, not what a term believed that was cut off."""
        self._epochs.clear()

    def folder(self, number: int) -> Path:
        """Return where an epoch is kept."""
        return self.root / f"epoch-{number:06d}"

    def discard(self, number: int, why: Why) -> TrashEntry | None:
        """Move all of an epoch to the trash; return the entry, None where it never held a rating. Killed at
        any step it is to be called again.
        """
        self._epochs.pop(number, None)
        folder = self.folder(number)
        return self.trash.move(folder, number, self.identity() or "", why) if folder.exists() else None

    def identity(self) -> str | None:
        """Return which store this archive says that it belongs to. Raises `ArchiveRefusedError`."""
        return read_identity(self.root)

    def belong_to(self, identity: str) -> None:
        """Say from now on that this is the archive of the store with this identity."""
        try:
            self._guard()
            write_identity(self.root, identity)
        except OSError as exc:
            raise ArchiveFailedError(f"cannot write {self.root}: {exc.strerror or exc}") from exc

    def state(self) -> ArchiveState:
        """Return what the archive says of itself. Opens no epoch and changes nothing.

        Raises `ArchiveRefusedError` where something in it is newer than this version.
        """
        require_known(self.root)
        spans = {number: read_spans(self.folder(number)) for number in self.epochs()}
        ends = {number: {p: span.last for p, span in of.items()} for number, of in spans.items()}
        return ArchiveState(self.identity(), ends)

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()


def _locked(path: Path) -> BinaryIO:
    """Lock `path` for as long as the returned file is open. Raises `ArchiveBusyError`."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        file.close()
        raise ArchiveBusyError(f"{path.parent} is in use by another process") from exc
    # A fit that outlived the trainer for a moment would else keep the next trainer from the archive.
    os.set_inheritable(file.fileno(), False)
    return file
