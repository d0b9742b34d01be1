"""Thousands of connections that say nothing, too much, or never end what they say harm no other client."""

import contextlib
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# As many as a worker takes, but for a few of others.
CONNECTIONS = 8_000
# As large as each header may be, and as many as may be.
_FIELD = b": " + b"v" * 8_000 + b"\r\n"
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


def test_others_are_served_and_memory_is_bounded(
    store_settings: StoreSettings, published: Written, tmp_path: Path, many_files: None
) -> None:
    ask = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with processes(store_settings, tmp_path) as service, ExitStack() as held:
        service.wait_for()
        before = resident_bytes(service.process.pid)
        for number in range(CONNECTIONS):
            one = held.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=30.0))
            match number % 4:
                case 0:
                    one.sendall(b"GET /predict?user_id=ann HTTP/1.1\r\nX-Slow: ")
                case 1:
                    # Held whole, half of these alone would take 1 GB.
                    fields = b"".join(b"X-%d%b" % (each, _FIELD) for each in range(60))
                    with contextlib.suppress(ConnectionError):
                        one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + fields)
                case 2:
                    one.sendall(b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
                    one.sendall(b"Content-Type: application/json\r\nX%b\r\n{" % _FIELD)
        assert send_raw(service.port, ask, timeout_s=30.0).startswith(b"HTTP/1.1 200 OK")
        assert resident_bytes(service.process.pid) - before < CONNECTIONS * _BYTES_A_CONNECTION
        # They may go on talking afterwards.
        one.settimeout(30.0)
        one.sendall(ask)
        assert one.recv(65536).startswith(b"HTTP/1.1 200")
    assert service.process.code == 0
