"""What the archive does with files, of which there are two kinds: those of a folder, and objects of an
S3-compatible store. Invariant: what is named is whole and durable, and only the leader that took the archive
last can name or unname anything.

A place is a `Path` or an `ObjectPath`, which answers the same questions; what `pathlib` has no word for is a
function here. So the archive is one, and says nothing of where it lies. How each step is done, in a folder,
and on an object store:

- List: the folder; the last commit, which names all files. Its leader has it in memory, others list
  `commits/`.
- Read whole, or a part: an open file; GET of the object that the commit names, or of ranges of it.
- Put a file, or replace it: beside, sync, rename, sync the folder; a create-only PUT of an object under a
  name that is never used again, then a commit that names it.
- Rename, move a folder, link, remove: the same call; a commit in which other names stand.
- Several of these: one after the other; one commit (`batch`).
- Append to the ledger: append, sync; the whole file anew, 32 bytes a user.
- Fence: a link that the next leader removes; commit N+1 is a create-only PUT (`If-None-Match: *`). Of two who
  go on from commit N one gets it, and each leader begins with a commit of its own, so that none before it
  ever gets one again.
- Lock of a backup's folder: `flock`; the same fence, and the later backup has it.
- Give room back: a file goes with its last reader; an object that has no name left goes after ten minutes, in
  which who reads it has read it, and after an erasure at once.

A commit is kept until 64 others have followed, the first of each leader for good: the number after a leader's
last one stays taken, however late that leader wakes up.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from trainer.archive.storage.address import ObjectAddress, ObjectCredentials
from trainer.archive.storage.client import ObjectClient
from trainer.archive.storage.local import FOLDERS, Files
from trainer.archive.storage.object_archive import ObjectArchive
from trainer.archive.storage.object_path import ObjectFiles, ObjectPath

if TYPE_CHECKING:
    # What the archive asks of a path an `ObjectPath` has. A protocol of both would be as long as either, and
    # in all that works on folders alone nothing would be known of paths.
    Location = Path
else:
    Location = Path | ObjectPath


def located(address: Path | ObjectAddress, credentials: ObjectCredentials) -> Location:
    """Return the place that an address names; nothing is asked there yet."""
    if isinstance(address, Path):
        return address
    return cast("Location", ObjectPath(ObjectArchive(ObjectClient(address, credentials))))


def on_objects(path: object) -> ObjectPath | None:
    """Return a place as one on an object store; None where it is in a folder."""
    return path if isinstance(path, ObjectPath) else None


def files_of(path: Location) -> Files:
    """Return what is done with files where this path lies."""
    place = on_objects(path)
    return FOLDERS if place is None else ObjectFiles(place.archive)


@contextlib.contextmanager
def whole_file(path: Location) -> Iterator[pa.NativeFile]:
    """Give what a file is written into, which is in place when the block has ended, durably, or not at all.
    Raises OSError.
    """
    staged = files_of(path).staged(path)
    try:
        with staged.open() as file:
            yield file
        staged.sync()
        staged.put_in_place()
        sync_directory(path.parent)
    except OSError:
        staged.discard()
        raise


def write_whole(path: Location, content: bytes) -> None:
    """Put a file in place, durable when this returns. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def sync_directory(path: Location) -> None:
    """Wait until the names in a folder are durable. Raises OSError."""
    files_of(path).sync_directory(path)
