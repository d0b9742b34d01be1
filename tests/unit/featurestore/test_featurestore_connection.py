"""The connection against a scripted server: order, torn replies, deadlines, one write a turn, coming back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from featurestore.codecs import pack_records, record_dtype
from featurestore.errors import StoreDamaged, StoreError, StoreFull, StoreRefused, StoreUnavailable
from featurestore.users.batch_lookup import LookupReader
from featurestore.wire.connection import ServerConnection
from featurestore.wire.primary import Primary
from featurestore.wire.resp import ReplyError, encode, store_error
from tests.support.waiting import PATIENCE_S, wait_until_async

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
GREETING = b"+PONG\r\n+OK\r\n*1\r\n$6\r\nmaster\r\n"


class Script:
    """A server that greets, then does what `answer` says with what it reads.

    `seen` holds each piece that it read.
    """

    def __init__(self, answer: Answer, greeting: bytes = GREETING) -> None:
        self.answer = answer
        self.greeting = greeting
        self.seen: list[bytes] = []
        self.accepted = 0
        self.url = ""
        self._open: list[tuple[asyncio.StreamWriter, asyncio.Task[None] | None]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.append((writer, asyncio.current_task()))
        with contextlib.suppress(OSError):
            await reader.read(65536)
            writer.write(self.greeting)
            while data := await reader.read(65536):
                self.seen.append(data)
                await self.answer(data, writer)
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Script"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for writer, _ in self._open:
                writer.transport.abort()
            await asyncio.gather(*[task for _, task in self._open if task], return_exceptions=True)


@contextlib.asynccontextmanager
async def opened(script: Script, timeout_s: float = PATIENCE_S) -> AsyncIterator[ServerConnection]:
    """A connection; opened once more where a busy machine was slower than a short time."""

    async def connected() -> ServerConnection | None:
        connection = ServerConnection(Primary(script.url), timeout_s, "test")
        with contextlib.suppress(StoreUnavailable):
            await connection.open()
            return connection
        return None

    async with script.running():
        connection: ServerConnection = await wait_until_async(connected, "the connection is open")
        try:
            yield connection
        finally:
            await connection.close()


async def nothing(_: bytes, __: asyncio.StreamWriter) -> None:
    """Never answers."""


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


async def test_what_is_asked_in_one_turn_leaves_in_one_write() -> None:
    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b":1\r\n" * data.count(b"PING"))

    script = Script(answer)
    async with opened(script) as connection:
        futures = [connection.execute(encode(b"PING"), 1) for _ in range(50)]
        assert await asyncio.gather(*futures) == [[1]] * 50
        assert script.seen == [encode(b"PING") * 50]


async def test_replies_in_pieces_reach_whom_they_belong_to() -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in b":1\r\n-ERR no\r\n*2\r\n$1\r\na\r\n$-1\r\n:4\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with opened(Script(answer)) as connection:
        first, second = connection.execute(b"x", 1), connection.execute(b"y", 3)
        assert await first == [1]
        error, array, number = await second
        assert isinstance(error, ReplyError)
        assert (array, number) == ([b"a", None], 4)


async def test_a_late_answer_fails_everything_in_flight_and_is_never_mixed_up() -> None:
    script = Script(nothing)
    async with opened(script, timeout_s=0.1) as connection:
        calls = [connection.execute(b"x", 1) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailable) for result in results)

        async def fresh(_: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"+fresh\r\n")

        script.answer = fresh

        async def answered() -> list[bytes] | None:
            with contextlib.suppress(StoreUnavailable):
                return await connection.execute(b"x", 1)
            return None

        assert await wait_until_async(answered, "the connection comes back") == [b"fresh"]
        assert script.accepted >= 2


async def test_calls_that_read_their_own_replies_go_between_others() -> None:
    (record,) = pack_records(np.array([5]), np.ones((1, 1), dtype=np.float32))
    lookup = b"*2\r\n$1\r\n5\r\n$%d\r\n%b\r\n" % (len(record), record)

    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join([b":1\r\n" if byte == ord("x") else 2 * lookup for byte in data]))

    async with opened(Script(answer)) as connection:
        found = [(np.zeros(2, dtype=np.int64), np.zeros(2, dtype=record_dtype(1))) for _ in range(4)]
        readers = [LookupReader(*each) for each in found]
        first, second = (connection.execute(b"l", 2, reader=reader) for reader in readers[:2])
        other = connection.execute(b"x", 1)
        spare = LookupReader(np.zeros(2, dtype=np.int64), np.zeros(2, dtype=record_dtype(1)))
        cancelled = connection.execute(b"l", 2, reader=spare)
        behind, last = (connection.execute(b"l", 2, reader=reader) for reader in readers[2:])
        cancelled.cancel()
        assert (await first, await second, await other) == ([], [], [1])
        assert (await behind, await last) == ([], [])
        for n, records in found:
            assert (n.tolist(), [each.tobytes() for each in records]) == ([5, 5], [record, record])
