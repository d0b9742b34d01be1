"""More than a worker can take, and clients that hold on to what they get: memory is bounded, the others are
served.
"""

import asyncio
import contextlib
import json
import socket

import pytest

from featurestore.settings import StoreSettings
from service.context import CONTEXT
from service.http import response as answers
from tests.support.factories import Written
from tests.support.serving import Client, Reply, hold, is_problem, serves, serving
from tests.support.waiting import wait_until_async

ONE = "/predict?user_id=ann&item_id=item-1"


def port_of(client: Client) -> int:
    return int(client.url.rpartition(":")[2])


async def refusals(calls: list[asyncio.Task[Reply]], count: int) -> None:
    """Wait until so many calls are answered, which is that they were refused."""
    await wait_until_async(lambda: sum(call.done() for call in calls) == count, f"{count} are refused")
    for call in calls:
        assert not call.done() or is_problem(call.result(), 503, "overloaded")


PAIRS = json.dumps({"pairs": [["ann", "item-1"]] * 5_000}).encode()
RATINGS = json.dumps([{"user_id": "ann", "item_id": f"item-{row % 8}", "rating": 3} for row in range(2_000)])


@pytest.mark.parametrize(
    ("path", "held"),
    [("/predict", ("users", "current_distinct")), ("/ratings", ("ratings", "append_columns"))],
)
async def test_large_calls_that_are_too_many_are_refused_at_once_and_others_are_served(
    store_settings: StoreSettings,
    published: Written,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    held: tuple[str, str],
) -> None:
    body = PAIRS if path == "/predict" else RATINGS.encode()
    size = len(body)
    limits = {"large_bytes": 1, "batch_waiting_bytes": 3 * size, "import_waiting_bytes": 3 * size}
    async with serving(store_settings, **limits) as (client, app):
        await serves(client, published.writer.number)
        with monkeypatch.context() as patch:
            may_go_on = hold(app, *held, patch)
            calls = [asyncio.create_task(client.post(path, body)) for _ in range(12)]
            await refusals(calls, 7)
        # Small calls do not wait for the large ones, which are as many as may be.
        small = json.dumps({"pairs": [["ann", "item-1"]] * 10})
        assert (await client.post("/predict", small.encode())).status == 200
        may_go_on.set()
        replies = await asyncio.gather(*calls)
        assert sorted(reply.status for reply in replies) == [200] * 5 + [503] * 7
        assert app[CONTEXT].counts.overloads == 7
        assert (await client.post(path, body)).status == 200


async def test_a_client_that_does_not_read_is_dropped(
    store_settings: StoreSettings, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "READ_WITHIN_S", 0.3)
    body = json.dumps({"user_id": "ann", "item_ids": ["item-1"] * 10_000}).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asking = head + b"Content-Length: %d\r\n\r\n%b"
    async with serving(store_settings) as (client, _):
        await serves(client, published.writer.number)
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", port_of(client)))
        requests = asking % (len(body), body) * 40
        sending = asyncio.create_task(loop.sock_sendall(slow, requests))
        await wait_until_async(lambda: answers.unsent.held_bytes > 0, "answers wait for the client")
        assert await loop.sock_recv(slow, 1) == b"H"
        await wait_until_async(lambda: answers.unsent.held_bytes == 0, "the client is dropped")
        assert (await client.get(ONE)).status == 200
        text = b""
        with contextlib.suppress(OSError):
            while part := await loop.sock_recv(slow, 1 << 20):
                text += part
        # What the kernel had of it, and not the rest.
        assert text.count(b"HTTP/1.1 200 OK") < 40
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        slow.close()
