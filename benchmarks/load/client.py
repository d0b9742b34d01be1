"""One keep-alive HTTP connection that asks and waits, with as little of its own time as Python allows.

Not `foldin_client`, which takes longer itself than the latency of 0.3 ms that is measured here.
"""

import socket
from types import TracebackType

from benchmarks.errors import BenchmarkError


class Client:
    """Use as a context manager; `ask` returns the body of a 2xx answer."""

    def __init__(self, port: int, *, timeout_s: float = 30.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        # Nagle's algorithm would hold the end of a large request back for an acknowledgement.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """Send a request; return the body. Raises `BenchmarkError` for another status and a broken
        connection.
        """
        try:
            self._socket.sendall(request)
            # As the load generator: an answer to thousands of pairs comes in a few reads.
            data = self._socket.recv(262_144)
            while (end := data.find(b"\r\n\r\n")) < 0:
                data += self._more()
            head = data[:end].lower()
            at = head.find(b"content-length: ")
            if at < 0:
                raise BenchmarkError("an answer without Content-Length")
            length = int(head[at + 16 :].split(b"\r\n", 1)[0])
            parts = [data[end + 4 :]]
            missing = length - len(parts[0])
            while missing > 0:
                parts.append(self._more())
                missing -= len(parts[-1])
        except OSError as exc:
            raise BenchmarkError(f"the connection broke: {exc}") from exc
        body = b"".join(parts)
        # Behind "HTTP/1.1 ": nothing else of the line is needed, and nothing is split that would be timed.
        if data[9:10] != b"2":
            raise BenchmarkError(f"answered {data[9:12].decode()}: {body[:300].decode(errors='replace')}")
        return body

    def _more(self) -> bytes:
        data = self._socket.recv(262_144)
        if not data:
            raise BenchmarkError("the server closed the connection")
        return data
