"""The errors of the trainer, split by what the caller should do."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from processes.errors import DATA_REFUSED


class Named(Protocol):
    """A file."""

    @property
    def name(self) -> str:
        """Its name in its folder."""


class TrainerError(Exception):
    """Anything that this package raises on purpose."""


class CannotStartError(TrainerError):
    """A person must change something; the message is the one line that says what. Exit code 2."""


class ArchiveRefusedError(CannotStartError):
    """The archive is not the store's, or newer than this version: a person decides, nothing is touched."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{DATA_REFUSED}: {why}")
        self.why = why


def other_format(path: object, found: object, known: int) -> ArchiveRefusedError:
    """Return the error of a file that another version has written."""
    return ArchiveRefusedError(
        f"{path} has format {found}, this version reads {known}: use the version that wrote it"
    )


class ArchiveWaitsError(TrainerError):
    """The archive cannot be opened for now, as its disk is full: wait and try again."""


class ArchiveFailedError(TrainerError):
    """The archive cannot be read or written (disk full or failing, read-only, no permission, no memory):
    nothing was committed or set aside, try again later.
    """


@contextlib.contextmanager
def archive_errors(doing: str) -> Iterator[None]:
    """Raise an OSError of the block as `ArchiveFailedError`: what could not be done, and why."""
    try:
        yield
    except OSError as exc:
        raise ArchiveFailedError(f"cannot {doing}: {exc.strerror or exc}") from exc


class SegmentUnreadError(ArchiveFailedError):
    """The disk, and nothing in this process, was in the way of reading a segment."""

    REMEDY = (
        "mend or mount its disk, and it goes on by itself; or move the file away: of the live history it is "
        "set aside after ten minutes, and the archive is made anew from the store"
    )

    def __init__(self, path: Named, why: str) -> None:
        super().__init__(f"cannot read {path}: {why}")
        self.path = path


class Failures:
    """Goes on past what cannot be read or written, `with` it round each part; `throw` tells of the first."""

    def __init__(self) -> None:
        self._first: ArchiveFailedError | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, exc: BaseException | None, _traceback: object) -> bool:
        if not isinstance(exc, ArchiveFailedError):
            return False
        self._first = self._first or exc
        return True

    def throw(self) -> None:
        """Raise the first `ArchiveFailedError`, if there was any."""
        if self._first is not None:
            raise self._first


class SegmentDamagedError(TrainerError):
    """A segment was read, and does not have what was written into it: set it aside, rebuild from the store's
    histories.
    """

    def __init__(self, path: Named, why: str) -> None:
        super().__init__(f"{path.name}: {why}")
        self.path = path
        self.why = why


class LedgerDamagedError(TrainerError):
    """A file of the ledger of erasures does not have what was written into it."""

    def __init__(self, path: Named) -> None:
        super().__init__(f"{path} is damaged")
        self.path = path


class SegmentGoneError(TrainerError):
    """A segment of the snapshot was merged or rewritten meanwhile: take a new snapshot."""


class FitFailedError(TrainerError):
    """A fit gave no result. `permanent` where the same ratings will fail again; the live generation stays.
    `damaged`, `unread`: the segment that was in the way.
    """

    def __init__(
        self,
        why: str,
        *,
        permanent: bool = False,
        damaged: Named | None = None,
        unread: Named | None = None,
    ) -> None:
        super().__init__(why)
        self.why = why
        self.permanent = permanent
        self.damaged = damaged
        self.unread = unread


class GateRefusedError(TrainerError):
    """The gate refused a fit; the generation before stays."""


class NoRoomError(TrainerError):
    """The store has no room for another generation; the live one stays. Try again later."""


class GaveWayError(TrainerError):
    """An automatic fit was ended for one that was requested; nothing is wrong."""


class NothingNewError(TrainerError):
    """All that was archived says again what the live fit has learned; nothing is wrong. `events`: how many
    are archived.
    """

    def __init__(self, events: int = 0) -> None:
        super().__init__("the live fit has learned it all")
        self.events = events
