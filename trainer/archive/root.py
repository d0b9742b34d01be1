"""The archive of a namespace. Invariant: of all trainers that ever led with it, only the one that took it
last can change anything in it (`fence.py`).
"""

import errno
from collections.abc import Collection
from pathlib import Path

from featurestore.errors import LeaseLost
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.erasures import Erasures, require_known
from trainer.archive.fence import FolderFence
from trainer.archive.files import link
from trainer.archive.identity import ArchiveState, read_identity, write_identity
from trainer.archive.kept import NAME as KEPT
from trainer.archive.kept import write_kept
from trainer.archive.listing import read_ends
from trainer.archive.segments import Guard, Step, no_step
from trainer.archive.trash import Trash, TrashEntry, Why
from trainer.archive.unread import UnreadFiles
from trainer.errors import ArchiveFailedError, ArchiveWaitsError, archive_errors


class ArchiveRoot:
    """The archive folder of one namespace, `root`: to read from, and after `claim` to write.

    Raises `ArchiveWaitsError` where its disk has no room for now, `ArchiveFailedError` where it cannot be
    written.
    """

    def __init__(self, root: Path, *, guard: Guard, step: Step = no_step) -> None:
        self.root = root
        self._guard = guard
        self._step = step
        self._fence = FolderFence(root)
        try:
            self._fence.probe()
            self.erasures = Erasures(root, guard=guard)
        except OSError as exc:
            raise _unwritable(root, exc) from exc
        self._epochs: dict[int, EpochArchive] = {}
        # Of this process: a term that cannot begin does not wait anew.
        self._unread: dict[int, UnreadFiles] = {}

    def claim(self, term: str) -> list[Path]:
        """Reach the archive as this term from now on; return what of others is found. Raises
        `ArchiveFailedError`.

        It is to be handed to `take` once the store has said that no other leads.
        """
        with archive_errors(f"claim {self.root}"):
            return self._fence.claim(term)

    def take(self, others: list[Path]) -> None:
        """Keep these others out: what their processes do from now on fails. Then open everything anew.

        Raises `ArchiveFailedError`.
        """
        with archive_errors(f"take {self.root}"):
            self._fence.take(others, self._step)
            self.trash.clean()
        # What is on disk counts, not what a term believed that was cut off.
        self._epochs.clear()
        self.erasures = Erasures(self._path, guard=self._require_ours)

    def leave(self) -> None:
        """Give up the name of this term, once nothing is under way by it."""
        self._fence.leave()

    @property
    def _path(self) -> Path:
        return self._fence.path

    @property
    def taken_away(self) -> bool:
        """Whether the name of this term is gone: another leader has taken the archive."""
        return self._fence.taken_away

    @property
    def trash(self) -> Trash:
        """The trash of the archive."""
        return Trash(self._path / "trash", guard=self._require_ours)

    def _require_ours(self) -> None:
        self._guard()
        # Not what keeps a late write out, which the name does: in place of an error that is tried again.
        if self.taken_away:
            raise LeaseLost("another trainer has the archive")

    def epochs(self) -> list[int]:
        """Return the numbers of the epochs that have a folder, in order."""
        names = (path.name.removeprefix("epoch-") for path in self._path.glob("epoch-*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def epoch(self, number: int) -> EpochArchive:
        """Return the archive of one epoch, opened (and made) on first use. Slow then: call it in a thread."""
        if number not in self._epochs:
            self._epochs[number] = EpochArchive(
                *(self.folder(number), number),
                guard=self._require_ours,
                step=self._step,
                unread=self._unread_of(number),
            )
        return self._epochs[number]

    def unread_s(self) -> dict[str, float]:
        """Return the segments that cannot be read and are waited for, by their paths in the folder, each with
        for how many seconds. Safe in any thread.
        """
        return {
            f"{self.folder(number).name}/{name}": seconds
            for number, files in sorted(dict(self._unread).items())
            for name, seconds in files.seconds().items()
        }

    def _unread_of(self, number: int) -> UnreadFiles:
        return self._unread.setdefault(number, UnreadFiles())

    def folder(self, number: int) -> Path:
        """Return where an epoch is kept."""
        return self._path / f"epoch-{number:06d}"

    def discard(self, number: int, why: Why) -> TrashEntry | None:
        """Move all of an epoch to the trash; return the entry, None where it never held a rating. Killed at
        any step it is to be called again.
        """
        self._epochs.pop(number, None)
        self._unread.pop(number, None)
        folder = self.folder(number)
        if why == "adopted":
            self._keep_with(folder)
        return self.trash.move(folder, number, self.identity() or "", why) if folder.exists() else None

    def _keep_with(self, folder: Path) -> None:
        """Have what another store kept besides ratings with an epoch of it that goes to the trash: the file
        of this store takes the other one's place.
        """
        kept = self._path / KEPT
        with archive_errors(f"write {folder}"):
            if folder.exists() and kept.exists() and not (folder / KEPT).exists():
                link(kept, folder / KEPT)

    def keep(self, content: bytes) -> None:
        """Put the file of what the store keeps besides ratings in place. Raises `ArchiveFailedError`."""
        with archive_errors(f"write {self.root / KEPT}"):
            self._require_ours()
            write_kept(self._path, content)

    def identity(self) -> str | None:
        """Return which store this archive says that it belongs to. Raises `ArchiveRefusedError`."""
        return read_identity(self._path)

    def belong_to(self, identity: str, since_ms: int = 0) -> None:
        """Say from now on that this is the archive of the store with this identity; `since_ms`: since now, by
        that store's clock, where it was another one's.
        """
        with archive_errors(f"write {self.root}"):
            self._require_ours()
            write_identity(self._path, identity, since_ms)

    def state(self, replaced: Collection[int] = ()) -> ArchiveState:
        """Return what the archive says of itself. Opens no epoch and changes nothing. `replaced`: epochs that
        the store has begun and left, for which no file needs to be read.

        Raises `ArchiveRefusedError` where something in it is newer than this version, `ArchiveFailedError`.
        """
        with archive_errors(f"read {self.root}"):
            require_known(self.root)
            numbers = self.epochs()
        ends = {
            number: read_ends(
                self.folder(number), replaced=number in replaced, unread=self._unread_of(number)
            )
            for number in numbers
        }
        return ArchiveState(self.identity(), ends)


def _unwritable(folder: Path, exc: OSError) -> Exception:
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ArchiveWaitsError(f"the disk under {folder} is full: make room, it goes on by itself")
    return ArchiveFailedError(f"cannot write {folder}: {exc.strerror or exc}")
