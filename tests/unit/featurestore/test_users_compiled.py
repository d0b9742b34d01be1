"""Where the compiled fold-in of a worker comes from, and that none is better than a wrong one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factors import fold_in_code
from factors.inference.compiled import history
from featurestore.users import compiled

NAME = "fold-in-x.o"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the package, in a process that has loaded nothing; what is loaded are the bytes."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(compiled, "HOME", folder)
    monkeypatch.setattr(history.LOADED, "loop", None)
    for name, found in (("can_run", True), ("can_compile", True), ("fingerprint", "x")):
        monkeypatch.setattr(fold_in_code, name, lambda found=found: found)
    monkeypatch.setattr(fold_in_code, "load_code", lambda code: code)
    return folder


def child_that(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What is run instead of the compiler; `PATH` is where it is to write."""
    command: Callable[..., list[str]] = lambda _, path: [sys.executable, "-c", script, path]  # noqa: E731
    monkeypatch.setattr(compiled, "python_command", command)


WRITES = f"import sys, pathlib; pathlib.Path(sys.argv[1]).write_bytes({fold_in_code.sealed(b'made')!r})"


def loaded() -> object:
    """What this process folds in with."""
    return history.LOADED.loop


def open_to_all(folder: Path) -> None:
    """Let every user write there."""
    folder.chmod(0o777)


def keep(path: Path, kept: bytes, mode: int = 0o644) -> None:
    path.write_bytes(kept)
    path.chmod(mode)


async def test_what_is_kept_is_loaded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that(monkeypatch, "raise SystemExit('not wanted')")
    keep(home / NAME, fold_in_code.sealed(b"code"))
    await compiled.load_fold_in(tmp_path)
    assert loaded() == b"code"


@pytest.mark.parametrize(("damage", "mode"), [(b"", 0o666), (b"more", 0o644)])
async def test_what_others_could_have_written_or_is_damaged_is_made_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes, mode: int
) -> None:
    child_that(
        monkeypatch, f"import os, sys; os.path.exists(sys.argv[1]) and os.unlink(sys.argv[1]); {WRITES}"
    )
    keep(home / NAME, fold_in_code.sealed(b"code") + damage, mode)
    await compiled.load_fold_in(tmp_path)
    assert loaded() == b"made"


async def test_numpy_folds_in_where_it_cannot_be_had(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child_that(monkeypatch, "raise SystemExit('no memory')")
    await compiled.load_fold_in(tmp_path)
    assert loaded() is None
    assert "no memory" in caplog.text
    open_to_all(home)
    await compiled.load_fold_in(tmp_path / "not there")
    assert loaded() is None
