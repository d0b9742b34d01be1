"""What keeps a stack from starting is found before anything starts, and said in one line."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldin.preflight import data_directory, locked, require_free_port
from foldin.store import EmbeddedStore, socket_path
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


def test_a_new_directory_is_made_with_its_folders(tmp_path: Path) -> None:
    data = data_directory(tmp_path / "a" / "b")
    assert {path.name for path in data.iterdir()} == {"logs", "store"}
    assert data.is_absolute()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotStartError, match=r"cannot be written .*--data") as found:
        data_directory(tmp_path / "file" / "data")
    assert "\n" not in str(found.value)


def test_a_full_disk_is_refused_and_left_as_it_was(small_disk: Path) -> None:
    with pytest.raises(CannotStartError, match="is full: make 64 MB of room"):
        data_directory(small_disk / "data")
    assert not list((small_disk / "data").glob(".room*"))


def test_a_port_that_cannot_be_had_is_refused() -> None:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, option, 1)
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            port = server.getsockname()[1]
            with pytest.raises(CannotStartError, match=rf"port {port} on 127.0.0.1 is in use: .*--port"):
                require_free_port("127.0.0.1", port, "--port")
    require_free_port("127.0.0.1", port, "--port")
    # An address of another machine.
    with pytest.raises(CannotStartError, match=r"cannot listen on 192\.0\.2\.1"):
        require_free_port("192.0.2.1", 8080, "--port")


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


def test_the_store_s_socket_goes_elsewhere_where_a_path_cannot_be_an_address(tmp_path: Path) -> None:
    assert socket_path(Path("/srv/foldin")) == Path("/srv/foldin/store.sock")
    for directory in (tmp_path / ("long" * 30), tmp_path / "with space"):
        directory.mkdir()
        store = EmbeddedStore(directory, {})
        path = Path(store.url.removeprefix("unix://"))
        assert path.parent.is_dir()
        assert path.parent != directory
        assert path.parent.stat().st_mode & 0o077 == 0
        store.clean()
        assert not path.parent.exists()
