"""The archive folder of a namespace. Invariant: of all trainers that ever led with it, only the one that took
it last can change anything in it.

A leader reaches the folder by a name of its own, a symbolic link beside it, and the next leader removes that
name. The kernel looks the name up in each call, so that one which comes later, by a process that was frozen
between any two, finds nothing. A leader that was replaced leaves the folder as one that was killed does, and
no file needs a mark of whose it is.
"""

import contextlib
import errno
import os
from pathlib import Path

from featurestore.errors import LeaseLost
from trainer.archive.epoch_archive import EpochArchive, read_spans
from trainer.archive.erasures import Erasures, require_known
from trainer.archive.identity import ArchiveState, read_identity, write_identity
from trainer.archive.segments import TEMPORARY, Guard, Step, no_step
from trainer.archive.trash import Trash, TrashEntry, Why
from trainer.errors import ArchiveFailedError, ArchiveFullError

# Between the folder's name and that of a term. No namespace has a dot.
_TERM = ".term-"


class ArchiveRoot:
    """The archive folder of one namespace, `root`: to read from, and after `claim` to write.

    Raises `ArchiveFullError` where its disk has no room for now; `ArchiveFailedError` where it cannot be
    written.
    """

    def __init__(self, root: Path, *, guard: Guard, step: Step = no_step) -> None:
        self.root = root
        self._guard = guard
        self._step = step
        # By which name this process reaches it.
        self._path = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            # A full disk and a read-only one are found here, before this trainer takes the lease from another
            # host. By its number: another trainer may look at the same time.
            probe = root / f"probe-{os.getpid()}{TEMPORARY}"
            probe.write_bytes(b"\0" * 4096)
            probe.unlink(missing_ok=True)
            self.erasures = Erasures(root, guard=guard)
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ArchiveFullError(
                    f"the disk under {root} is full: make room, it goes on by itself"
                ) from exc
            raise ArchiveFailedError(f"cannot write {root}: {exc.strerror or exc}") from exc
        self._epochs: dict[int, EpochArchive] = {}

    def claim(self, term: str) -> list[Path]:
        """Reach the folder by the name of this term from now on; return the names of others. Raises
        `ArchiveFailedError`.

        They are to be handed to `take` once the store has said that none of them leads.
        """
        own = self.root.with_name(f"{self.root.name}{_TERM}{term}")
        try:
            with contextlib.suppress(FileExistsError):
                own.symlink_to(self.root.name)
        except OSError as exc:
            raise ArchiveFailedError(f"cannot make the link {own}: {exc.strerror or exc}") from exc
        self._path = own
        # After the link is there: of two that claim it at once, the later one finds the other.
        names = self.root.parent.glob(f"{self.root.name}{_TERM}*")
        return [path for path in names if path != own and path.is_symlink()]

    def take(self, others: list[Path]) -> None:
        """Remove these names: what their processes do from now on fails. Then open everything anew.

        Raises `ArchiveFailedError`.
        """
        try:
            for path in others:
                self._step("archive:take")
                path.unlink(missing_ok=True)
            self.trash.clean()
        except OSError as exc:
            raise ArchiveFailedError(f"cannot take {self.root}: {exc.strerror or exc}") from exc
        # What is on disk counts, not what a term believed that was cut off.
        self._epochs.clear()
        self.erasures = Erasures(self._path, guard=self._require_ours)

    def leave(self) -> None:
        """Give up the name of this term, once nothing is under way by it."""
        if self._path != self.root:
            # It may have been taken; one that stays is removed by the next leader.
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = self.root

    @property
    def taken_away(self) -> bool:
        """Whether the name of this term is gone: another leader has taken the folder."""
        return not self._path.exists()

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
                self.folder(number), number, guard=self._require_ours, step=self._step
            )
        return self._epochs[number]

    def folder(self, number: int) -> Path:
        """Return where an epoch is kept."""
        return self._path / f"epoch-{number:06d}"

    def discard(self, number: int, why: Why) -> TrashEntry | None:
        """Move all of an epoch to the trash; return the entry, None where it never held a rating. Killed at
        any step it is to be called again.
        """
        self._epochs.pop(number, None)
        folder = self.folder(number)
        return self.trash.move(folder, number, self.identity() or "", why) if folder.exists() else None

    def identity(self) -> str | None:
        """Return which store this archive says that it belongs to. Raises `ArchiveRefusedError`."""
        return read_identity(self._path)

    def belong_to(self, identity: str, since_ms: int = 0) -> None:
        """Say from now on that this is the archive of the store with this identity; `since_ms`: since now, by
        that store's clock, where it was another one's.
        """
        try:
            self._require_ours()
            write_identity(self._path, identity, since_ms)
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
