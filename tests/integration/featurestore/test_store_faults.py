"""The store dies, hangs, fills up, forgets its functions: nothing acknowledged is missing, and it comes
back.
"""

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis

from featurestore.errors import StoreUnavailable
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import opened, rating
from tests.support.servers import StoreServer
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.fault


async def takes_ratings(store: Store) -> bool:
    try:
        await store.ratings.append([rating("probe", "probe")])
    except StoreUnavailable:
        return False
    return True


async def test_no_acknowledged_rating_is_missing_after_kills(own_server: StoreServer) -> None:
    async with opened(own_server) as store:
        acknowledged: list[tuple[str, str, float]] = []
        stop = asyncio.Event()

        async def rate(user: str) -> None:
            count = 0
            while not stop.is_set():
                item, value = f"{user}-{count}", 1.0 + count % 5
                try:
                    await store.ratings.append([rating(user, item, value)])
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
                else:
                    acknowledged.append((user, item, value))
                    count += 1

        raters = [asyncio.create_task(rate(f"u{n}")) for n in range(8)]
        for _ in range(3):
            seen = len(acknowledged)
            await wait_until_async(lambda seen=seen: len(acknowledged) > seen + 100, "ratings are taken")  # type: ignore[misc]
            own_server.kill()
            own_server.start()
        await wait_until_async(lambda: store.hot is not None and store.hot.connected, "it is back, too")
        stop.set()
        await asyncio.gather(*raters)
    async with opened(own_server) as store:
        items = store.items(1)
        await items.refresh()
        found: set[tuple[str, str, float]] = set()
        for n in range(8):
            _, history = await store.users.history(1, b"u%d" % n)
            rated = zip(history.item_row, history.rating, strict=True)
            found |= {(f"u{n}", items.id(row), value) for row, value in rated}
        assert set(acknowledged) <= found
        # Each acknowledged rating is an event for the trainer too.
        assert sum((await store.stream.lag(1)).values()) >= len(acknowledged)


async def test_a_store_that_was_started_again_confirms_nothing_of_before(own_server: StoreServer) -> None:
    """It would say that its disk has all, whether or not it lost what it had not synced."""
    settings = StoreSettings(url=own_server.url, partitions=4, timeout_s=5.0, durability="fsync")
    store = await Store.open(settings)
    since = store.confirmation.begin()
    await store.confirmation.wait(since)
    own_server.kill()
    own_server.start()

    async def back() -> bool:
        with contextlib.suppress(StoreUnavailable):
            await store.confirmation.wait(store.confirmation.begin())
            return True
        return False

    await wait_until_async(back, "the store confirms again")
    with pytest.raises(StoreUnavailable, match="went away"):
        await store.confirmation.wait(since)
    await store.close()


async def test_a_store_that_hangs_is_unavailable(own_server: StoreServer) -> None:
    async with opened(own_server, timeout_s=0.1) as store:
        own_server.pause()
        try:
            calls = [store.ratings.append([rating(f"u{n}", "a")]) for n in range(20)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, StoreUnavailable) for result in results)
            with pytest.raises(StoreUnavailable):
                await store.users.history(1, b"u")
        finally:
            own_server.resume()
        await wait_until_async(lambda: takes_ratings(store), "the store takes ratings again")


async def test_a_read_only_replica_is_left_until_it_is_a_master(own_server: StoreServer) -> None:
    async with opened(own_server) as store, Redis.from_url(own_server.url) as administrator:
        await administrator.replicaof("127.0.0.1", 1)

        async def away() -> bool:
            return not await takes_ratings(store) and not store.bulk.connected

        await wait_until_async(away, "the replica is left")
        await administrator.replicaof("NO", "ONE")
        await wait_until_async(lambda: takes_ratings(store), "the master is found again")


async def test_a_store_that_lost_everything_is_set_up_again(own_server: StoreServer) -> None:
    async with opened(own_server) as store:
        await store.ratings.append([rating("u", "a"), rating("u", "b")])
        own_server.kill()
        for path in own_server.folder.rglob("*.aof*"):
            path.unlink()
        own_server.start()
        await wait_until_async(lambda: takes_ratings(store), "the empty store takes ratings")
        await store.ratings.append([rating("u", "b", 5.0)])
        n, history = await store.users.history(1, b"u")
        items = store.items(1)
        await items.refresh()
        assert (n, [items.id(row) for row in history.item_row]) == (1, ["b"])
