"""A socket that stays silent on a port of TLS is given up: it is no connection yet, no limit counts it."""

import asyncio
from pathlib import Path

from aiohttp import web

from service.server.supervisor import bind
from service.server.worker import Site, tls_context
from tests.support.certificates import certificate


async def test_a_handshake_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    known = certificate(tmp_path, "server")
    sock = bind("127.0.0.1", 0, 1)[0]
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await Site(runner, sock, tls_context(known, known.with_suffix(".key")), handshake_s=0.1).start()
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await reader.read() == b""
        writer.close()
    finally:
        await runner.cleanup()
