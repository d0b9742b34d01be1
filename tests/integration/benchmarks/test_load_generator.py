"""The load generator counts what docs/performance.md says that it counts."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from benchmarks.load.generator import Plan, get, run, write_requests
from processes.probes import unused_port

STALL_S = 0.4


class Server:
    """Counts what it is asked. Request number `stall_at` waits, and all that come meanwhile."""

    def __init__(self) -> None:
        self.asked = 0
        self.stall_at = -1

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.asked == self.stall_at:
            # A server that stops for a moment, with everything that it has to do.
            threading.Event().wait(STALL_S)
        return web.Response(body=b"x")


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


def test_open_loop_counts_the_wait_for_a_stalled_server(tmp_path: Path) -> None:
    file = str(write_requests(tmp_path / "requests", [get("/")]))
    server = Server()
    server.stall_at = 20
    with serving(server) as port:
        load = run(Plan(port, file, connections=2, seconds=1.0, warm_up_s=0.0, rate=100))
    assert (load.failed, load.answered) == (0, 100)
    # The requests that were due during the stall waited for it, although only two connections saw it.
    assert (load.latencies_ms > 1000 * STALL_S / 4).sum() > 10
