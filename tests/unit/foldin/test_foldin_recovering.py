"""The commands of recovery: what they take, where they work, what they say."""

import json
import os
from pathlib import Path

import pytest

from foldin.preflight import locked
from foldin.recovering import listed, run_undo
from foldin.recovery.errors import RecoveryRefusedError
from foldin.recovery.place import find_place
from foldin.recovery.sources import find_source
from foldin.settings import FrontDoorSettings, UndoOptions, moment
from processes.errors import CannotStartError
from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.identity import write_identity
from trainer.archive.root import ArchiveRoot
from trainer.fit_job.folder import FitFolder

LIVE = ("1" * 32, 2)


def front_door(folder: Path, **inherited: str) -> FrontDoorSettings:
    return FrontDoorSettings(inherited.get("FOLDIN_REDIS_URL"), folder / "state", False, inherited)


def test_times() -> None:
    for text, seconds in (
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05", 1767323045.0),
        ("2026-01-02 04:04:05+01:00", 1767323045.0),
        ("1767323045.5", 1767323045.5),
    ):
        assert moment(text) == seconds
    for text in ("soon", "", "9999-01-01", "1e300", "nan", "inf", "-1", "2026-13-01"):
        with pytest.raises(ValueError, match="must be a time"):
            moment(text)


def test_the_stack_of_a_directory_then_the_environment(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(CannotStartError, match="no stack runs on"):
        find_place(data, front_door(tmp_path))
    store = {"FOLDIN_REDIS_URL": "redis://one:1", "FOLDIN_NAMESPACE": "mine"}
    (data / "stack.json").write_text(json.dumps({"pid": os.getpid(), "store": store}))
    with locked(data):
        found = find_place(data, front_door(tmp_path, FOLDIN_REDIS_URL="redis://two:2"))
    assert (found.store.url, found.archive_folder) == ("redis://one:1", data / "archive" / "mine")


def test_neither_a_stack_nor_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotStartError, match="FOLDIN_REDIS_URL"):
        find_place(None, front_door(tmp_path))
    here = {"FOLDIN_REDIS_URL": "redis://two:2", "FOLDIN_ARCHIVE_DIR": "there"}
    found = find_place(None, front_door(tmp_path, **here))
    assert (found.store.url, found.archive_folder) == ("redis://two:2", Path("there/foldin"))


def trashed(archive: Path) -> None:
    root = ArchiveRoot(archive / "foldin", guard=free)
    root.epoch(3).append(event_table(["u", "v"], [1, 1], [0, 0], [3.0, 3.0], stream_ms=[1, 2]), {})
    root.discard(3, "replaced")


def test_the_trash_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = {"FOLDIN_REDIS_URL": "redis://nowhere:1", "FOLDIN_ARCHIVE_DIR": str(tmp_path)}
    assert run_undo(UndoOptions(data=None), front_door(tmp_path, **here)) == 0
    assert capsys.readouterr().out == "The trash is empty.\n" == listed([])[0] + "\n"
    trashed(tmp_path)
    assert run_undo(UndoOptions(), front_door(tmp_path, **here)) == 0
    line = capsys.readouterr().out
    assert line.startswith("epoch-000003.")
    assert "replaced" in line
    assert "2 ratings of 2 users" in line
    with pytest.raises(RecoveryRefusedError, match="no entry epoch-9"):
        run_undo(UndoOptions("epoch-9"), front_door(tmp_path, **here))


def epoch(folder: Path, number: int) -> Path:
    path = folder / f"epoch-{number:06d}"
    archive = EpochArchive(path, number, guard=free)
    archive.append(event_table(["u"], [1], [0], [3.0], stream_ms=[1]), {})
    FitFolder(path)
    return path


def test_a_backup_without_a_manifest_that_can_be_read_is_not_taken_for_an_archive(tmp_path: Path) -> None:
    folder = epoch(tmp_path, 1)
    (folder / "fits").rmdir()
    for content in (None, "", "{}", "[]", '{"format": 1}', '{"format": 1, "files": 3}'):
        if content is not None:
            (folder / "manifest.json").write_text(content)
        why = r"no manifest\.json" if content is None else r"manifest\.json cannot be read"
        for path in (folder, tmp_path):
            with pytest.raises(RecoveryRefusedError, match=f"{why}.*--skip-damaged"):
                find_source(path, LIVE, "foldin")
            assert find_source(path, LIVE, "foldin", skip_damaged=True).folder == folder
    # A newer one is refused in any case.
    (folder / "manifest.json").write_text('{"format": 2}')
    for skip_damaged in (False, True):
        with pytest.raises(RecoveryRefusedError, match=r"manifest\.json has format 2"):
            find_source(folder, LIVE, "foldin", skip_damaged=skip_damaged)


def test_which_history_of_a_folder(tmp_path: Path) -> None:
    wrongs = {"none": "there is no folder", "x" * 300: "cannot be read: File name too long", "": "no ratings"}
    for wrong, why in ((tmp_path / name, why) for name, why in wrongs.items()):
        with pytest.raises(RecoveryRefusedError, match=why):
            find_source(wrong, LIVE, "foldin")
    root = tmp_path / "foldin"
    root.mkdir()
    one = epoch(root, 1)
    for path in (one, root, tmp_path):
        assert find_source(path, LIVE, "foldin").folder == one
    two = epoch(root, 2)
    with pytest.raises(RecoveryRefusedError, match="several histories"):
        find_source(root, LIVE, "foldin")
    write_identity(root, LIVE[0])
    # Of its own archive the store can say which one is live.
    assert find_source(root, LIVE, "foldin").folder == two
    assert find_source(root, (LIVE[0], 1), "foldin").folder == one
    with pytest.raises(RecoveryRefusedError, match="several histories"):
        find_source(root, ("2" * 32, 1), "foldin")
