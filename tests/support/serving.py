"""A service to test: in this process on a free port, or as real processes, ended by who started it."""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild, python_command
from processes.probes import http_ok, unused_port
from service.app import build_app
from service.context import CONTEXT
from service.server.supervisor import bind
from service.server.worker import ServiceRunner, is_loopback
from service.settings import ServiceSettings, WorkerSlot
from tests.support.servers import store_environment
from tests.support.waiting import PATIENCE_S, wait_until_async

JSON = {"Content-Type": "application/json"}
LINES = {"Content-Type": "application/x-ndjson"}
JSON_TYPES = ("application/json", "application/problem+json")

# What the tests of a module share runs on one event loop.
SHARED = pytest.mark.asyncio(loop_scope="module")
# For tests of GET /predict: with its fast path, and with that taken out.
BOTH_WAYS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"], indirect=True)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read whole. `json` is None where there is none."""

    status: int
    headers: Mapping[str, str]
    text: str
    json: Any

    @property
    def ok(self) -> "Reply":
        """The same, which has the status 200."""
        assert self.status == 200, self.text
        return self


class Client:
    """Asks a service at `url`; paths are sent as they stand."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.port = int(url.rpartition(":")[2])

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        from yarl import URL

        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, timeout=aiohttp.ClientTimeout(90), **more) as answer:
            text = (await answer.read()).decode("utf-8", "replace")
            is_json = answer.content_type in JSON_TYPES and text
            value = await answer.json(content_type=None) if is_json else None
            return Reply(answer.status, answer.headers, text, value)

    async def get(self, path: str, **more: Any) -> Reply:
        return await self.ask("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> Reply:
        if isinstance(body, bytes):
            return await self.ask("POST", path, data=body, **{"headers": JSON, **more})
        return await self.ask("POST", path, json=body, **more)


@contextlib.asynccontextmanager
async def client_of(url: str, key: str = "") -> AsyncIterator[Client]:
    connector, headers = aiohttp.TCPConnector(limit=0), {"Authorization": f"Bearer {key}"} if key else None
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield Client(session, url)


Served = tuple[Client, web.Application]


@contextlib.asynccontextmanager
async def serving(store: StoreSettings, *, live: int | None = None, **changes: Any) -> AsyncIterator[Served]:
    """A service in this process, which answers from the generation `live`, and a client of it."""
    with tempfile.TemporaryDirectory(prefix="foldin-test-") as cache:
        settings = replace(ServiceSettings(store=store, cache_dir=Path(cache), keepalive_s=75.0), **changes)
        sock = bind("127.0.0.1", 0, 1)[0]
        app = build_app(settings, WorkerSlot(), loopback=is_loopback(sock))
        runner = ServiceRunner(app, keepalive_s=settings.keepalive_s, grace_s=2.0)
        try:
            await runner.setup()
            await web.SockSite(runner, sock).start()
            async with client_of(f"http://127.0.0.1:{sock.getsockname()[1]}") as client:
                if live is not None:
                    await serves(client, live)
                yield client, app
        finally:
            await runner.cleanup()
            sock.close()


def hold(app: web.Application, part: str, name: str, patch: pytest.MonkeyPatch) -> asyncio.Event:
    """Hold a method of a part of the store until the event is set: what asks it cannot end before."""
    held_part, may_go_on = getattr(app[CONTEXT].store, part), asyncio.Event()
    real = getattr(held_part, name)

    async def held(*args: Any, **more: Any) -> Any:
        await may_go_on.wait()
        return await real(*args, **more)

    patch.setattr(held_part, name, held)
    return may_go_on


class Service:
    """A service of real processes: `python -m service`."""

    def __init__(
        self,
        store: StoreSettings,
        folder: Path,
        *,
        workers: int = 1,
        host: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"service-{self.port}.log"
        settings = {
            **store_environment(store),
            "FOLDIN_SCALE": store.scale or "",
            "FOLDIN_STREAM_LIMIT": str(store.stream_limit),
            "FOLDIN_STORE_TIMEOUT_S": str(store.timeout_s),
            "FOLDIN_CACHE_DIR": str(folder / "cache"),
        }
        self.process = BlockingChild(
            python_command(*("service", "--host", host, "--port", str(self.port), "--workers", str(workers))),
            self.log,
            environment={**os.environ, **settings, **(environment or {})},
        )

    def answers(self, path: str = "/livez") -> bool:
        return http_ok("127.0.0.1", self.port, path)

    def wait_for(self, path: str = "/readyz") -> None:
        self.process.wait_ready(lambda: self.answers(path), 60.0)

    def end(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """End it; its exit code. Raises AssertionError where it had to be killed."""
        code = self.process.end(how, timeout_s)
        assert how == signal.SIGKILL or code != -signal.SIGKILL, f"not ended within {timeout_s:g} s"
        return code

    def worker_pids(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text("ascii")
        return sorted(map(int, listed.split()))


@contextlib.contextmanager
def processes(store: StoreSettings, folder: Path, *, workers: int = 1) -> Iterator[Service]:
    """A service of real processes that answers."""
    service = Service(store, folder, workers=workers)
    try:
        service.wait_for("/livez")
        yield service
    finally:
        service.end()


async def serves(client: Client, generation: int, timeout_s: float = PATIENCE_S) -> None:
    """Wait until the service answers from `generation`."""

    def says(reply: Reply) -> bool:
        served = reply.status == 200 and reply.json["generation"] == generation
        return served and "degraded" not in reply.json

    what = f"generation {generation} is served"
    await wait_until_async(lambda: client.get("/readyz"), what, says, timeout_s=timeout_s)


async def until_receipt(client: Client, receipt: str, state: str = "erased") -> None:
    path, what = f"/receipts/{receipt}", f"the receipt says {state}"
    await wait_until_async(lambda: client.get(path), what, lambda reply: reply.json["archive"] == state)


class QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering(handler: type[QuietHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def send_raw(port: int, data: bytes, timeout_s: float = PATIENCE_S) -> bytes:
    """What a server says to `data`, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                found += chunk
        return found


def is_problem(reply: Reply, status: int, code: str, says: str = "", **members: object) -> bool:
    """Whether `reply` is the problem `code` in full, whose detail `says` this, with these `members`."""
    assert reply.status == status, (reply.status, reply.text)
    assert reply.headers["Content-Type"] == "application/problem+json"
    document = reply.json
    assert set(document) >= {"type", "title", "status", "detail", "code", "request_id"}
    assert "Traceback" not in reply.text
    assert document["status"] == status
    assert document["code"] == code, document
    assert says in document["detail"], document
    assert {name: document.get(name) for name in members} == members, document
    assert document["request_id"] == reply.headers["X-Request-ID"]
    if status in (429, 503, 507):
        assert int(reply.headers["Retry-After"]) >= 1
    return True
