"""Where the fits of an epoch are kept: `fits/new` until one is published, `fits/generation-N` afterwards.

Invariant: what is there and complete belongs to the generation that it is named after, and no user who was
erased from the archive is in a fit that leaves this module.
"""

import contextlib
import re
import shutil
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from trainer import log
from trainer.archive.files import sync_directory
from trainer.errors import ArchiveFailedError, Failures, FitFailedError, archive_errors
from trainer.fit_job.result_files import erase_users, read_result
from trainer.fit_job.results import FitResult

_NAME = re.compile(r"generation-(\d+)")


class FitFolder:
    """The fits of one epoch. Blocking: call in a thread."""

    def __init__(self, epoch_folder: Path) -> None:
        self._path = epoch_folder / "fits"
        self._path.mkdir(exist_ok=True)
        # Guards what a thread that erases and one that publishes both change: names, and the two below.
        self._lock = threading.Lock()
        # Users erased since `begin_fit`: the fit that runs may know them from its snapshot.
        self._erased: list[bytes] = []
        self._fitting = False
        # By user whose erasure has not ended: the rows of the items that were found so far.
        self._items: dict[bytes, set[int]] = {}
        # The newest fit that got a number: its files stay, whether or not it is live already.
        self._adopted: int | None = None

    @property
    def new(self) -> Path:
        """Where a fit is to be written."""
        return self._path / "new"

    def begin_fit(self) -> None:
        """Make room for a fit. To be called before its snapshot of the archive is taken. Raises
        `ArchiveFailedError`, as `end_fit`: it is to be called again.
        """
        with self._lock:
            self._clear_new()
            self._fitting = True

    def erase_from_new(self) -> None:
        """Take the users erased since `begin_fit` out of the fit that has just ended."""
        with self._lock:
            if self._erased:
                erase_users(self.new, self._erased)

    def end_fit(self) -> None:
        """Remove what is left of a fit that was not published."""
        with self._lock:
            self._clear_new()
            self._fitting = False

    def adopt(self, result: FitResult, generation: int) -> FitResult:
        """Name the new fit after its generation. Raises `ArchiveFailedError`."""
        path = self._of(generation)
        with self._lock:
            self._adopted = generation
            shutil.rmtree(path, ignore_errors=True)
            # An erasure may have removed it, where it was damaged.
            with archive_errors(f"name {result.path}"):
                result.path.rename(path)
                sync_directory(self._path)
        return replace(result, path=path)

    def read(self, generation: int) -> FitResult | None:
        """Return the fit of a generation, mapped; None where it is not here, not whole or cannot be read."""
        try:
            return read_result(self._of(generation))
        except (ArchiveFailedError, FitFailedError):
            return None

    def keep(self, generations: Collection[int]) -> None:
        """Remove the fits of all other generations."""
        with self._lock:
            for generation in self._generations():
                if generation not in generations and generation != self._adopted:
                    shutil.rmtree(self._of(generation), ignore_errors=True)

    def erase(self, user_ids: Collection[bytes]) -> dict[bytes, list[int]]:
        """Take users out of every fit here, one that runs or waits to be published included; return by user
        the rows of the items of which these had the user's ratings or events. Repeating is safe. No power cut
        brings back what was removed before.

        A fit that is damaged, and so cannot be searched, is removed: it can be made again. Raises
        `ArchiveFailedError` where one cannot be read or removed, when it has been through all others; the
        next call for these users returns the rows of these, too.
        """
        failures = Failures()
        with self._lock:
            if self._fitting:
                self._erased.extend(user_ids)
            items = {user_id: self._items.setdefault(user_id, set()) for user_id in user_ids}
            for path in [self.new, *map(self._of, self._generations())]:
                with failures:
                    if path.exists():
                        self._erase_from(path, items)
            with failures:
                self._sync()
            failures.throw()
            return {user_id: sorted(self._items.pop(user_id)) for user_id in user_ids}

    @staticmethod
    def _erase_from(path: Path, items: dict[bytes, set[int]]) -> None:
        try:
            erase_users(path, list(items), items)
        except FitFailedError as exc:
            log.warning("fit_removed", fit=path.name, why=str(exc))
            _remove(path)

    def may_know(self, user_id: bytes) -> bool:
        """Say whether a fit that runs may still write this user, who was erased since it began."""
        return self._fitting and user_id in self._erased

    def _clear_new(self) -> None:
        for leftover in self._path.glob("new*"):
            # A link, or a file that a person put there, is nothing of a fit.
            if leftover.is_dir() and not leftover.is_symlink():
                _remove(leftover)
        # Before the erasures that wait for the end of this fit: it may know their users.
        self._sync()
        self._erased.clear()

    def _sync(self) -> None:
        # It may have gone with its epoch, on its way to the trash.
        with archive_errors(f"write {self._path}"), contextlib.suppress(FileNotFoundError):
            sync_directory(self._path)

    def _generations(self) -> list[int]:
        try:
            names = [path.name for path in self._path.iterdir()]
        except FileNotFoundError:
            # An epoch goes to the trash without its fits, perhaps while one of its users is erased.
            return []
        matches = map(_NAME.fullmatch, names)
        return [int(match.group(1)) for match in matches if match is not None]

    def _of(self, generation: int) -> Path:
        return self._path / f"generation-{generation:06d}"


def _remove(path: Path) -> None:
    with archive_errors(f"remove {path}"), contextlib.suppress(FileNotFoundError):
        # Gone with its epoch, on its way to the trash; or a file of it is, which another one removes.
        while path.exists():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)
        sync_directory(path.parent)
