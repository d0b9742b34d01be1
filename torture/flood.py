"""Floods a service with requests that never end: its memory grows by little, and comes back.

Only for a service on loopback. The sockets are this process's: a limit of open files bounds them.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

LINES = 60
LINE = b"X-Filler: %b\r\n" % (b"a" * 7_900)
# A service that reads no more is left alone after so long.
_SEND_S = 1.0


@contextlib.contextmanager
def flood(port: int, connections: int = 2_000) -> Iterator[None]:
    """Send the beginning of a head of 474 KB over each of so many connections, which stay open meanwhile."""
    opened = []
    try:
        for _ in range(connections):
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", port), timeout=_SEND_S)
                opened.append(sock)
                sock.sendall(b"GET /predict HTTP/1.1\r\nHost: localhost\r\n" + LINE * LINES)
        yield
    finally:
        for sock in opened:
            sock.close()


def memory_bytes(pid: int) -> int:
    """Return the memory that a process holds and shares with no other."""
    with Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
