"""Is a server ready? Small questions over plain sockets, each answered or given up within a second.

A supervisor lives as long as its children: it loads no HTTP or Redis library to ask them once.
"""

import socket
from pathlib import Path

# A server that is ready answers within milliseconds; one on busy cores gets the time, and is asked again.
PROBE_TIMEOUT_S = 1.0

Address = Path | tuple[str, int]


def http_ok(host: str, port: int, path: str) -> bool:
    """Return whether `GET path` is answered with 2xx."""
    question = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    return _reply((host, port), question.encode()).startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))


def redis_reply(address: Address) -> bytes:
    """Return what a store says to PING: `+PONG` when it has finished loading; empty where there is none."""
    return _reply(address, b"*1\r\n$4\r\nPING\r\n")


def redis_pong(address: Address) -> bool:
    """Return whether a store, at a socket file or a port, has finished loading and takes commands."""
    return redis_reply(address) == b"+PONG"


def _reply(address: Address, question: bytes) -> bytes:
    """Return the first line of the answer, empty where there is none in time."""
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
            return answer.readline(1024).rstrip()
    except OSError:
        return b""


def unused_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
