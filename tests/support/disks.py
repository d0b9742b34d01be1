"""Small file systems for tests of full disks."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import missing


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path]:
    """A file system of its own at `folder`; skips where this user may not mount one, but in CI."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        missing(f"the right to mount a small file system ({exc})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave_free(disk: Path, free_mb: int) -> None:
    """Let `disk / "filler"` take up all but so much of a disk."""
    with (disk / "filler").open("ab") as file:
        room = os.statvfs(disk)
        size = file.tell() + room.f_bavail * room.f_frsize - free_mb * 2**20
        os.posix_fallocate(file.fileno(), 0, size)
