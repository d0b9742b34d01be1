"""Runs N worker processes on one port and starts again the ones that end.

Invariant: it never answers a request itself.

Each worker has a listening socket of its own on the port (SO_REUSEPORT spreads the connections evenly), and
the supervisor holds all of them: the connections that wait for a worker that ended wait for the one that
takes its place. Little is imported here, so that the supervisor stays small.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from processes import module_name
from processes.backoff import Backoff
from processes.child import Child, ChildSpec
from processes.loop import first_of, stop_event
from service.settings import SIGN_OF_LIFE

log = logging.getLogger("foldin.service")

# The exit code of a process that a person must help: docs/operations.md.
CANNOT_START = 2
# A worker that served for so long was well: its next restart begins with the shortest pause again.
_WELL_AFTER_S = 30.0
# A look at the sign of life costs a worker next to nothing, and an alert waits for ten of them.
_SIGN_OF_LIFE_S = 1.0
# A worker bounds its own end by the grace period; one that takes so much longer hangs.
_LAST_S = 2.0


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` sockets bound to one address. Raises `OSError` where the port is taken, also by such a
    group.

    They listen when a worker serves them: until then clients are refused, not left waiting.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = found[0]
    # SO_REUSEPORT would let a second group join the first: a socket without it finds out whether the port is
    # free.
    probe = _bound(family, kind, address, shared=False)
    if count == 1:
        return [probe]
    address = probe.getsockname()
    probe.close()
    return [_bound(family, kind, address, shared=True) for _ in range(count)]


def _bound(family: int, kind: int, address: object, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)  # type: ignore[arg-type] # as getaddrinfo gave it
    except OSError:
        sock.close()
        raise
    return sock


def address_of(sock: socket.socket) -> str:
    """Return the URL under which `sock` is found."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Supervisor:
    """Keeps one worker running for each of `sockets`. `arguments`: the command line of the service."""

    def __init__(self, sockets: Sequence[socket.socket], arguments: Sequence[str], grace_s: float) -> None:
        self._sockets = sockets
        self._command = (sys.executable, "-m", module_name("service"), *arguments)
        self._grace_s = grace_s
        self._code = 0
        self._serving = asyncio.Event()
        # Workers that have said since their start that they listen.
        self._listening: set[int] = set()

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit code, 2 where a worker says that it cannot start."""
        self._stop = stop_event()
        with tempfile.TemporaryDirectory(prefix="foldin-service-") as folder:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._show_life(Path(folder)), name="show life")
                for number, sock in enumerate(self._sockets):
                    group.create_task(
                        self._keep(number, sock, Path(folder)), name=f"supervise worker {number}"
                    )
        return self._code

    async def _show_life(self, folder: Path) -> None:
        """Touch a file that workers look at: they serve on while this process stands still, and none that
        ends is started again.
        """
        while not self._stop.is_set():
            # A full disk costs the sign of life, nothing more.
            with contextlib.suppress(OSError):
                (folder / SIGN_OF_LIFE).touch()
            await first_of(self._stop.wait(), within_s=_SIGN_OF_LIFE_S)

    async def _keep(self, number: int, sock: socket.socket, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        if number:
            # The first one finds out whether the store can be used, and says so once.
            await first_of(self._serving.wait(), self._stop.wait())
        slot = ("--worker", str(number), "--socket", str(sock.fileno()), "--folder", str(folder))
        spec = ChildSpec(
            f"worker {number}",
            (*self._command, *slot),
            grace_s=self._grace_s + _LAST_S,
            captured="stdout",
            show=partial(self._show, number),
        )
        worker = Child(spec, None, (sock.fileno(),))
        # A store that is away ends every worker at once: their next starts spread over up to 5 s.
        backoff = Backoff(0.2, 5.0)
        while not self._stop.is_set():
            began = loop.time()
            self._listening.discard(number)
            await worker.start()
            await first_of(worker.wait(), self._stop.wait())
            stopping = worker.running
            code = await worker.stop()
            if stopping and code == -signal.SIGKILL:
                log.error("worker does not end and is killed worker=%d", number)
            if self._stop.is_set():
                return
            if code == CANNOT_START:
                self._code = CANNOT_START
                self._stop.set()
                return
            if loop.time() - began > _WELL_AFTER_S or code == 0:
                backoff.reset()
            pause_s = backoff.next_s()
            log.warning("worker ended worker=%d code=%d next_in_s=%.1f", number, code, pause_s)
            await first_of(self._stop.wait(), within_s=pause_s)

    def _show(self, number: int, line: str) -> None:
        """Print what a worker prints; of the lines by which each says that it listens, only the first."""
        greeting = number not in self._listening
        self._listening.add(number)
        if not (greeting and self._serving.is_set()):
            print(line, flush=True)
        self._serving.set()
