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

from trainer.archive.segments import sync_directory
from trainer.errors import FitFailedError
from trainer.fit_job.result_files import erase_user, read_result
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
        # The newest fit that got a number: its files stay, whether or not it is live already.
        self._adopted: int | None = None

    @property
    def new(self) -> Path:
        """Where a fit is to be written."""
        return self._path / "new"

    def begin_fit(self) -> None:
        """Make room for a fit. To be called before its snapshot of the archive is taken."""
        with self._lock:
            self._clear_new()
            self._fitting = True

    def erase_from_new(self) -> None:
        """Take the users erased since `begin_fit` out of the fit that has just ended."""
        with self._lock:
            for user_id in self._erased:
                erase_user(self.new, user_id)

    def end_fit(self) -> None:
        """Remove what is left of a fit that was not published."""
        with self._lock:
            self._clear_new()
            self._fitting = False

    def adopt(self, result: FitResult, generation: int) -> FitResult:
        """Name the new fit after its generation."""
        path = self._of(generation)
        with self._lock:
            self._adopted = generation
            shutil.rmtree(path, ignore_errors=True)
            result.path.rename(path)
            sync_directory(self._path)
        return replace(result, path=path)

    def read(self, generation: int) -> FitResult | None:
        """Return the fit of a generation, mapped; None where it is not here or not whole."""
        try:
            return read_result(self._of(generation))
        except FitFailedError:
            return None

    def keep(self, generations: Collection[int]) -> None:
        """Remove the fits of all other generations."""
        with self._lock:
            for generation in self._generations():
                if generation not in generations and generation != self._adopted:
                    shutil.rmtree(self._of(generation), ignore_errors=True)

    def erase(self, user_id: bytes) -> None:
        """Take a user out of every fit here, one that runs or waits to be published included. Repeating is
        safe.
        """
        with self._lock:
            if self._fitting:
                self._erased.append(user_id)
            for path in [self.new, *map(self._of, self._generations())]:
                # A fit whose files cannot be read is not read by anything else either.
                with contextlib.suppress(FitFailedError):
                    erase_user(path, user_id)

    def may_know(self, user_id: bytes) -> bool:
        """Say whether a fit that runs may still write this user, who was erased since it began."""
        return self._fitting and user_id in self._erased

    def _clear_new(self) -> None:
        self._erased.clear()
        for leftover in self._path.glob("new*"):
            shutil.rmtree(leftover, ignore_errors=True)

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
