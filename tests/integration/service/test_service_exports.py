"""What takes everything out: whole, or cut off; in pages of bounded size, and so many at a time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import aiohttp
import msgspec
import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.search import UserSearch
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish, rating
from tests.support.serving import is_problem, serving
from tests.support.waiting import wait_until_async


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


async def test_an_export_is_whole_in_small_pages_or_cut_off(
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

    async def replaced() -> None:
        epoch = await store.epochs.begin()
        await store.items(epoch).register([b"item-0"])
        await publish(store, await lead(store), epoch=epoch, n_items=1)
        await store.epochs.finish(epoch)
        await store.generations.remove_epoch(1)

    async with serving(store_settings) as (client, _):
        reply = await client.get("/export/ratings")
        lines = [(line["user_id"], line["item_id"]) for line in map(json.loads, reply.text.splitlines())]
        assert sorted(lines) == sorted({*given, ("ann", "item-0")})
        # Also of one user.
        assert max(sizes) <= 7
        after(10, monkeypatch, replaced)
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
        # What has ended, be it by its client, leaves its place.
        running.pop().cancel()
        go_on.set()
        assert (await running[0]).status == 200
        await wait_until_async(lambda: not app[CONTEXT].exports.locked(), "there is a place")
        assert (await client.get("/export/ratings")).status == 200
