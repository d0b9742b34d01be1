"""Is a part ready? Small questions over plain sockets.

The supervisor loads no HTTP or Redis library for them.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

PROBE_TIMEOUT_S = 1.0


async def _answer(
    connect: Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]], question: bytes
) -> bytes:
    """The first line of what the other side answers, empty where it does not within a second."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await connect
            try:
                writer.write(question)
                return await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):  # ValueError: a line without an end
        return b""


async def http_ok(host: str, port: int, path: str) -> bool:
    """Whether `GET path` is answered with 2xx within a second."""
    question = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    answer = await _answer(asyncio.open_connection(host, port), question)
    return answer.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))


async def redis_pong(path: Path) -> bool:
    """Whether a store at a socket file answers PING, that is, has finished loading, within a second."""
    return await _answer(asyncio.open_unix_connection(path), b"*1\r\n$4\r\nPING\r\n") == b"+PONG\r\n"
