"""The yardstick: an aiohttp handler on uvloop that returns 60 constant bytes and does nothing else.

Invariant: it is what a person would write to see how fast the framework is: application, router, one handler,
no log line.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import partial

import uvloop
from aiohttp import web

from processes.blocking import BlockingChild, python_command
from processes.loop import stop_event
from processes.probes import http_ok

BODY = b'{"rating":3.5721,"std":0.6113,"basis":"user+item","gen":420}'
assert len(BODY) == 60
# An import of aiohttp takes 0.3 s of a quiet core.
START_S = 30.0


async def constant(_: web.Request) -> web.Response:
    """Answer 60 bytes."""
    return web.Response(body=BODY, content_type="application/json")


async def taken(request: web.Request) -> web.Response:
    """Read the body and answer 60 bytes."""
    await request.read()
    return web.Response(body=BODY, content_type="application/json")


async def serve(port: int, *, shared: bool) -> None:
    """Serve on loopback until SIGTERM; `shared`: several processes on one port."""
    application = web.Application()
    application.router.add_get("/predict", constant)
    application.router.add_post("/ratings", taken)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_port=shared, backlog=1024).start()
    try:
        await stop_event().wait()
    finally:
        await runner.cleanup()


def main(argv: Sequence[str]) -> int:
    """Serve with several processes; the first one ends the others."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.yardsticks.bare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shared", action="store_true", help="other processes serve on this port, too")
    options = parser.parse_args(argv)
    command = python_command("benchmarks.yardsticks.bare", "--port", str(options.port), "--shared")
    with contextlib.ExitStack() as ends:
        for _ in range(options.processes - 1):
            child = ends.enter_context(BlockingChild(command, None))
            # Before this process listens: a run that began with it alone would measure it alone.
            child.wait_ready(partial(http_ok, "127.0.0.1", options.port, "/predict"), START_S)
        uvloop.run(serve(options.port, shared=options.shared or options.processes > 1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
