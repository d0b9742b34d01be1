"""The commands of recovery: what they take, where they work, what they say."""

import os
import subprocess
from pathlib import Path

import pytest

from foldin.preflight import locked
from foldin.recovery.sources import find_source
from foldin.settings import moment
from processes.errors import CannotStartError
from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.identity import write_identity
from trainer.fit_job.folder import FitFolder

LIVE = ("1" * 32, 2)


def test_times() -> None:
    for text in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "2026-01-02 04:04:05+01:00", "1767323045"):
        assert moment(text) == 1767323045.0
    for text in ("soon", "", "9999-01-01", "1e300", "nan", "inf", "-1", "2026-13-01"):
        with pytest.raises(ValueError, match="must be a time"):
            moment(text)


def epoch(folder: Path, number: int) -> Path:
    path = folder / f"epoch-{number:06d}"
    archive = EpochArchive(path, number, guard=free)
    archive.append(event_table(["u"], [1], [0], [3.0], stream_ms=[1]), {})
    FitFolder(path)
    return path


def test_which_history_of_a_folder(tmp_path: Path) -> None:
    wrongs = {"none": "there is no folder", "x" * 300: "cannot be read: File name too long", "": "no ratings"}
    for wrong, why in ((tmp_path / name, why) for name, why in wrongs.items()):
        with pytest.raises(CannotStartError, match=why):
            find_source(wrong, LIVE, "foldin")
    root = tmp_path / "foldin"
    root.mkdir()
    one = epoch(root, 1)
    for path in (one, root, tmp_path):
        assert find_source(path, LIVE, "foldin").folder == one
    two = epoch(root, 2)
    with pytest.raises(CannotStartError, match="several histories"):
        find_source(root, LIVE, "foldin")
    write_identity(root, LIVE[0])
    # Of its own archive the store can say which one is live.
    assert find_source(root, LIVE, "foldin").folder == two
    assert find_source(root, (LIVE[0], 1), "foldin").folder == one
    with pytest.raises(CannotStartError, match="several histories"):
        find_source(root, ("2" * 32, 1), "foldin")


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
