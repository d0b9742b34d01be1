"""The loops of a fit are compiled by a process whose memory goes with it, and not again by the fit."""

import sys
from pathlib import Path

import pytest

from factors import MANY_RATINGS
from trainer.fit_job import compiling
from trainer.fit_job.compiling import compile_ahead


async def test_loops_are_compiled_once_so_many_events_are_archived_that_a_fit_may_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archived, ran = iter([0, MANY_RATINGS // 100, MANY_RATINGS // 2]), tmp_path / "ran"
    script = f"import pathlib; pathlib.Path({str(ran)!r}).touch()"
    monkeypatch.setattr(compiling, "python_command", lambda module: [sys.executable, "-c", script])
    monkeypatch.setattr(compiling, "_LOOK_S", 0.01)
    await compile_ahead(lambda: next(archived))
    assert ran.exists()
    assert not list(archived)
    assert caplog.text == ""
    monkeypatch.setattr(compiling, "python_command", lambda module: [sys.executable, "-c", "exit(1)"])
    await compile_ahead(lambda: MANY_RATINGS)
    assert "loops_not_compiled_apart exit_code=1" in caplog.text
