"""The primary by scripted sentinels; what error replies mean; a late answer is never another call's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from featurestore.confirmation import SILENT_S, online
from featurestore.errors import StoreDamaged, StoreError, StoreFull, StoreRefused, StoreUnavailable
from featurestore.wire.connection import ServerConnection
from featurestore.wire.primary import Primary
from featurestore.wire.resp import ReplyError, encode, store_error
from tests.support.scripted import listening
from tests.support.waiting import PATIENCE_S, retried

MASTER = encode(b"SENTINEL", b"MASTER", b"main")


def says(port: int, version: int, flags: str = "master") -> bytes:
    fields = {"ip": "10.0.0.1", "port": str(port), "flags": flags, "config-epoch": str(version)}
    return encode(*[part.encode() for pair in fields.items() for part in pair])


@dataclass
class Sentinel:
    """Answers PING, AUTH and what it is asked of the primary; with `reply` None it hangs up."""

    reply: bytes | None
    password: bytes | None = None
    seen: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = self.password is None
        while data := await reader.read(65536):
            self.seen.append(data)
            if data.endswith(MASTER):
                if self.reply is None:
                    break
                writer.write(self.reply)
            elif b"AUTH" in data:
                known = self.password is not None and self.password in data
                writer.write(b"+OK\r\n" if known else b"-WRONGPASS no\r\n")
            else:
                writer.write(b"+PONG\r\n" if known else b"-NOAUTH Authentication required.\r\n")


@contextlib.asynccontextmanager
async def asked(*sentinels: Sentinel, login: str = "") -> AsyncIterator[Primary]:
    async with contextlib.AsyncExitStack() as ends:
        ports = [await ends.enter_async_context(listening(each.serve)) for each in sentinels]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        primary = Primary(f"redis+sentinel://{login}{hosts}/main/3")
        ends.callback(primary.close)
        yield primary


@pytest.fixture(autouse=True)
def _waits_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.wire.primary.ANSWER_S", PATIENCE_S)


async def test_the_newest_failover_counts() -> None:
    sentinels = [Sentinel(says(1, 4)), Sentinel(says(2, 5)), Sentinel(says(1, 4))]
    async with asked(*sentinels) as primary:
        assert primary.options["db"] == 3
        await primary.find()
        assert primary.address == ("10.0.0.1", 2)
        # One that was away says what was: nothing goes back.
        moves: list[int] = []
        primary.on_move(lambda: moves.append(1))
        sentinels[0].reply = sentinels[1].reply = None
        await primary.find()
        assert (primary.address, moves) == (("10.0.0.1", 2), [])
        sentinels[1].reply = says(3, 6)
        await primary.find()
        assert (primary.address, moves) == (("10.0.0.1", 3), [1])


@pytest.mark.parametrize(
    ("replies", "sure"),
    [
        ([says(1, 1)] * 3, True),
        ([says(1, 1), says(1, 1), None], True),
        ([says(1, 1), None, None], False),
        ([says(1, 1), says(1, 1), says(1, 1, "master,failover_in_progress")], False),
        ([says(1, 1), says(1, 1, "s_down,master"), None], False),
        ([says(1, 1), says(1, 1, "s_down,o_down,master"), says(1, 1)], False),
        # One of them has not heard of the newest failover yet: the others may be about to change.
        ([says(1, 1), says(2, 2), says(2, 2)], False),
        ([None] * 3, False),
    ],
)
async def test_only_most_sentinels_without_a_doubt_are_sure(replies: list[bytes | None], sure: bool) -> None:
    async with asked(*[Sentinel(reply) for reply in replies]) as primary:
        assert await primary.is_sure() is sure


async def test_a_sentinel_that_asks_for_a_password_gets_that_of_the_store() -> None:
    sentinel = Sentinel(says(7, 1), password=b"hunter2")
    async with asked(sentinel, login="foldin:hunter2@") as primary:
        await primary.find()
        assert primary.address == ("10.0.0.1", 7)
    # One that does not ask for it does not hear it.
    sentinel = Sentinel(says(7, 1))
    async with asked(sentinel, login="foldin:hunter2@") as primary:
        await primary.find()
        assert not any(b"hunter2" in data for data in sentinel.seen)


async def test_what_a_person_must_change_is_told() -> None:
    async with asked(Sentinel(b"-ERR No such master with that name\r\n")) as primary:
        with pytest.raises(StoreRefused, match="knows no primary 'main'"):
            await primary.find()
    async with asked(Sentinel(says(1, 1), password=b"x"), login="u:y@") as primary:
        with pytest.raises(StoreRefused, match="WRONGPASS"):
            await primary.find()
    async with asked(Sentinel(None)) as primary:
        with pytest.raises(StoreUnavailable, match="no sentinel of 127"):
            await primary.find()


def test_replicas_that_follow_are_counted() -> None:
    lines = [
        "role:master",
        "connected_slaves:4",
        "slave0:ip=10.0.0.2,port=6379,state=online,offset=9,lag=0",
        f"slave1:ip=10.0.0.3,port=6379,state=online,offset=9,lag={SILENT_S},type=replica",
        f"slave2:ip=10.0.0.4,port=6379,state=online,offset=2,lag={SILENT_S + 1}",
        "slave3:ip=10.0.0.5,port=6379,state=wait_bgsave,offset=0,lag=0",
        "master_failover_state:no-failover",
    ]
    assert online("\r\n".join(lines).encode()) == 2
    assert online(b"role:master\r\nconnected_slaves:0\r\n") == 0


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
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.read(65536)
        writer.write(GREETING)
        while await reader.read(65536):
            writer.write(self.reply)


async def test_a_late_answer_fails_everything_in_flight_and_is_never_mixed_up() -> None:
    server = Server()
    async with listening(server.serve) as port:

        async def opened() -> ServerConnection:
            connection = ServerConnection(Primary(f"redis://127.0.0.1:{port}"), 0.1, "test")
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
        assert server.connections >= 2
        await connection.close()
