"""Is a server ready? Small questions over plain sockets, each answered or given up within a second.

A supervisor lives as long as its children: it loads no HTTP or Redis library to ask them once.
"""

import secrets
import socket
from pathlib import Path

# A server that is ready answers within milliseconds; one on busy cores gets the time, and is asked again.
PROBE_TIMEOUT_S = 1.0
# A server of a cluster has a second port, 10,000 higher, which is no other one's first. Both lie below those
# that systems give to connections that go out, which any program may have taken when a server starts again.
BUS_OFFSET, CLUSTER_PORTS = 10_000, range(11_000, 21_000)
# Of a range of thousands a few programs have some.
_ATTEMPTS = 1_000
_PING = b"*1\r\n$4\r\nPING\r\n"

Address = Path | tuple[str, int]


def http_ok(host: str, port: int, path: str) -> bool:
    """Return whether `GET path` is answered with 2xx."""
    question = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    return _reply((host, port), question.encode()).startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))


def redis_reply(address: Address) -> bytes:
    """Return what a store says to PING: `+PONG` when it has finished loading; empty where there is none."""
    return _reply(address, _PING)


def redis_pong(address: Address, password: str | None = None) -> bool:
    """Return whether a store, at a socket file or a port, has finished loading and takes commands."""
    if password is None:
        return redis_reply(address) == b"+PONG"
    login = f"*2\r\n$4\r\nAUTH\r\n${len(password.encode())}\r\n{password}\r\n"
    return _reply(address, login.encode() + _PING, line=2) == b"+PONG"


def _reply(address: Address, question: bytes, line: int = 1) -> bytes:
    """Return a line of the answer, empty where there is none in time."""
    try:
        if isinstance(address, Path):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(PROBE_TIMEOUT_S)
        else:
            connection = socket.create_connection(address, PROBE_TIMEOUT_S)
        with connection, connection.makefile("rb") as answer:
            if isinstance(address, Path):
                connection.connect(str(address))
            connection.sendall(question)
            return [answer.readline(1024).rstrip() for _ in range(line)][-1]
    except OSError:
        return b""


def unused_port() -> int:
    """Return a port of 127.0.0.1 that a server may have, of a cluster, too: nothing listens there, nor on its
    second one, and no connection that goes out is given them. Raises OSError where there is none.
    """
    for _ in range(_ATTEMPTS):
        # Not by `random`: processes that began with the same seed would all draw the same one.
        port = secrets.choice(CLUSTER_PORTS)
        if is_unused_cluster_port(port):
            return port
    raise OSError("no port is free")


def is_unused_cluster_port(port: int) -> bool:
    """Return whether nothing listens on a port of 127.0.0.1, nor on the second one of a server there."""
    try:
        for each in (port, port + BUS_OFFSET):
            with socket.socket() as probe:
                # As servers do.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", each))
                probe.listen(1)
    except OSError:
        return False
    return True
