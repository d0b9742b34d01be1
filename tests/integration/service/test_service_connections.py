"""What a client may send over a connection, byte by byte."""

import asyncio
import contextlib
import json
import re
import socket

import pytest

from featurestore.settings import StoreSettings
from service.context import CONTEXT
from service.http import connection
from service.server.worker import Places
from tests.support.factories import Written
from tests.support.serving import BOTH_WAYS, Client, serving
from tests.support.waiting import wait_until_async

PREDICT = b"GET /predict?user_id=ann&item_id=item-1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
ITEM = b"GET /items/item-1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"user_id":"ann","item_id":"item-1"}'
WHOLE = POST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def chunks(*parts: bytes, extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in (*parts, b""))


async def said(client: Client, *packets: bytes, half_close: bool = False) -> list[int]:
    """The states of all answers until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    with contextlib.suppress(ConnectionError):
        for packet in packets:
            writer.write(packet)
            await writer.drain()
        if half_close:
            writer.write_eof()
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            found += part
    writer.close()
    return [int(state) for state in re.findall(rb"HTTP/1\.1 (\d{3}) ", found)]


@BOTH_WAYS
@pytest.mark.parametrize(
    "asked", [PREDICT, WHOLE, ITEM, PREDICT * 3, PREDICT + ITEM + PREDICT, CHUNKED + chunks(BODY)]
)
async def test_a_client_that_closes_its_half_gets_its_answers(client: Client, asked: bytes) -> None:
    count = asked.count(b"HTTP/1.1")
    assert await said(client, asked, half_close=True) == [200] * count
    assert await said(client, asked, b"GET /pre", half_close=True) == [200] * count


async def test_a_body_that_its_client_ends_early_is_answered(client: Client) -> None:
    assert await said(client, WHOLE[:-3], half_close=True) == [400]
    assert await said(client, half_close=True) == []


@BOTH_WAYS
@pytest.mark.parametrize("asked", [PREDICT, WHOLE, ITEM, PREDICT * 3, CHUNKED + chunks(BODY)])
@pytest.mark.parametrize("rubbish", [b"\x00\x01 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_was_whole_is_answered_before_rubbish(
    client: Client, asked: bytes, rubbish: bytes
) -> None:
    answered = [200] * asked.count(b"HTTP/1.1")
    assert await said(client, asked + rubbish) == [*answered, 400]
    assert await said(client, asked + rubbish, half_close=True) == [*answered, 400]


LINE = b"X-Filler: %b\r\n" % (b"a" * 7_900)


@pytest.mark.parametrize(
    "asked",
    [
        PREDICT.replace(b"1.1", b"2.0"),
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunks(BODY),
        PREDICT[:-2] + LINE * 3 + b"\r\n",
        PREDICT[:-2] + LINE * 60,
        WHOLE + PREDICT[:-2] + LINE * 6,
        CHUNKED + chunks(BODY, extension=b";a=" + b"b" * 70_000),
        CHUNKED + chunks(BODY)[:-2] + LINE * 6,
        CHUNKED + b"nonsense\r\n",
    ],
    ids=["version", "encoding", "head", "endless head", "second head", "extension", "trailers", "chunk"],
)
async def test_what_is_too_large_or_not_spoken_is_refused(client: Client, asked: bytes) -> None:
    answers = await said(client, asked)
    # Where more comes than the service has read, the connection is reset.
    assert answers in ([200] * asked.startswith(WHOLE) + [400], [])
    pieces = [asked[start : start + 1_000] for start in range(0, len(asked), 1_000)]
    assert (await said(client, *pieces))[-1:] in ([400], [])
    if len(asked) < connection.HEAD_BYTES:
        assert answers


async def test_a_head_of_16_kb_is_taken(client: Client) -> None:
    head = PREDICT[:-2] + LINE + LINE + b"Connection: close\r\n\r\n"
    assert connection.HEAD_BYTES - 500 < len(head) < connection.HEAD_BYTES
    assert await said(client, head) == [200]
    assert await said(client, head[:5_000], head[5_000:]) == [200]


async def test_extensions_of_chunks_count_as_the_body_does(
    store_settings: StoreSettings, published: Written
) -> None:
    async with serving(store_settings, live=published.writer.number, body_bytes=100_000) as (client, _):
        parts = [bytes([byte]) for byte in BODY.ljust(100)]
        body = CHUNKED.replace(b"Host", b"Connection: close\r\nHost")
        assert await said(client, body + chunks(*parts)) == [200]
        assert await said(client, body + chunks(*parts, extension=b";a=" + b"b" * 2_000)) == [413]


async def test_a_large_body_goes_through_and_the_next_request_too(client: Client) -> None:
    body = (
        json.dumps({"pairs": [["ann", "item-1"]] * 10_000, "user_id": None})
        .replace(', "user_id": null', "")
        .encode()
    )
    last = PREDICT.replace(b"Host", b"Connection: close\r\nHost")
    sized = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    cut = [body[start : start + 700] for start in range(0, len(body), 700)]
    assert await said(client, (sized + CHUNKED + chunks(*cut)) * 2 + PREDICT * 100 + last) == [200] * 105


async def test_a_head_that_takes_too_long_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    assert await said(client, WHOLE + PREDICT + PREDICT[:40]) == [200, 200, 408]
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(PREDICT[:30])
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_connections_are_bounded(store_settings: StoreSettings, published: Written) -> None:
    live = published.writer.number
    async with serving(store_settings, live=live, address_connections=4) as (client, app):
        idle = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(3)]
        traffic = app[CONTEXT].traffic
        await wait_until_async(lambda: traffic.connections == 4, "all are open")
        assert await said(client) == [429]
        for each in idle:
            each.close()
        await wait_until_async(lambda: traffic.connections == 1, "they are closed")
        assert await said(client, PREDICT, half_close=True) == [200]


def test_one_address_does_not_take_all_places_and_a_proxy_may() -> None:
    places = Places(6, 2, "10.0.0.1".__eq__)
    for peer in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "fe80::1", "fe80::2"):
        assert places.take(peer) is None
    refused = places.take("fe80::3")
    assert refused is not None
    assert refused.code == "quota_exceeded"
    places.leave("fe80::3")
    assert places.take("::ffff:1.2.3.4") is None
    refused = places.take("10.0.0.1")
    assert refused is not None
    assert refused.code == "overloaded"
