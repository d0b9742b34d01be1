"""The folder of this host for the fits of one namespace, whose archive is on an object store.

Each term has a folder of its own in it, and takes over that of the term before by renaming it: what a trainer
that was replaced, or its fit, writes later goes nowhere.

Invariant: nothing is removed that was not made here, and nothing of a later term. The folder is taken when it
is empty, which a marker in it says from then on, and of what is below it only folders of fits go, with the
folders round them that are empty then.
"""

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from trainer.archive.identity import IDENTITY_FILE
from trainer.archive.storage.files import sync_directory
from trainer.archive.storage.local import probe_folder
from trainer.errors import CannotStartError

_MARKER = "foldin-fits"
_TERM = "term-"
# Of a term whose fits are being removed: its process finds them no more.
_GONE = ".gone"


class HostFits:
    """Fits below one folder. Blocking; raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: list[str] = []

    def prepare(self) -> None:
        """Make the folder. Raises `CannotStartError` where it may be of something else."""
        self._refuse_data()
        self.folder.mkdir(parents=True, exist_ok=True)
        # In this order: another trainer may do the same at this moment.
        empty, marker = not any(self.folder.iterdir()), self.folder / _MARKER
        if empty:
            marker.touch()
        elif not marker.is_file():
            raise CannotStartError(
                f"FOLDIN_FITS_DIR: {self.folder} has files, and no {_MARKER}, which says that they are fits: "
                "name another folder"
            )

    def probe(self) -> None:
        """See that fits can be written. Raises as `prepare`."""
        self.prepare()
        probe_folder(self.folder)

    def look(self) -> None:
        """Note whose fits are here, for `take`. To be called before the archive is taken: those of a term
        that takes it later come later.
        """
        terms = self.folder.glob(f"{_TERM}*")
        self._seen = [path.name for path in terms if path.is_dir() and not path.is_symlink()]

    def take(self, own: str, before: str, kept: Collection[str]) -> None:
        """Have the fits as this term, those included of `before`, who had the archive until now. Of any other
        that was here at `look` they go, and of epochs that are not `kept`.
        """
        self.prepare()
        path = self._of(own)
        if self._of(before).name in self._seen:
            # Gone where this is done again.
            with contextlib.suppress(FileNotFoundError):
                self._of(before).rename(path)
        path.mkdir(exist_ok=True)
        for name in self._seen:
            if name != path.name:
                self._remove_term(self.folder / name)
        for epoch in path.glob("epoch-*"):
            # What a discard that was cut off has left.
            if epoch.name not in kept:
                remove_fits(epoch)

    def of_epoch(self, term: str, name: str) -> Path:
        """Return the folder of an epoch, made. FileNotFoundError where this term has been replaced."""
        path = self._of(term) / name
        path.mkdir(exist_ok=True)
        return path

    def discard(self, term: str, name: str) -> None:
        """Remove the fits of an epoch. Raises nothing."""
        with contextlib.suppress(OSError):
            remove_fits(self._of(term) / name)

    def _of(self, term: str) -> Path:
        return self.folder / f"{_TERM}{term}"

    @staticmethod
    def _remove_term(path: Path) -> None:
        if not path.name.endswith(_GONE):
            try:
                path = path.rename(path.with_name(path.name + _GONE))
            except FileNotFoundError:
                return
        for epoch in path.glob("epoch-*"):
            remove_fits(epoch)
        with contextlib.suppress(OSError):
            path.rmdir()

    def _refuse_data(self) -> None:
        """Raise `CannotStartError` where an archive or a backup is here, above, or beside in the folder that
        the setting names.
        """
        own = Path(os.path.realpath(self.folder))
        beside = [path.parent for form in ("*", "*/*") for path in own.parent.glob(f"{form}/{IDENTITY_FILE}")]
        for folder in (own, *own.parents, *beside):
            ratings = [*folder.glob("epoch-*/*.parquet"), *(own.glob("*.parquet") if folder == own else ())]
            if ratings or (folder / IDENTITY_FILE).exists():
                raise CannotStartError(
                    f"FOLDIN_FITS_DIR: {folder} is an archive or a backup: name a folder of the fits' own"
                )


def remove_fits(epoch: Path) -> None:
    """Remove the fits of an epoch, and its folder if nothing else is in it. Raises OSError."""
    fits = epoch / "fits"
    if fits.is_symlink() or epoch.is_symlink():
        return
    if fits.exists():
        shutil.rmtree(fits)
        # A power cut would bring it back, with those who are erased from now on.
        sync_directory(epoch)
    with contextlib.suppress(OSError):
        epoch.rmdir()
