"""Commands that last show how far they are: where standard error is a terminal, and nothing of it elsewhere.
`foldin bench` never does with `--json`.
"""

import json
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes.blocking import plain_environment, python_command
from tests.support.stacks import Stack, stack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
BENCH = (
    *("bench", "batch", "--seconds", "0.2", "--rounds", "2"),
    *("--force", "--no-pin", "--scale", "0.01"),
)
BAR, DONE = "Measuring batch", re.compile(r"1/2\b")


@contextmanager
def terminal() -> Iterator[tuple[int, list[bytes]]]:
    """The end of a terminal that a command is given, and what was written on it, whole at the end."""
    ours, theirs = os.openpty()
    said: list[bytes] = []
    over = threading.Event()

    def read() -> None:
        while True:
            if select.select([ours], [], [], 0.1)[0]:
                said.append(os.read(ours, 65_536))
            elif over.is_set():
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, said
    finally:
        over.set()
        reader.join()
        os.close(theirs)
        os.close(ours)


def foldin(*arguments: str, folder: Path, out: int, errors: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python_command("foldin", *arguments),
        env=plain_environment(os.environ, {"TERM": "xterm", "COLUMNS": "110"}),
        cwd=folder,
        stdout=out,
        stderr=errors,
        text=True,
        timeout=450,
        check=False,
    )


@pytest.mark.parametrize("where", ["terminal", "json"])
def test_a_benchmark_shows_its_rounds(where: str, tmp_path: Path) -> None:
    told = *BENCH, "--output", str(tmp_path / "out")
    with terminal() as (theirs, said):
        if where == "terminal":
            done = foldin(*told, folder=tmp_path, out=theirs, errors=theirs)
        else:
            done = foldin(*told, "--json", folder=tmp_path, out=subprocess.PIPE, errors=theirs)
    text = b"".join(said).decode()
    assert done.returncode == 0, text
    # Its table is there whole, after the bar.
    assert "written to" in text
    assert (BAR in text) == (DONE.search(text) is not None) == (where == "terminal")
    if where == "json":
        assert json.loads(done.stdout)["benchmark"] == "batch"


def shown(arguments: Sequence[object], label: str, how_far: str, folder: Path) -> str:
    """Run a command whose standard error alone is a terminal: a bar there went so far, and what is said goes
    to standard output, which has none of the bar. Return that.
    """
    with terminal() as (theirs, said):
        done = foldin(*map(str, arguments), folder=folder, out=subprocess.PIPE, errors=theirs)
    # Without its colours.
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(said).decode())
    assert done.returncode == 0, done.stdout + text
    assert label in text
    assert re.search(how_far, text), text
    assert "\x1b" not in done.stdout
    assert "━" not in done.stdout
    return done.stdout


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path / "data", "--no-play") as up:
        yield up


def ratings_file(path: Path) -> Path:
    rows = [f"u{user},i{item},{1 + (user * item) % 5}" for user in range(40) for item in range(25)]
    path.write_text("\n".join(("user,item,rating", *rows)) + "\n", "utf-8")
    return path


# Done of all; of what is not known beforehand, done alone.
ALL, SOME = r"\b([1-9]\d*)/\1\b", r"\b1000/\?"


def test_what_moves_ratings_shows_how_far_it_is(running: Stack, tmp_path: Path) -> None:
    file, data = ratings_file(tmp_path / "ratings.csv"), running.data
    backup, out = tmp_path / "backup", tmp_path / "out.ndjson"
    said = shown(("import", file, "--data", data), "Importing", r"100%.*1,000 ratings", tmp_path)
    assert "1,000" in said
    wait_until(lambda: running.call("GET", "/status")["ratings"] == 1_000, "all is fitted")
    shown(("export", "ratings", "--output", out, "--data", data), "Exporting ratings", SOME, tmp_path)
    assert len(out.read_text("utf-8").splitlines()) == 1_000
    shown(("backup", backup, "--data", data), "Backing up", ALL, tmp_path)
    assert list(backup.rglob("*.parquet"))
    shown(("verify", "--data", data), "Comparing", ALL, tmp_path)
    now_s = int(time.time())
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    wait_until(lambda: time.time() > now_s + 1.5, "a moment that has passed")
    # Which the restore leaves out, so that it writes all else anew.
    running.call("POST", "/ratings", {"user_id": "late", "item_id": "i1", "rating": 1})
    shown(("restore", "--data", data, "--to", moment), "Restoring", r"\b1000/1000\b", tmp_path)
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(25)), "utf-8")
    shown(("import", items, "--items", "--data", data), "Importing items", r"\b25/25\b", tmp_path)


def test_an_evaluation_of_a_file_shows_which_engine_it_is_at(tmp_path: Path) -> None:
    file = ratings_file(tmp_path / "ratings.csv")
    told = ("evaluate", file, "--engines", "global-mean,bias", "--out", tmp_path / "out")
    said = shown(told, "global-mean", r"\b2/2\b", tmp_path)
    assert "summary.csv" in said


@pytest.mark.parametrize("where", ["terminal", "json"])
def test_an_evaluation_in_the_environment_shows_its_steps(where: str, tmp_path: Path) -> None:
    """Two players in two worlds, each for 300 steps."""
    told = "evaluate", "--players", "constant,bias", "--steps", "300", "--runs", "2", "--known", "100"
    said = shown(
        (*told, *(("--json",) if where == "json" else ())), "Playing, in steps", r"\b1200/1200\b", tmp_path
    )
    if where == "json":
        assert json.loads(said)["steps"] == 300
    else:
        assert said.count("step 300 of 300") == 4
