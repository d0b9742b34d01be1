"""The connection to a store: what an error reply means, and that a late answer is never another call's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from featurestore.errors import StoreDamaged, StoreError, StoreFull, StoreRefused, StoreUnavailable
from featurestore.wire.connection import ServerConnection
from featurestore.wire.primary import Primary
from featurestore.wire.resp import ReplyError, store_error
from tests.support.waiting import retried

GREETING = b"+PONG\r\n+OK\r\n*1\r\n$6\r\nmaster\r\n"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("LOADING Redis is loading", StoreUnavailable),
        ("MISCONF disk", StoreFull),
        ("OOM command not allowed", StoreFull),
        ("ERR max number of clients reached", StoreUnavailable),
        ("NOAUTH Authentication required.", StoreRefused),
        ("WRONGPASS invalid", StoreRefused),
        ("MOVED 1 127.0.0.1:1", StoreRefused),
        ("ERR whatever", StoreError),
        ("WRONGTYPE Operation", StoreDamaged),
        ("ERR hash value is not an integer script: f, on @user_function:3.", StoreDamaged),
    ],
)
def test_error_replies_say_what_to_do(reply: str, kind: type[StoreError]) -> None:
    assert type(store_error(ReplyError(reply))) is kind


class Server:
    def __init__(self) -> None:
        self.reply = b""
        self.open: list[tuple[asyncio.StreamWriter, asyncio.Task[None] | None]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append((writer, asyncio.current_task()))
        with contextlib.suppress(OSError):
            await reader.read(65536)
            writer.write(GREETING)
            while await reader.read(65536):
                writer.write(self.reply)
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for writer, _ in self.open:
                writer.transport.abort()
            await asyncio.gather(*[task for _, task in self.open if task], return_exceptions=True)


async def test_a_late_answer_fails_everything_in_flight_and_is_never_mixed_up() -> None:
    server = Server()
    async with server.running() as url:

        async def opened() -> ServerConnection:
            connection = ServerConnection(Primary(url), 0.1, "test")
            await connection.open()
            return connection

        # A busy machine is slower than that.
        connection = await retried(opened, "the connection is open", StoreUnavailable)
        calls = [connection.execute(b"x", 1) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailable) for result in results)
        server.reply = b"+fresh\r\n"
        again = await retried(lambda: connection.execute(b"x", 1), "the connection is back", StoreUnavailable)
        assert again == [b"fresh"]
        assert len(server.open) >= 2
        await connection.close()
