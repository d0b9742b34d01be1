"""Runs N worker processes on one port and starts again the ones that end.

Invariant: it never answers a request itself.

Each worker has a listening socket of its own on the port (SO_REUSEPORT spreads the connections evenly), and
the supervisor holds all of them: the connections that wait for a worker that ended wait for the one that
takes its place. Only the standard library is imported here, so that the supervisor stays small.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger("foldin.service")

CANNOT_START = 2
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
# A worker that served for so long was well: its next restart begins with the shortest pause again.
_WELL_AFTER_S = 30.0
# A worker bounds its own end by the grace period; one that takes so much longer hangs.
_LAST_S = 2.0


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets bound to one address. Raises `OSError` where the port is taken, also by such a group.

    They listen when a worker serves them: until then clients are refused, not left waiting.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = found[0]
    # SO_REUSEPORT would let a second group join the first: a socket without it finds out whether the
    # port is free.
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
    """Where people find `sock`."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Supervisor:
    """Keeps one worker running for each of `sockets`. `arguments`: the command line of the service."""

    def __init__(self, sockets: Sequence[socket.socket], arguments: Sequence[str], grace_s: float) -> None:
        self._sockets = sockets
        self._arguments = list(arguments)
        self._grace_s = grace_s
        self._stop = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code. 2 where a worker says that it cannot start."""
        loop = asyncio.get_running_loop()
        for end in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(end, self._stop.set)
        with tempfile.TemporaryDirectory(prefix="foldin-service-") as folder:
            first = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for number, sock in enumerate(self._sockets):
                    group.create_task(
                        self._keep(number, sock, Path(folder), first), name=f"supervise worker {number}"
                    )
        return self._code

    async def _keep(self, number: int, sock: socket.socket, folder: Path, first: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        if number:
            # The first one finds out whether the store can be used, and says so once.
            await _either(first, self._stop)
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            began = loop.time()
            code = await self._run_one(number, sock, folder, first)
            if self._stop.is_set():
                return
            if code == CANNOT_START:
                self._code = CANNOT_START
                self._stop.set()
                return
            if loop.time() - began > _WELL_AFTER_S or code == 0:
                pause_s = _FIRST_PAUSE_S
            log.warning("worker ended worker=%d code=%d next_in_s=%.1f", number, code, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _run_one(self, number: int, sock: socket.socket, folder: Path, first: asyncio.Event) -> int:
        place = ["--worker", str(number), "--socket", str(sock.fileno()), "--folder", str(folder)]
        # The worker says on its standard output when it listens, and ends when its standard input does.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", *self._arguments, *place),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(sock.fileno(),),
            # A Ctrl-C of the terminal goes to the supervisor alone, which ends the workers in order. Not a
            # session: priorities count inside one only.
            process_group=0,
        )
        says = asyncio.create_task(_first_words(process, first), name=f"hear worker {number}")
        ended = asyncio.create_task(process.wait(), name=f"wait for worker {number}")
        stop = asyncio.create_task(self._stop.wait(), name=f"watch stop for worker {number}")
        try:
            await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(ended), self._grace_s + _LAST_S)
            if not ended.done():
                log.error("worker does not end and is killed worker=%d", number)
                process.kill()
            return await ended
        finally:
            stop.cancel()
            says.cancel()
            await asyncio.gather(stop, says, return_exceptions=True)


async def _first_words(process: asyncio.subprocess.Process, first: asyncio.Event) -> None:
    if process.stdout is None:
        return
    line = await process.stdout.readline()
    if line and not first.is_set():
        print(line.decode("utf-8", "replace").rstrip(), flush=True)
        first.set()
    # Whatever else it prints must not fill the pipe and stop it.
    while chunk := await process.stdout.read(65536):
        sys.stdout.write(chunk.decode("utf-8", "replace"))
        sys.stdout.flush()


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
