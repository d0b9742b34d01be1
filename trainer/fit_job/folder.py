"""Where the fits of an epoch are kept: `fits/new` while it is not published, `fits/generation-N` afterwards.

Invariant: whatever is there and complete belongs to the generation that it is named after.
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
from trainer.fit_job.results import FitResult, erase_user, read_result

_NAME = re.compile(r"generation-(\d+)")


class FitFolder:
    """The fits of one epoch. Blocking: call in a thread."""

    def __init__(self, epoch_folder: Path) -> None:
        self._path = epoch_folder / "fits"
        self._path.mkdir(parents=True, exist_ok=True)
        # A fit must not get its name between being found and being cleaned of an erased user.
        self._lock = threading.Lock()

    @property
    def new(self) -> Path:
        """Where a fit is to be written."""
        return self._path / "new"

    def clear_new(self) -> None:
        """Remove a fit that was not published."""
        for leftover in self._path.glob("new*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def adopt(self, result: FitResult, generation: int) -> FitResult:
        """Name the new fit after its generation."""
        path = self._of(generation)
        with self._lock:
            shutil.rmtree(path, ignore_errors=True)
            result.path.rename(path)
            sync_directory(self._path)
        return replace(result, path=path)

    def read(self, generation: int) -> FitResult | None:
        """The fit of a generation, if it is here."""
        if not self._of(generation).is_dir():
            return None
        try:
            return read_result(self._of(generation))
        except FitFailedError:
            return None

    def newest(self) -> FitResult | None:
        """The fit of the highest generation, to start the next one from."""
        for generation in sorted(self.generations(), reverse=True):
            found = self.read(generation)
            if found is not None:
                return found
        return None

    def generations(self) -> list[int]:
        """Generations whose fits are here."""
        matches = (_NAME.fullmatch(path.name) for path in self._path.iterdir())
        return [int(match.group(1)) for match in matches if match is not None]

    def keep(self, generations: Collection[int]) -> None:
        """Remove the fits of all other generations."""
        for generation in self.generations():
            if generation not in generations:
                shutil.rmtree(self._of(generation), ignore_errors=True)

    def erase(self, user_id: bytes) -> None:
        """Take a user out of every fit here, one that waits to be published included. Repeating is safe."""
        with self._lock:
            for path in [self.new, *map(self._of, self.generations())]:
                # A fit whose files cannot be read is not read by anybody else either.
                with contextlib.suppress(FitFailedError):
                    erase_user(path, user_id)

    def _of(self, generation: int) -> Path:
        return self._path / f"generation-{generation:06d}"
