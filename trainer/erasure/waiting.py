"""What an erasure waits for, as its receipt says it. Invariant: the words name no file, key, user or item."""

from trainer.errors import ArchiveFailedError, SegmentUnreadError

ARCHIVED = "what came before it is written to the archive first"
REPLACED = "a history that was replaced is archived to its end first"
FILE = (
    "a file of the archive or its trash cannot be read, and may have it: the operator has to mend its disk, "
    "or move it away"
)
ARCHIVE = "the archive cannot be read or written just now: the operator sees why in the log of the trainer"
STORED = "something in the store is damaged or refused: the operator sees what in the log of the trainer"
FIT = "a fit that runs may have it: its files are cleaned at its end"
FILES = "the files of the store have it until they are written anew"
FILES_BUSY = f"{FILES}, which begins when what the store writes just now is done"
FILES_ROOM = f"{FILES}, for which its disk has no room"
FILES_REFUSED = f"{FILES}, which the store refuses: the operator has to start it"
STREAMS = f"{FILES}; before that the trainer has to catch up with what comes in"


def words_of(exc: Exception) -> str:
    """Return why an erasure that met this error is tried again."""
    if isinstance(exc, SegmentUnreadError):
        return FILE
    return ARCHIVE if isinstance(exc, ArchiveFailedError) else STORED
