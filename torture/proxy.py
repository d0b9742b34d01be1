"""A TCP proxy before the store whose connections can be cut, delayed, or frozen.

Invariant: what passes is passed whole and in order; a connection that was cut passes nothing any more.
"""

import asyncio
import contextlib
from pathlib import Path

# A reply of the store that is read whole passes in a few pieces.
PIECE_BYTES = 65_536


class Proxy:
    """Leads from a port to a socket file, or to another port of this host. `delay_s`: before each piece;
    `open`: whether any passes.
    """

    def __init__(self, target: Path | int, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self.delay_s = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self._target = target
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Listen no more, and cut all."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def cut(self) -> int:
        """Cut all connections; return how many."""
        for task in self._passing:
            task.cancel()
        return len(self._passing)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(str(self._target))
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                there, back = await self._connect()
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pass(reader, back))
                        group.create_task(self._pass(there, writer))
                except* OSError:
                    pass
                finally:
                    back.transport.abort()
        finally:
            self._passing.discard(task)
            # Not `close`, which would send what still waits.
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE_BYTES):
            await self.open.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        # The other way ends with this one.
        raise ConnectionResetError
