"""What keeps a stack from starting is found before anything starts, and said in one line."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldin.preflight import locked
from processes.errors import CannotStartError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB. Needs root, and a kernel that lets it mount."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "foldin-test", str(place)]
    if (
        os.geteuid() != 0
        or subprocess.run(mount, capture_output=True, timeout=30, check=False).returncode != 0
    ):
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], timeout=30, check=True)


def test_a_directory_belongs_to_one_stack(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(CannotStartError, match=rf"process {os.getpid()}"), locked(tmp_path):
            pass
        # Also without its file.
        (tmp_path / "lock").unlink()
        with pytest.raises(CannotStartError, match="in use"), locked(tmp_path, orphans_gone_s=0.1):
            pass
    (tmp_path / "lock").unlink(missing_ok=True)
    (tmp_path / "lock").mkdir()
    with pytest.raises(CannotStartError, match=r"lock cannot be opened .*--data"), locked(tmp_path):
        pass


def test_a_directory_whose_parts_do_not_end_stays_locked(tmp_path: Path) -> None:
    """The supervisor is gone, a part still holds the descriptor."""
    with locked(tmp_path) as lock:
        part = subprocess.Popen(["sleep", "30"], pass_fds=lock)
    (tmp_path / "lock").write_text("999999999\n")
    try:
        with (
            pytest.raises(CannotStartError, match="in use by another stack"),
            locked(tmp_path, orphans_gone_s=0.1),
        ):
            pass
    finally:
        part.kill()
        part.wait()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
