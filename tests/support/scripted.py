"""Servers that say what a test has written down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A port of this machine; `serve` has each connection, which is cut when it returns or the test ends."""
    taken: list[tuple[asyncio.StreamWriter, asyncio.Task[None] | None]] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append((writer, asyncio.current_task()))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer, _ in taken:
            writer.transport.abort()
        await asyncio.gather(*(task for _, task in taken if task))
