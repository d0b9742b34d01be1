"""Five thousand connections that say nothing, or never end what they say, harm no other client."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from tests.support.factories import Written
from tests.support.servers import missing
from tests.support.serving import processes, send_raw

pytestmark = pytest.mark.timeout(300)
CONNECTIONS = 5_000
# A connection costs the worker its protocol, a task and a parser; what it sent is at most one half of a head.
_BYTES_A_CONNECTION = 64 * 1024
_OTHER_FILES = 300


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process open as many sockets as the test needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < need:
        missing(f"a limit of {need} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
def test_others_are_served_and_memory_is_bounded(
    store_settings: StoreSettings, published: Written, tmp_path: Path, many_files: None
) -> None:
    ask = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with processes(store_settings, tmp_path) as service, ExitStack() as held:
        service.wait_for()
        before = resident_bytes(service.process.pid)
        for number in range(CONNECTIONS):
            one = held.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=30.0))
            if number % 2:
                one.sendall(b"GET /predict?user_id=ann HTTP/1.1\r\nX-Slow: ")
        assert send_raw(service.port, ask, timeout_s=30.0).startswith(b"HTTP/1.1 200 OK")
        assert resident_bytes(service.process.pid) - before < CONNECTIONS * _BYTES_A_CONNECTION
        # They may go on talking afterwards.
        one.settimeout(30.0)
        one.sendall(b"1\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 400")
    assert service.process.code == 0
