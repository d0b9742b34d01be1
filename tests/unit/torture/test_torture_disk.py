"""The disk that can fail: what a power cut leaves of what a process wrote, synced, renamed, removed."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import missing
from torture.disk import Disk

WRITER = """
import os, sys
root = sys.argv[1]

def sync(path):
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)

def write(name, data, flags=os.O_CREAT | os.O_WRONLY):
    file = os.open(f"{root}/{name}", flags)
    os.write(file, data)
    return file
"""
# What a process does, and what is left of it beside `old`.
LEFT = {
    "os.fsync(write('new', b'new')); sync(root)": {"new": b"new"},
    "os.fsync(write('nameless', b'x')); os.mkdir(f'{root}/folder'); write('folder/lost', b'x')": {},
    "os.makedirs(f'{root}/one/two'); os.fsync(write('one/two/new', b'new')); sync(f'{root}/one/two')": {
        "one/two/new": b"new"
    },
    "os.fsync(write('part', b'new')); sync(root); os.rename(f'{root}/part', f'{root}/old')": {"part": b"new"},
    "file = write('log', b'one two', os.O_CREAT | os.O_WRONLY | os.O_APPEND); os.fsync(file); sync(root); "
    "os.truncate(f'{root}/log', 4); os.write(file, b'three'); os.fsync(file)": {"log": b"one three"},
}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    if shutil.which("cc") is None:
        missing("a C compiler")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "old").write_bytes(b"old")
    (tmp_path / "beside").mkdir()
    return Disk(tmp_path / "root", tmp_path / "beside")


def run(disk: Disk, code: str) -> str:
    """What a process on the disk prints."""
    command = [sys.executable, "-c", WRITER + code, str(disk.root)]
    environment = {**os.environ, **disk.environment("writer")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("code", "left"), LEFT.items())
def test_a_power_cut_leaves_what_was_synced(code: str, left: dict[str, bytes], disk: Disk) -> None:
    run(disk, code)
    disk.cut(random.Random(1))
    files = [path for path in disk.root.rglob("*") if path.is_file()]
    assert {str(path.relative_to(disk.root)): path.read_bytes() for path in files} == {"old": b"old", **left}


@pytest.mark.slow
def test_a_full_disk_takes_nothing_and_says_so(disk: Disk) -> None:
    code = """
try:
    write('new', b'new')
except OSError as exc:
    print(exc.errno, os.statvfs(root).f_bavail)
"""
    disk.environment("writer")
    for full in (True, False):
        disk.set_full("writer", full)
        assert run(disk, code) == ("28 0\n" if full else "")
