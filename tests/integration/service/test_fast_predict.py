"""GET /predict over raw sockets: a client cannot tell the fast path from the service without it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from featurestore.settings import StoreSettings
from service.context import CONTEXT
from service.http.connection import Connection
from service.server import fast_predict, worker
from service.server.fast_predict import FastConnection
from tests.support.factories import Written
from tests.support.serving import BOTH_WAYS, Client, Served, hold, serving
from tests.support.waiting import wait_until_async

ROUTE = "/predict"


@dataclass
class Ways:
    """The fast connections that were made, and how many answers they wrote past aiohttp's tasks."""

    fast: bool
    made: list[FastConnection] = field(default_factory=list)
    answers: int = 0

    def took(self, count: int) -> bool:
        """Whether so many answers went the fast way, where there is one."""
        return self.answers == count if self.fast else not self.made


@pytest.fixture
def ways(fast: bool, monkeypatch: pytest.MonkeyPatch) -> Ways:
    seen = Ways(fast)

    class Seen(FastConnection):
        __slots__ = ()

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            seen.made.append(self)

        def write_answer(self, *args: Any) -> None:
            seen.answers += 1
            super().write_answer(*args)

    monkeypatch.setattr(fast_predict, "FastConnection", Seen)
    return seen


@dataclass(frozen=True)
class Heard:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")

    def without_ids(self) -> tuple[int, dict[str, str], bytes]:
        """What two services say alike."""
        headers = {name: value for name, value in self.headers.items() if name != "date"}
        body = re.sub(rb'"request_id":"[0-9a-f]{16}"', b"", self.body)
        if body != self.body:
            del headers["x-request-id"]
        return self.status, headers, body

    @property
    def rating(self) -> float:
        return float(json.loads(self.body)["rating"])


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def heard(self, *, head_alone: bool = False) -> Heard:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        length = 0 if head_alone else int(headers.get("content-length", 0))
        body = await self.reader.readexactly(length)
        return Heard(int(status.split(" ")[1]), headers, body)

    async def closed(self) -> bool:
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@contextlib.asynccontextmanager
async def wire_to(client: Client) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def get(
    item: int | str = 1, *headers: str, user: str = "ann", method: str = "GET", http: str = "1.1"
) -> bytes:
    lines = [f"{method} /predict?user_id={user}&item_id=item-{item} HTTP/{http}", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def named(number: int) -> str:
    return f"X-Request-ID: r{number}"


@BOTH_WAYS
async def test_answers_are_in_order(ways: Ways, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client, app = served
    gate = hold(app, "users", "lookup", monkeypatch)
    async with wire_to(client) as wire:
        wire.send(get(0, named(0)))
        await wait_until_async(lambda: app[CONTEXT].traffic.in_flight == 1, "a request is in flight")
        wire.send(get(1, named(1)) + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: r2\r\n\r\n")
        rest = get(3, named(3)) + get(4, named(4), method="HEAD") + get(5, named(5))
        wire.send(rest[:40])
        if ways.fast:
            await wait_until_async(lambda: any(each.held for each in ways.made), "bytes are held back")
        assert app[CONTEXT].traffic.in_flight == 1
        gate.set()
        wire.send(rest[40:])
        heard = [await wire.heard(head_alone=number == 4) for number in range(6)]
        assert [each.request_id for each in heard] == [f"r{number}" for number in range(6)]
        assert {each.status for each in heard} == {200}
        assert heard[0].rating != heard[1].rating != heard[3].rating != heard[5].rating
        # The connection is as it was before.
        before = ways.answers
        wire.send(get(1))
        assert (await wire.heard()).rating == heard[1].rating
        assert ways.took(before + 1)


BODY = b'{"user_id":"ann","item_id":"item-1"}'
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
POST += b"Content-Length: %d\r\n\r\n"
ASKED: list[tuple[bytes, bool, int]] = [
    (get(2), True, 200),
    (get("none", user="bob"), True, 200),
    (get(2, "X-Request-ID: a b"), True, 200),
    (get(1, http="1.0"), False, 401),
    (get(1, "Connection: keep-alive", http="1.0"), True, 401),
    (get(1, "Connection: close"), False, 200),
    (get(1, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"), True, 200),
    (get(1, "Content-Length: 3") + b"abc", True, 200),
    (get(1, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n", True, 200),
    (b"GET /predict?item=item-1&user=a%6en HTTP/1.1\r\nHost: localhost\r\n\r\n", True, 200),
    (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", True, 404),
    (POST % len(BODY) + BODY, True, 200),
    (get(1, "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n", False, 400),
    (get(1, "Host: y"), False, 400),
    (get(1, "X-A : b"), False, 400),
    (get(1, "X-A: b\r\n c"), False, 400),
    (get(1, "Content-Length: -1"), False, 400),
    (get("1" * 9000), False, 400),
    (get("1 x"), False, 400),
    (get(1).replace(b"&item_id=item-1", b""), True, 400),
    (get(1, user="a" * 600), True, 400),
]


async def test_every_answer_is_the_same_both_ways(
    store_settings: StoreSettings, published: Written, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    both: list[list[Heard]] = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(worker, "fast_connections", lambda context: Connection)
        heard: list[Heard] = []
        both.append(heard)
        async with serving(store_settings, live=published.writer.number) as (client, app):
            for request, stays, status in ASKED:
                async with wire_to(client) as wire:
                    wire.send(get(1, named(7)))
                    heard.append(await wire.heard())
                    # In more than one piece.
                    for part in (request[:60], request[60:120], request[120:]):
                        wire.send(part)
                        await wire.writer.drain()
                    heard.append(await wire.heard())
                    assert heard[-1].status == status, request[:80]
                    if status == 400:
                        assert heard[-1].request_id == json.loads(heard[-1].body)["request_id"]
                    if stays:
                        wire.send(get(1))
                        heard.append(await wire.heard())
                    else:
                        assert await wire.closed()
            # The first request of each connection goes the fast way, and the last one.
            assert ways.answers >= len(ASKED) + sum(stays for _, stays, _ in ASKED)
            counts, right = app[CONTEXT].counts, sum(each.status == 200 for each in heard)
            assert counts.requests[ROUTE]["200"] == counts.predictions == right
            assert app[CONTEXT].traffic.in_flight == 0
    fast_ones, plain_ones = ([each.without_ids() for each in heard] for heard in both)
    assert fast_ones == plain_ones
    assert both[0][0].request_id == "r7"
