"""What a key may give, a user may have, and a worker takes on at a time."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec
import pytest

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.histories import ANSWER_ENTRIES
from featurestore.users.search import UserSearch
from service.context import CONTEXT
from service.http import rating_limits
from service.http import response as answers
from tests.support.factories import Written, lead, publish, rating
from tests.support.serving import Client, Reply, Served, hold, is_problem, serves, serving
from tests.support.waiting import wait_until_async


def rows(n: int, user: str = "ann") -> list[dict[str, Any]]:
    return [{"user_id": user, "item_id": f"item-{row % 8}", "rating": 3} for row in range(n)]


async def stored(store: Store) -> tuple[int, object]:
    return await store.redis.llen(store.keys.order(1)), await store.stream.lag(1)


async def test_a_key_may_give_so_many_ratings_a_second_and_one_that_operates_any(
    store: Store, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(rating_limits, "monotonic", lambda: now)
    keys = {role: {"Authorization": f"Bearer {new_secret()}"} for role in ("rate", "operate")}
    for role, headers in keys.items():
        await store.access.add(headers["Authorization"].split()[1], role, role)  # type: ignore[arg-type]
    async with serving(store.settings, key_ratings=10) as (client, app):

        async def rate(n: int, role: str = "rate") -> Any:
            return await client.post("/ratings", rows(n), headers=keys[role])

        assert (await rate(8)).status == 200
        before = await stored(store)
        refused = await rate(5)
        assert is_problem(refused, 429, "quota_exceeded")
        assert refused.headers["Retry-After"] == "1"
        assert await stored(store) == before
        assert (await rate(50, "operate")).status == 200
        now += 1
        # A call that is larger than a bucket takes a full one, and is paid for by waiting.
        assert (await rate(25)).status == 200
        refused = await rate(1)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "2")
        # What only reads goes on; what a list shows is not kept.
        await serves(client, published.writer.number)
        assert (await client.get("/recommend/bob?n=2&impressions=true", headers=keys["rate"])).status == 200
        assert app[CONTEXT].counts.impressions_lost > 0


async def test_entries_are_bounded(store: Store, published: Written) -> None:
    async with serving(store.settings, history_entries=50) as (client, _):
        # One is there.
        assert (await client.post("/ratings", rows(40))).status == 200
        before = await stored(store)
        refused = await client.post("/ratings", [*rows(1, "bob"), *rows(10)])
        assert is_problem(refused, 422, "too_many_ratings", field="user_id", row=1)
        assert await stored(store) == before
        assert (await client.post("/ratings", rows(9))).status == 200
        assert (await client.ask("DELETE", "/ratings/ann/item-1")).status == 200


ONE = "/predict?user_id=ann&item_id=item-1"


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
    async with serving(store_settings, live=published.writer.number, **limits) as (client, app):
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


async def test_clients_that_read_nothing_are_dropped(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "READ_WITHIN_S", 0.3)
    body = json.dumps({"user_id": "ann", "item_ids": ["item-1"] * 10_000}).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asking = head + b"Content-Length: %d\r\n\r\n%b"
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, ("127.0.0.1", client.port))
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


def after(users: int, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """Have an export look at few keys at a time, and something happen once it has read so many users."""
    monkeypatch.setattr("featurestore.users.search._AT_ONCE", 8)
    every = UserSearch.all

    async def slowly(self: UserSearch, epoch: int) -> AsyncIterator[list[bytes]]:
        seen = 0
        async for user_ids in every(self, epoch):
            yield user_ids
            if seen < users <= seen + len(user_ids):
                await meanwhile()
            seen += len(user_ids)

    monkeypatch.setattr(UserSearch, "all", slowly)


async def test_exports_are_whole_or_cut(
    client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.exporting._LINES_AT_ONCE", 7)
    sizes: list[int] = []

    def counted(page: Sequence[msgspec.Struct]) -> bytes:
        sizes.append(len(page))
        return msgspec.json.Encoder().encode_lines(page)

    monkeypatch.setattr("service.routes.exporting._encoded", counted)
    given = {("long", f"item-{n}") for n in range(30)} | {(f"u{n}", "item-1") for n in range(30)}
    await store.ratings.append([rating(user, item) for user, item in given])

    async def replaced() -> None:
        epoch = await store.epochs.begin()
        await store.items(epoch).register([b"item-0"])
        await publish(store, await lead(store), epoch=epoch, n_items=1)
        await store.epochs.finish(epoch)
        await store.generations.remove_epoch(1)

    reply = await client.get("/export/ratings")
    lines = [(line["user_id"], line["item_id"]) for line in map(json.loads, reply.text.splitlines())]
    assert sorted(lines) == sorted({*given, ("ann", "item-0")})
    # Also of one user.
    assert max(sizes) <= 7
    after(10, monkeypatch, replaced)
    with pytest.raises(aiohttp.ClientError):
        await client.get("/export/ratings")


async def test_exports_are_few_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client, app = served
    go_on = asyncio.Event()
    after(1, monkeypatch, go_on.wait)
    running = [asyncio.create_task(client.get("/export/ratings")) for _ in range(2)]
    await wait_until_async(app[CONTEXT].exports.locked, "both run")
    for path in ("/export/ratings", "/export/users", "/export/items"):
        assert is_problem(await client.get(path), 503, "overloaded")
    # What has ended, be it by its client, leaves its place.
    running.pop().cancel()
    go_on.set()
    assert (await running[0]).status == 200
    await wait_until_async(lambda: not app[CONTEXT].exports.locked(), "there is a place")
    assert (await client.get("/export/ratings")).status == 200


ITEMS, LEFT = 2 * ANSWER_ENTRIES, 5


@pytest.mark.slow
async def test_calls_about_a_user_with_very_many_ratings(store: Store) -> None:
    ids = [f"item-{row}" for row in range(ITEMS)]
    await store.items(1).register([item.encode() for item in ids])
    rated = ids[:-LEFT]
    await store.ratings.append([rating("ann", item, 1.0 + row % 5) for row, item in enumerate(rated)])
    written = await publish(store, await lead(store), n_items=ITEMS)
    async with serving(store.settings, live=written.writer.number) as (client, _):
        for _ in range(2):
            # The first reads all and leaves a sample, the second reads that.
            best = (await client.get(f"/recommend/ann?n={LEFT + 5}")).json["items"]
            assert {item["item_id"] for item in best} == set(ids[-LEFT:])
            user = (await client.get("/users/ann")).json
            assert (user["ratings"], user["events"]) == (len(rated), len(rated))
            assert user["mean"] == sum(1.0 + row % 5 for row in range(len(rated))) / len(rated)
            page = (await client.get(f"/users/ann/ratings?n=2&offset={len(rated) - 2}")).json
            assert ([each["item_id"] for each in page["ratings"]], page["total"]) == (ids[1::-1], len(rated))
            explained = (await client.get(f"/explain/ann/{ids[-1]}")).json
            assert len(explained["parts"]) < ANSWER_ENTRIES
            total = explained["base"] + sum(part["contribution"] for part in explained["parts"])
            assert abs(total - explained["rating"]) < 1e-5
        # The oldest one is known to be there, and to be gone.
        assert (await client.ask("DELETE", "/ratings/ann/item-0")).status == 200
        assert (await client.ask("DELETE", "/ratings/ann/item-0")).status == 404
        assert (await client.get("/users/ann")).json["ratings"] == len(rated) - 1
        best = (await client.get(f"/recommend/ann?n={LEFT + 5}")).json["items"]
        assert {item["item_id"] for item in best} == {*ids[-LEFT:], "item-0"}
        assert (await client.ask("DELETE", "/users/ann")).json["ratings"] == len(rated) - 1
        assert (await client.get("/users/ann")).status == 404
