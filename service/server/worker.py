"""The life of one worker process: start, serve, drain, end.

Invariant: a request that was read is answered before the end.

The end has stages: stop accepting; tell the connections that are open to close after their next answer; wait
for what is in flight within the grace period; close.
"""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from featurestore.errors import StoreRefused, StoreUnavailable
from processes.errors import CannotStartError
from processes.loop import first_of, stop_event
from service.app import build_app
from service.context import CONTEXT
from service.http.access import address_of as ip_address_of
from service.http.dispatch import Dispatcher, Traffic, problem_answer, traced
from service.http.problems import Problem
from service.server.fast_predict import fast_connections
from service.server.supervisor import CANNOT_START, address_of
from service.settings import ServiceSettings, WorkerSlot

log = logging.getLogger("foldin.service")

# A burst of new connections waits in the kernel rather than being refused; most systems allow 4,096.
_BACKLOG = 1024
# What a client still sends of a body after its answer is read for so long, then the connection is closed.
_LINGERING_S = 2.0
# A handshake takes two round trips; what stays silent is no connection yet.
_HANDSHAKE_S = 10.0
# As many as nginx in front of it may open.
_FILES = 16_384
# New containers between two looks of the collector: a request leaves few cycles; a batch of 10,000 pairs is
# made of many containers.
_GARBAGE = 50_000
# Bodies of ratings are read in threads. After each of its calls into the system the event loop would wait for
# such a thread for Python's 5 ms: beside two imports GET /predict took 0.4 s that way. Of a rating and a
# prediction while generations are loaded p99 is a third less than with 0.5 ms.
_SWITCH_S = 0.0001
# Connections that are kept alive get this long to ask once more and learn that they are to close.
_LAST_WORD_S = 0.2


class Server(web.Server):
    """Serves `app`, which has started, on connections with `settings` each.

    `template`: the server that aiohttp would take for it.
    """

    def __init__(self, app: web.Application, template: web.Server, settings: dict[str, Any]) -> None:
        self._context = context = app[CONTEXT]
        dispatcher = Dispatcher(
            template.request_handler, counts=context.counts, traffic=context.traffic, audit=context.audit
        )
        tracing = context.store.tracing
        serving = dispatcher if tracing is None else traced(dispatcher, tracing, context.access)
        super().__init__(serving, request_factory=template.request_factory)
        self._places = Places(
            context.settings.connections, context.settings.address_connections, context.audit.trusts
        )
        # For each connection: aiohttp's server would give them to its own class.
        self._settings = settings
        # A plain `Connection` serves every request; these answer GET /predict faster.
        self._connect = fast_connections(context)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return self._connect(self, loop=self._loop, **self._settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection in; refuse it where there are too many."""
        super().connection_made(handler, transport)
        self._context.traffic.connections += 1
        problem = self._places.take(_peer_of(handler))
        if problem is not None:
            self._context.counts.overloads += 1
            transport.write(problem_answer(problem, {}).last_bytes())
            handler.force_close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection out."""
        super().connection_lost(handler, exc)
        self._context.traffic.connections -= 1
        self._places.leave(_peer_of(handler))


class Places:
    """Counts connections by address: `most` may be open, and `of_one` of an address that is not `trusted` as
    a proxy, so that one client cannot take the places of all.
    """

    def __init__(self, most: int, of_one: int, trusted: Callable[[str], bool]) -> None:
        self._most, self._of_one, self._trusted = most, of_one, trusted
        self._taken: Counter[str] = Counter()
        self._open = 0

    def take(self, peer: str) -> Problem | None:
        """Count a connection of `peer` in; return why it is one too many."""
        place = _place_of(peer)
        self._open += 1
        self._taken[place] += 1
        if self._open > self._most:
            return Problem("overloaded", f"{self._most} connections are open", retry_after_s=1)
        if self._taken[place] > self._of_one and not self._trusted(peer):
            detail = f"{self._of_one} connections of this address are open; FOLDIN_PROXIES names proxies"
            return Problem("quota_exceeded", detail, retry_after_s=1)
        return None

    def leave(self, peer: str) -> None:
        """Count a connection of `peer` out."""
        place = _place_of(peer)
        self._open -= 1
        self._taken[place] -= 1
        if not self._taken[place]:
            del self._taken[place]


def _peer_of(handler: web.RequestHandler) -> str:
    peer = handler.peername
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _place_of(peer: str) -> str:
    """Return what counts as one address: of IPv6 a /64, all of which one client may have."""
    address = ip_address_of(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return peer


class ServiceRunner(web.AppRunner):
    """Serves an application on connections of this service."""

    __slots__ = ("_limits",)

    def __init__(self, app: web.Application, *, keepalive_s: float, grace_s: float) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=grace_s)
        self._limits: dict[str, Any] = {
            "keepalive_timeout": keepalive_s,
            "lingering_time": _LINGERING_S,
            "access_log": None,
        }

    async def _make_server(self) -> web.Server:
        template = await super()._make_server()
        return Server(self.app, template, self._limits)


class Site(web.SockSite):
    """Listens on a socket; with TLS, gives up connections whose handshake takes longer than `handshake_s`."""

    __slots__ = ("_handshake_s",)

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        *,
        handshake_s: float = _HANDSHAKE_S,
    ) -> None:
        super().__init__(runner, sock, backlog=_BACKLOG, ssl_context=tls)
        self._handshake_s = handshake_s

    async def start(self) -> None:
        """Begin to accept. As aiohttp's, which names no time for the handshake: asyncio takes 60 s then."""
        await web.BaseSite.start(self)
        server = self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            server,
            sock=self._sock,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=None if self._ssl_context is None else self._handshake_s,
        )


