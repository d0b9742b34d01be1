"""What takes everything out: whole, or cut off; in pages of bounded size, and so many at a time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress

import aiohttp
import msgspec
import pytest
from yarl import URL

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.search import UserSearch
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish, rating
from tests.support.serving import is_problem, serving
from tests.support.waiting import wait_until_async

Meanwhile = Callable[[Store], Awaitable[object]]


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


async def replace_the_history(store: Store) -> None:
    epoch = await store.epochs.begin()
    await store.items(epoch).register([b"item-0"])
    await publish(store, await lead(store), epoch=epoch, n_items=1)
    await store.epochs.finish(epoch)
    await store.generations.remove_epoch(1)


async def become_another_store(store: Store) -> None:
    await store.redis.hset(store.keys.config, "identity", b"0" * 32)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("meanwhile", [replace_the_history, become_another_store])
async def test_an_export_whose_history_is_gone_is_cut_off(
    store_settings: StoreSettings,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Meanwhile,
) -> None:
    await store.ratings.append([rating(f"u{n}", "item-1") for n in range(40)])
    async with serving(store_settings) as (client, _):
        assert len((await client.get("/export/ratings")).text.splitlines()) == 41
        after(10, monkeypatch, lambda: meanwhile(store))
        monkeypatch.setattr("service.routes.exporting._LINES_AT_ONCE", 7)
        with pytest.raises(aiohttp.ClientError):
            await client.get("/export/ratings")


async def test_exports_are_few_at_a_time(
    store_settings: StoreSettings, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()
    after(1, monkeypatch, go_on.wait)
    async with serving(store_settings) as (client, app):
        running = [asyncio.create_task(client.get("/export/ratings")) for _ in range(2)]
        await wait_until_async(app[CONTEXT].exports.locked, "both run")
        for path in ("/export/ratings", "/export/users", "/export/items"):
            assert is_problem(await client.get(path), 503, "overloaded")
        go_on.set()
        assert [reply.status for reply in await asyncio.gather(*running)] == [200, 200]
        # What has ended, be it by its client, leaves its place.
        go_on.clear()
        gone = asyncio.create_task(client.get("/export/ratings"))
        await wait_until_async(lambda: app[CONTEXT].traffic.in_flight == 1, "it runs")
        gone.cancel()
        go_on.set()
        assert (await client.get("/export/ratings")).status == 200


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_client_that_goes_away_or_does_not_read_is_no_mistake(
    store_settings: StoreSettings,
    store: Store,
    published: Written,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    leaves: bool,
) -> None:
    monkeypatch.setattr("service.routes.exporting._LINES_AT_ONCE", 7)
    # More at a time than what a connection holds that is not read.
    monkeypatch.setattr("service.routes.exporting._encoded", lambda page: len(page) * b"x" * 2**20)
    if not leaves:
        monkeypatch.setattr("service.routes.exporting.READ_WITHIN_S", 0.3)
    await store.ratings.append([rating("ann", f"item-{n}") for n in range(30)])
    async with serving(store_settings) as (client, app):
        context = app[CONTEXT]
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(client.url).port, limit=1_000)
        writer.write(b"GET /export/ratings HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        if leaves:
            writer.transport.abort()
        await wait_until_async(lambda: context.traffic.in_flight == 0, "the export has ended")
        if not leaves:
            # It was cut off, so that no client takes a part for all.
            got = b""
            with suppress(ConnectionError):
                while part := await reader.read(2**20):
                    got = part
            assert not got.endswith(b"0\r\n\r\n")
            writer.close()
        assert context.counts.exceptions == 0
        assert not [each for each in caplog.records if each.exc_info or each.levelname == "ERROR"]
        assert (await client.get("/livez")).status == 200


async def test_a_page_of_an_export_has_so_many_ratings_also_of_one_user(
    store_settings: StoreSettings, store: Store, published: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.exporting._LINES_AT_ONCE", 7)
    sizes: list[int] = []

    def counted(page: Sequence[msgspec.Struct]) -> bytes:
        sizes.append(len(page))
        return msgspec.json.Encoder().encode_lines(page)

    monkeypatch.setattr("service.routes.exporting._encoded", counted)
    given = {("long", f"item-{n}") for n in range(30)} | {(f"u{n}", "item-1") for n in range(30)}
    await store.ratings.append([rating(user, item) for user, item in given])
    async with serving(store_settings) as (client, _):
        reply = await client.get("/export/ratings")
    lines = [(line["user_id"], line["item_id"]) for line in map(json.loads, reply.text.splitlines())]
    assert sorted(lines) == sorted({*given, ("ann", "item-0")})
    assert max(sizes) <= 7
