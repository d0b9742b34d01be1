"""Whether a folder is on a share of another machine, and mounted so that links keep late writers out there.
Invariant: nothing is said of a file system that is not known.

The archive asks of a file system that a rename and a link are one step which all hosts see, that `fsync` of
a file and of a folder keep them, and that a name is looked up anew in each call: the fence rests on the last
one, and a client of NFS remembers names for a minute unless it is told not to.
"""

import re
from pathlib import Path

_FENCE = "a trainer that was replaced may go on writing for as long"
_NFS = re.compile(r"nfs4?")
# These say of no name how long they remember it.
_OTHERS = re.compile(r"cifs|smb3?|fuse\.(?:sshfs|glusterfs|s3fs|rclone|mergerfs)|9p|virtiofs|afs|ceph")


def share_problem(folder: Path) -> str | None:
    """Return what is wrong with how the share of a folder is mounted; None where nothing is known to be."""
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
