"""Keep all trainers but one out of an archive. Invariant: of all that ever led with it, only the one that
took it last can change anything in it.

A leader reaches it by a name of its own, a symbolic link beside it, and the next leader removes
that name. The kernel looks the name up in each call, so that one which comes later, by a process that was
frozen between any two, finds nothing. A leader that was replaced leaves the folder as one that was killed
does, and no file needs a mark of whose it is. So the archive asks of a share of another machine that a
rename and a link are one step which all hosts see, that `fsync` of a file and of a folder keep them, and that
a name is looked up anew in each call: a client of NFS remembers names for a minute unless it is told not to.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from trainer import log
from trainer.archive.files import probe_folder
from trainer.errors import archive_errors

# Between the folder's name and that of a term. No namespace has a dot.
_TERM = ".term-"

_FENCE = "a trainer that was replaced may go on writing for as long"
_NFS = re.compile(r"nfs4?")
# These say of no name how long they remember it.
_OTHERS = re.compile(r"cifs|smb3?|fuse\.(?:sshfs|glusterfs|s3fs|rclone|mergerfs)|9p|virtiofs|afs|ceph")

Step = Callable[[str], None]


class FolderFence:
    """Keeps others out of one archive by links. Every method raises OSError."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root

    @property
    def path(self) -> Path:
        """By which name this process reaches the archive."""
        return self._path

    @property
    def taken_away(self) -> bool:
        """Whether another leader has taken the archive since this term did."""
        return not self._path.exists()

    def probe(self) -> None:
        """See that the archive can be written, and that what it rests on holds there. Raises
        `ArchiveRefusedError` where it does not.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        # Before this trainer takes the lease from another host.
        probe_folder(self._root)
        if (problem := share_problem(self._root)) is not None:
            log.warning("archive_share", folder=str(self._root), problem=problem)

    def claim(self, term: str) -> list[Path]:
        """Return what this term finds, the names of others, which is for `take` once the store has said that
        no other leads.
        """
        own = self._root.with_name(f"{self._root.name}{_TERM}{term}")
        with archive_errors(f"make the link {own}"), contextlib.suppress(FileExistsError):
            own.symlink_to(self._root.name)
        self._path = own
        # After the link is there: of two that claim it at once, the later one finds the other.
        names = self._root.parent.glob(f"{self._root.name}{_TERM}*")
        return [path for path in names if path != own and path.is_symlink()]

    def take(self, found: list[Path], step: Step) -> None:
        """Keep out what wrote before: what the processes of these names do from now on fails."""
        for path in found:
            step("archive:take")
            path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Give the archive up, once nothing of this term is under way."""
        if self._path != self._root:
            # It may have been taken; one that stays is removed by the next leader.
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = self._root


def share_problem(folder: Path) -> str | None:
    """Return what is wrong with how the share of a folder is mounted; None where nothing is known to be, as
    of a file system that is not known.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
        return problem_in(mounts, str(folder.resolve()))
    except OSError:
        # Not a system that tells.
        return None


def problem_in(mounts: str, folder: str) -> str | None:
    """Return the problem of the mount that a folder is on. `mounts`: lines as `/proc/self/mountinfo` has
    them.
    """
    found = ("", "", "")
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if len(before) < 6 or len(after) < 3:
            continue
        place = re.sub(r"\\(\d{3})", lambda code: chr(int(code.group(1), 8)), before[4])
        inside = folder == place or folder.startswith(place.rstrip("/") + "/")
        # The last one of a place covers those before it.
        if inside and len(place) >= len(found[0]):
            found = place, after[0], f"{before[5]},{after[2]}"
    place, kind, told = found
    options = set(told.split(","))
    if _NFS.fullmatch(kind):
        exact = "lookupcache=none" in options or "noac" in options
        if not exact:
            return f"{place} is mounted without lookupcache=none, so that {_FENCE}: mount it with that"
        if "soft" in options or "softerr" in options:
            return f"{place} is mounted soft, so that a write may be lost unseen: mount it hard"
        return None
    if _OTHERS.fullmatch(kind):
        return f"{place} is {kind}, of which it is not known whether names are looked up anew: {_FENCE}"
    return None
