"""The disk that can fail: what a power cut leaves of what processes wrote, synced, renamed, removed."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from foldin.store import EmbeddedStore
from processes.blocking import BlockingChild
from processes.probes import unused_port
from torture.disk import Disk
from torture.proxy import Proxy

pytestmark = pytest.mark.slow


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


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "old").write_bytes(b"old")
    (tmp_path / "beside").mkdir()
    return Disk(tmp_path / "root", tmp_path / "beside")


def run(disk: Disk, code: str) -> str:
    """What a process on the disk prints."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER + code, str(disk.root)],
        env={**os.environ, **disk.environment("writer")},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def cut(disk: Disk, seed: int = 1) -> dict[str, bytes]:
    """What a power cut leaves, by name."""
    disk.cut(random.Random(seed))
    return {
        str(path.relative_to(disk.root)): path.read_bytes() for path in disk.root.rglob("*") if path.is_file()
    }


def test_what_was_synced_with_its_name_survives(disk: Disk) -> None:
    run(disk, "os.fsync(write('new', b'new')); sync(root)")
    assert cut(disk) == {"old": b"old", "new": b"new"}


def test_what_was_not_synced_is_gone(disk: Disk) -> None:
    run(
        disk,
        """
os.fsync(write('nameless', b'its folder was not synced'))
os.mkdir(f'{root}/folder'); write('folder/lost', b'lost')
os.remove(f'{root}/old')
""",
    )
    assert cut(disk) == {"old": b"old"}


def test_a_file_is_what_it_was_at_its_last_sync(disk: Disk) -> None:
    run(
        disk,
        """
file = write('log', b'one', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
os.fdatasync(file); sync(root)
os.write(file, b'two'); os.fdatasync(file)
os.write(file, b'three')
""",
    )
    left = {cut_log(disk, seed)[:6] for seed in range(6)}
    assert left == {b"onetwo"}


def cut_log(disk: Disk, seed: int) -> bytes:
    data = cut(disk, seed)["log"]
    assert b"onetwothree".startswith(data)
    return data


def test_a_new_folder_comes_with_what_was_synced_in_it(disk: Disk) -> None:
    code = """
os.makedirs(f'{root}/one/two')
os.fsync(write('one/two/new', b'new')); sync(f'{root}/one/two')
write('one/lost', b'lost')
"""
    run(disk, code)
    assert cut(disk) == {"old": b"old", "one/two/new": b"new"}


def test_a_rename_comes_with_the_sync_of_its_folder(disk: Disk) -> None:
    code = """
os.fsync(write('part', b'new')); sync(root)
os.rename(f'{root}/part', f'{root}/old')
"""
    run(disk, code)
    assert cut(disk) == {"old": b"old", "part": b"new"}
    run(disk, code + "sync(root)")
    assert cut(disk) == {"old": b"new"}


def test_a_file_that_was_cut_off_and_went_on_has_its_new_end(disk: Disk) -> None:
    run(
        disk,
        """
file = write('log', b'one two', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
os.fdatasync(file); sync(root)
os.truncate(f'{root}/log', 4)
os.write(file, b'three'); os.fdatasync(file)
""",
    )
    assert cut(disk)["log"] == b"one three"


def test_a_cut_after_a_cut_keeps_what_the_first_one_left(disk: Disk) -> None:
    run(disk, "os.fsync(write('new', b'new')); sync(root)")
    cut(disk)
    assert cut(disk) == {"old": b"old", "new": b"new"}


def test_a_full_disk_takes_nothing_and_says_so(disk: Disk) -> None:
    code = """
try:
    write('new', b'new')
except OSError as exc:
    print(exc.errno, os.statvfs(root).f_bavail)
"""
    disk.environment("writer")
    disk.set_full("writer", True)
    assert run(disk, code) == "28 0\n"
    disk.set_full("writer", False)
    assert run(disk, code) == ""


def test_only_the_wall_clock_jumps(disk: Disk) -> None:
    code = "import time; print(round(time.time() - float(sys.argv[2]))); print(time.monotonic() > 0)"
    disk.environment("writer")
    disk.set_clock("writer", -600.0)
    import time

    ahead = run(disk, code.replace("float(sys.argv[2])", repr(time.time()))).split()[0]
    assert -610 < int(ahead) < -580


@pytest.mark.parametrize(("appendfsync", "all_there"), [("always", True), ("no", False)])
def test_a_store_has_after_a_cut_what_it_synced(tmp_path: Path, appendfsync: str, all_there: bool) -> None:
    (tmp_path / "root" / "store").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    embedded = EmbeddedStore(tmp_path / "root" / "store", {})
    config = tmp_path / "root" / "store" / "valkey.conf"
    config.write_text(config.read_text().replace("appendfsync always", f"appendfsync {appendfsync}"))
    disk = Disk(tmp_path / "root", tmp_path / "beside")
    environment = {**(embedded.spec.environment or {}), **disk.environment("store")}
    client = redis.Redis(unix_socket_path=embedded.url.removeprefix("unix://"))
    assert embedded.spec.probe is not None
    for turn in range(2):
        with BlockingChild(embedded.spec.command, tmp_path / "log", environment=environment) as child:
            child.wait_ready(embedded.spec.probe, 30)
            if turn == 0:
                for number in range(1_000):
                    client.set(str(number), "")
            else:
                assert (client.dbsize() == 1_000) is all_there
            client.close()
            child.end(signal.SIGKILL)
        disk.cut(random.Random(1))
    embedded.clean()


async def test_a_proxy_passes_all_until_it_is_cut(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    there = await asyncio.start_unix_server(echo, tmp_path / "there.sock")
    proxy = Proxy(tmp_path / "there.sock", unused_port())
    await proxy.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.delay_s = 0.001
        sent = os.urandom(300_000)
        writer.write(sent)
        assert await asyncio.wait_for(reader.readexactly(len(sent)), 10) == sent
        proxy.open.clear()
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(4), 0.2)
        proxy.open.set()
        assert await asyncio.wait_for(reader.readexactly(4), 10) == b"held"
        assert proxy.cut() == 1
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()
    finally:
        await proxy.close()
        there.close()
