"""The loops of a fit are compiled by a process whose memory goes with it, and not again by the fit."""

import contextlib
import fcntl
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from factors import MANY_RATINGS, fit_code
from processes.blocking import BlockingChild, python_command
from tests.support.waiting import wait_until
from trainer.fit_job import compiling
from trainer.fit_job.compiling import compile_ahead, compile_apart

pytestmark = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `fast`)")

PYTHON = f"py{sys.version_info[0]}{sys.version_info[1]}"
# As a fit of many ratings does it, of so few that it ends soon.
FIT = """
import sys
from pathlib import Path
import numpy as np
from factors import MANY_RATINGS, FitSettings, Ratings, Scale, fit, fit_code
from factors.inference.compiled.backend import LoopBackend, load_loops
from factors.training import fit as fitting
from trainer.fit_job.compiling import compile_apart

assert fit_code.is_missing()
compile_apart(MANY_RATINGS)
assert not fit_code.is_missing()
folder = Path(sys.argv[1])
before = {path.name for path in folder.rglob("*.nb?")}
fitting.choose_backend = lambda n, **how: LoopBackend(load_loops())
rng = np.random.default_rng(0)
pair = rng.choice(200 * 100, 6_000, replace=False)
user, item = pair.astype(np.int32) // 100, pair.astype(np.int32) % 100
users, items = rng.normal(size=(200, 2)), rng.normal(size=(100, 2))
value = np.clip(np.rint(3.0 + np.sum(users[user] * items[item], axis=1)), 1.0, 5.0)
ratings = Ratings(user, item, value, rng.uniform(1e9, 1.1e9, len(pair)))
fitted = fit(ratings, 200, 100, settings=FitSettings(Scale(1.0, 5.0, 1.0), sweeps=4), rng=rng)
assert fitted.model.link == "ordinal"
compiled = {path.name for path in folder.rglob("*.nb?")} - before
assert not compiled, compiled
"""


@pytest.mark.timeout(900)
def test_a_fit_finds_its_loops_compiled_by_another_process(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = (sys.executable, "-c", FIT, str(tmp_path))
    with BlockingChild(command, tmp_path / "log", environment=environment) as child:
        assert child.wait(800) == 0, child.text


def test_only_a_fit_of_many_ratings_has_loops_compiled_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "BlockingChild", lambda *_: pytest.fail("a process was started"))
    monkeypatch.setattr(fit_code, "is_missing", lambda: pytest.fail("numba was wanted"))
    compile_apart(MANY_RATINGS - 1)
    monkeypatch.setattr(fit_code, "is_missing", lambda: False)
    compile_apart(MANY_RATINGS)


def test_a_fit_whose_loops_cannot_be_compiled_apart_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit_code, "is_missing", lambda: True)
    monkeypatch.setattr(compiling, "python_command", lambda module: [sys.executable, "-c", "exit(7)"])
    compile_apart(MANY_RATINGS)
    assert caplog.text.count("loops_not_compiled_apart exit_code=7") == 1
    monkeypatch.setattr(compiling, "python_command", lambda module: ["/nowhere"])
    compile_apart(MANY_RATINGS)
    assert caplog.text.count("loops_not_compiled_apart") == 2


def kept(folder: Path) -> list[Path]:
    """Put an empty file where numba keeps each of the loops, below `folder`."""
    found = []
    for loop in fit_code.ALWAYS:
        source, code = Path(loop.__code__.co_filename), loop.__code__
        path = fit_code.folder_of(loop) / f"{source.stem}.{code.co_name}-{code.co_firstlineno}.{PYTHON}.nbi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        found.append(path)
    assert all(path.is_relative_to(folder) for path in found)
    return found


def test_one_process_compiles_and_the_next_finds_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba import config

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    folder = fit_code.folder_of(fit_code.ALWAYS[0])
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    with (folder / "compiling.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = python_command("trainer.fit_job.compiling")
        with BlockingChild(command, tmp_path / "log", environment=environment) as child:

            def waits() -> bool:
                # Files are closed while this looks at them.
                with contextlib.suppress(OSError):
                    opened = Path(f"/proc/{child.pid}/fd").iterdir()
                    return any(each.readlink().name == "compiling.lock" for each in opened)
                return False

            wait_until(waits, "it waits for the one that compiles")
            made = kept(tmp_path)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert child.wait(60) == 0, child.text
    assert [path.stat().st_size for path in made] == [0] * len(fit_code.ALWAYS)


async def test_loops_are_compiled_once_so_many_events_are_archived_that_a_fit_may_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archived, ran = iter([0, MANY_RATINGS // 100, MANY_RATINGS // 8]), tmp_path / "ran"
    script = f"import pathlib; pathlib.Path({str(ran)!r}).touch()"
    monkeypatch.setattr(compiling, "python_command", lambda module: [sys.executable, "-c", script])
    monkeypatch.setattr(compiling, "_LOOK_S", 0.01)
    await compile_ahead(lambda: next(archived))
    assert ran.exists()
    assert not list(archived)
    assert caplog.text == ""
    for script, why in (
        ("raise OSError('disk full')", 'exit_code=1 why="OSError: disk full"'),
        ("import time; time.sleep(60)", 'why="not done after 1 s"'),
    ):
        monkeypatch.setattr(compiling, "_LONGEST_S", 60.0 if "disk" in script else 1.0)
        monkeypatch.setattr(
            compiling, "python_command", lambda module, script=script: [sys.executable, "-c", script]
        )
        await compile_ahead(lambda: MANY_RATINGS)
        assert f"loops_not_compiled_apart {why}" in caplog.text
    monkeypatch.setattr(compiling, "python_command", lambda module: ["/nowhere"])
    await compile_ahead(lambda: MANY_RATINGS)
    assert caplog.text.count("loops_not_compiled_apart") == 3


def test_loops_are_missing_where_those_kept_are_older_than_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba import config

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    assert fit_code.is_missing()
    made = kept(tmp_path)
    assert not fit_code.is_missing()
    # For another Python they are of no use.
    for path in made:
        path.rename(path.with_name(path.name.replace(PYTHON, "py27")))
    assert fit_code.is_missing()
    kept(tmp_path)
    old = Path(fit_code.ALWAYS[0].__code__.co_filename).stat().st_mtime - 1.0
    for index in fit_code.folder_of(fit_code.ALWAYS[0]).glob("*.nbi"):
        os.utime(index, (old, old))
    assert fit_code.is_missing()


def test_nothing_is_missing_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(_loop: object) -> Path:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(fit_code, "folder_of", nowhere)
    assert not fit_code.is_missing()
