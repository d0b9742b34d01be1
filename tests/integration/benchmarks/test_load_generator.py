"""The load generator against servers of known behaviour."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.errors import BenchmarkError
from benchmarks.load.client import Client
from benchmarks.load.generator import LoadError, Plan, get, post, run, write_requests
from processes.probes import unused_port

STALL_S = 0.4


class Server:
    """Counts what it is asked. The first request after `stall` waits; `status` is what it answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.bodies: set[bytes] = set()
        self.status = 200
        self.stall_at = -1
        self.body = b"x" * 60

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if request.method == "POST":
            self.bodies.add(await request.read())
        if self.asked == self.stall_at:
            # A server that stops for a moment, with everything that it has to do.
            threading.Event().wait(STALL_S)
        return web.Response(body=self.body, status=self.status)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[int]:
    """Serve from a thread until the block ends; the port."""
    port = unused_port()
    loop = asyncio.new_event_loop()
    application = web.Application(client_max_size=2**26)
    application.router.add_route("*", "/", server.answer)
    runner = web.AppRunner(application, access_log=None)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield port
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_answers_add_up_and_failures_are_counted(tmp_path: Path) -> None:
    body = b"0123456789" * 20_000
    file = str(write_requests(tmp_path / "requests", [get("/"), post("/", body)]))
    server = Server()
    server.body = body
    with serving(server) as port:
        load = run(Plan(port, file, connections=2, seconds=20, warm_up_s=0.0, max_requests=10))
        # Each connection may have one under way when the number is reached.
        assert 10 <= load.answered == server.asked <= 12
        assert (load.failed, load.statuses) == (0, {200: load.answered})
        assert (load.latencies_ms > 0).all()
        assert server.bodies == {body}
        server.status = 503
        load = run(Plan(port, file, connections=2, seconds=20, warm_up_s=0.0, max_requests=20))
        assert load.failed == load.answered == load.statuses[503]
        with Client(port) as client, pytest.raises(BenchmarkError, match="503"):
            client.ask(get("/"))
    with pytest.raises(LoadError):
        run(Plan(port, file, seconds=0.1))


@pytest.mark.slow
def test_open_loop_counts_the_wait_for_a_stalled_server(tmp_path: Path) -> None:
    file = str(write_requests(tmp_path / "requests", [get("/")]))
    server = Server()
    server.stall_at = 20
    with serving(server) as port:
        load = run(Plan(port, file, connections=2, seconds=1.0, warm_up_s=0.0, rate=100))
    assert (load.failed, load.answered) == (0, 100)
    # The requests that were due during the stall waited for it, although only two connections saw it.
    assert (load.latencies_ms > 1000 * STALL_S / 4).sum() > 10
