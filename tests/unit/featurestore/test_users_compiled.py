"""Where the compiled fold-in of a worker comes from, and that none is better than a wrong one."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factors import fold_in_code
from factors.inference.compiled import history
from featurestore.users import compiled


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the package, in a process that has loaded nothing; what is loaded are the bytes."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(compiled, "HOME", folder)
    monkeypatch.setattr(history.LOADED, "loop", None)
    monkeypatch.setattr(fold_in_code, "fingerprint", lambda: "x")
    monkeypatch.setattr(fold_in_code, "load_code", lambda code: code)
    return folder


def child_that(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    command: Callable[..., list[str]] = lambda _, path: [sys.executable, "-c", script, path]  # noqa: E731
    monkeypatch.setattr(compiled, "python_command", command)


WRITES = f"""import sys, pathlib
path = pathlib.Path(sys.argv[1])
path.unlink(missing_ok=True)
path.write_bytes({fold_in_code.sealed(b"made")!r})"""


def keep(path: Path, kept: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(kept)
    path.chmod(mode)


async def test_only_sound_code_is_loaded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that(monkeypatch, WRITES)
    # What others could have written and what is damaged is not loaded.
    for damage, mode, loaded in ((b"", 0o644, b"code"), (b"", 0o666, b"made"), (b"more", 0o644, b"made")):
        keep(home / "fold-in-x.o", fold_in_code.sealed(b"code") + damage, mode)
        history.LOADED.loop = None
        await compiled.load_fold_in(tmp_path)
        assert history.LOADED.loop == loaded


async def test_numpy_folds_in_where_it_cannot_be_had(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child_that(monkeypatch, "raise SystemExit('no memory')")
    await compiled.load_fold_in(tmp_path)
    assert history.LOADED.loop is None
    assert "no memory" in caplog.text
    await asyncio.to_thread(home.chmod, 0o777)
    await compiled.load_fold_in(tmp_path / "not there")
    assert history.LOADED.loop is None
