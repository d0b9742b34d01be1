"""The code of the last release, from the history of this checkout."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from tests.support.servers import missing

ROOT = Path(__file__).resolve().parents[2]
# Version and commit. A file, because a clone of CI has no tags.
NAMED = ROOT / "tests/upgrade/last-release"


class Release(NamedTuple):
    """A release by its version and its commit."""

    version: str
    commit: str


def last_release() -> Release:
    """What the one before this code was."""
    return Release(*NAMED.read_text("ascii").split())


def checkout_of(release: Release, folder: Path) -> Path:
    """Put the code of a release into `folder`; skip where the history does not have it."""
    if _git("rev-parse", "--is-shallow-repository").strip() != b"false":
        missing("the history of the repository (the clone is shallow)")
    try:
        archive = _git("archive", "--format=tar", release.commit)
    except subprocess.CalledProcessError:
        missing(f"commit {release.commit} of release {release.version}")
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout
    except FileNotFoundError:
        missing("git")
