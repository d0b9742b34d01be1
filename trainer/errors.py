"""The errors of the trainer, split by what the caller should do."""

from pathlib import Path

from processes.errors import DATA_REFUSED


class TrainerError(Exception):
    """Anything that this package raises on purpose."""


class CannotStartError(TrainerError):
    """A person must change something; the message is the one line that says what. Exit code 2."""


class ArchiveRefusedError(CannotStartError):
    """The archive is not the store's, or newer than this version: a person decides, nothing is touched."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{DATA_REFUSED}: {why}")
        self.why = why


class ArchiveFullError(TrainerError):
    """The disk of the archive is full: wait and try again."""


class ArchiveFailedError(TrainerError):
    """The archive cannot be written (disk full, read-only, no permission): nothing was committed, try again
    later.
    """


class SegmentDamagedError(TrainerError):
    """A segment does not have what was written into it: set it aside, rebuild from the store's histories."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path.name}: {why}")
        self.path = path
        self.why = why


class LedgerDamagedError(TrainerError):
    """A file of the ledger of erasures does not have what was written into it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is damaged")
        self.path = path


class SegmentGoneError(TrainerError):
    """A segment of the snapshot was merged or rewritten meanwhile: take a new snapshot."""


class FitFailedError(TrainerError):
    """A fit gave no result. `permanent` where the same ratings will fail again; the live generation stays."""

    def __init__(self, why: str, *, permanent: bool = False, damaged: Path | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.permanent = permanent
        self.damaged = damaged


class GateRefusedError(TrainerError):
    """The gate refused a fit; the generation before stays."""


class NoRoomError(TrainerError):
    """The store has no room for another generation; the live one stays. Try again later."""


class GaveWayError(TrainerError):
    """An automatic fit was ended for one that was requested; nothing is wrong."""