def allow_files() -> None:
    """Raise the limit of open files, of which each connection is one, to `_FILES` or as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can reach `sock`, by the address that it is bound to."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return by what connections speak TLS; None for plain HTTP. Raises CannotStartError."""
    if certificate is None and key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate or "", key)
    except OSError as exc:
        reason = exc.strerror or exc
        raise CannotStartError(
            f"the certificate in FOLDIN_TLS_CERT cannot be used with its key: {reason}"
        ) from exc
    return context


async def serve(settings: ServiceSettings, slot: WorkerSlot, sock: socket.socket) -> int:
    """Serve on `sock` until SIGTERM, SIGINT or the end of the supervisor; return the exit code."""
    stop = stop_event()
    if slot.socket is not None:
        _watch_supervisor(stop)
    app = build_app(settings, slot, loopback=is_loopback(sock))
    allow_files()
    runner = ServiceRunner(app, keepalive_s=settings.keepalive_s, grace_s=settings.grace_s)
    starting = asyncio.create_task(runner.setup(), name="start")
    try:
        await first_of(starting, stop.wait())
        if stop.is_set():
            return 0
        try:
            tls = tls_context(settings.tls_cert, settings.tls_key)
            await starting
            await Site(runner, sock, tls).start()
        except (StoreRefused, StoreUnavailable, CannotStartError) as exc:
            _say(str(exc))
            return CANNOT_START
        except OSError as exc:
            _say(f"cannot listen on {address_of(sock)}: {exc.strerror or exc}")
            return CANNOT_START
        # What is there now stays: the collector need not look at it again, nor stop a request for that.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        sys.setswitchinterval(_SWITCH_S)
        # The supervisor shows the first of these lines to people.
        where = address_of(sock) if tls is None else address_of(sock).replace("http:", "https:")
        print(f"service listens on {where}", flush=True)
        await stop.wait()
        await _drain(runner, app[CONTEXT].traffic, settings.grace_s)
    finally:
        await runner.cleanup()
    return 0


def _watch_supervisor(stop: asyncio.Event) -> None:
    """Stop when the standard input ends: the supervisor holds its other end, so it is gone."""
    # Linux sends SIGTERM besides; other systems have nothing but this.
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def readable() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            stop.set()

    loop.add_reader(fd, readable)


async def _drain(runner: ServiceRunner, traffic: Traffic, grace_s: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    traffic.draining = True
    for site in list(runner.sites):
        await site.stop()
    while (waited_s := loop.time() - began) < grace_s:
        if not traffic.in_flight and waited_s >= _LAST_WORD_S:
            break
        await asyncio.sleep(0.02)
    log.info("drained in_flight=%d seconds=%.2f", traffic.in_flight, loop.time() - began)


def _say(line: str) -> None:
    """Print one line for the person who started this."""
    print(f"service: {' '.join(line.split())}", file=sys.stderr, flush=True)
