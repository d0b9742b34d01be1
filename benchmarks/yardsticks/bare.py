"""The yardstick: an aiohttp handler on uvloop that returns 60 constant bytes and does nothing else.

Invariant: it is what a person would write to see how fast the framework is: application, router, one handler,
no log line.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import uvloop
from aiohttp import web

from processes.loop import stop_event

BODY = b'{"rating":3.5721,"std":0.6113,"basis":"user+item","gen":420}'
assert len(BODY) == 60


async def constant(_: web.Request) -> web.Response:
    """Answer 60 bytes."""
    return web.Response(body=BODY, content_type="application/json")


async def serve(port: int, *, shared: bool) -> None:
    """Serve on loopback until SIGTERM; `shared`: several processes on one port."""
    application = web.Application()
    application.router.add_get("/predict", constant)
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
    options = parser.parse_args(argv)
    children: list[int] = []
    for _ in range(options.processes - 1):
        # Forked before there is an event loop; each binds the port by itself.
        child = os.fork()
        if child == 0:
            children = []
            break
        children.append(child)
    try:
        uvloop.run(serve(options.port, shared=options.processes > 1))
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
