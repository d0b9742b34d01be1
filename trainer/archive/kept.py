"""What the store keeps besides ratings, as a file beside the epochs. Invariant: it is there whole or not at
all, and one of a format that this version does not know is never replaced.

It has no attributes of users: they would have to leave it before a receipt says that a user is erased, so
that each erasure would write all of a catalogue anew. A backup has them.
"""

from pathlib import Path

from featurestore.catalogue.dump import Dump, DumpUnreadable, dump_from_bytes, version_of_dump
from trainer.archive.files import write_whole
from trainer.errors import ArchiveFailedError

NAME = "kept.json.gz"


def write_kept(root: Path, data: bytes) -> None:
    """Put the file in place, on disk when this returns. Raises OSError."""
    write_whole(root / NAME, data)


def read_kept(folder: Path) -> Dump | None:
    """Return what the file in a folder has; None where there is none. Raises `ArchiveFailedError`."""
    path = folder / NAME
    try:
        return dump_from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DumpUnreadable) as exc:
        raise ArchiveFailedError(f"{path} is damaged ({exc})") from exc


def kept_version(folder: Path) -> str:
    """Return of which version the file is; "" where there is none, or it cannot be read. Raises
    `ArchiveFailedError` for another format.
    """
    path = folder / NAME
    try:
        return version_of_dump(path.read_bytes())
    except OSError:
        return ""
    except DumpUnreadable as exc:
        raise ArchiveFailedError(f"{path} is left as it is: {exc}") from exc
