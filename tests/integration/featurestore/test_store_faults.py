"""The store dies, hangs, fills up: nothing acknowledged is missing, what would grow is refused whole."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from redis.asyncio import Redis

from featurestore.commands import Outcome
from featurestore.errors import StoreFull, StoreUnavailable
from featurestore.generations.follower import Follower
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import (
    lead,
    make_draft,
    make_model,
    opened,
    publish,
    publish_for_ann,
    rating,
    write_generation,
)
from tests.support.servers import StoreServer
from tests.support.waiting import retried, wait_until_async

pytestmark = pytest.mark.fault


async def test_no_acknowledged_rating_is_missing_after_kills(own_server: StoreServer) -> None:
    acknowledged: list[tuple[str, str, float]] = []
    stop = asyncio.Event()
    async with opened(own_server) as store:

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

        async def rated() -> None:
            enough = len(acknowledged) + 100
            await wait_until_async(lambda: len(acknowledged) > enough, "ratings are taken")

        raters = [asyncio.create_task(rate(f"u{n}")) for n in range(8)]
        for _ in range(3):
            await rated()
            own_server.kill()
            own_server.start()
        await rated()
        await wait_until_async(lambda: store.hot is not None and store.hot.connected, "lookups are answered")
        stop.set()
        await asyncio.gather(*raters)
    async with opened(own_server) as store:
        items = store.items(1)
        await items.refresh()
        found: set[tuple[str, str, float]] = set()
        for n in range(8):
            _, history = await store.users.history(1, b"u%d" % n)
            pairs = zip(history.item_row, history.rating, strict=True)
            found |= {(f"u{n}", items.id(row), value) for row, value in pairs}
        assert set(acknowledged) <= found
        assert sum((await store.stream.lag(1)).values()) >= len(acknowledged)


async def test_a_store_that_was_started_again_confirms_nothing_of_before(own_server: StoreServer) -> None:
    """It would say that its disk has all, whether or not it lost what it had not synced."""
    settings = StoreSettings(url=own_server.url, partitions=4, durability="fsync", timeout_s=30.0)
    async with opened(settings) as store:
        await store.redis.function_flush()
        since = store.confirmation.begin()
        await store.confirmation.wait(since)
        own_server.kill()
        own_server.start()
        confirm = store.confirmation
        await retried(lambda: confirm.wait(confirm.begin()), "the store confirms again", StoreUnavailable)
        with pytest.raises(StoreUnavailable, match="went away"):
            await store.confirmation.wait(since)


async def test_a_store_that_hangs_is_unavailable_and_nothing_is_sent_again(own_server: StoreServer) -> None:
    impatient = StoreSettings(url=own_server.url, partitions=4, timeout_s=0.3)
    store = await retried(lambda: Store.open(impatient), "the store is open", StoreUnavailable)
    own_server.pause()
    try:
        calls = [store.ratings.append([rating(f"u{n}", "a")]) for n in range(20)]
        others = store.redis.incr("counted"), store.users.history(1, b"u")
        results = await asyncio.gather(*calls, *others, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailable) for result in results)
    finally:
        own_server.resume()
    given = [rating("probe", "probe")]
    await retried(lambda: store.ratings.append(given), "ratings are taken again", StoreUnavailable)
    await store.close()
    async with Redis.from_url(own_server.url) as other:
        assert await other.get("counted") in (None, b"1")


@asynccontextmanager
async def full(store: Store) -> AsyncIterator[None]:
    await store.redis.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        await store.redis.config_set("maxmemory", "0")


async def test_what_would_grow_a_full_store_is_refused_whole(own_server: StoreServer) -> None:
    async with opened(own_server) as store:
        written = await publish_for_ann(store, {"item-0": 5.0})
        lease = await lead(store)
        vectors = np.zeros((1, written.model.user_width), dtype=np.float32)
        growing: list[Callable[[], Awaitable[object]]] = [
            lambda: store.ratings.append([rating("ann", "item-1")]),
            lambda: store.ratings.append([rating("ann", "new")]),
            lambda: store.items(1).register([b"new"]),
            lambda: store.generations.begin(lease, make_draft(make_model()), {0: "1-1"}),
            lambda: written.writer.write_users([b"ann"], np.array([1]), vectors),
            store.epochs.begin,
        ]
        async with full(store):
            for attempt in growing:
                with pytest.raises(StoreFull, match="OOM") as refused:
                    await attempt()
                assert refused.value.reason == "store_memory"
            n, history = await store.users.history(1, b"ann")
            assert (n, history.rating.tolist()) == (1, [5.0])
            assert (await store.generations.live()).pending == 0
            assert await store.items(1).rows([b"new"]) == [None]
        for attempt in growing:
            await attempt()


async def test_what_leads_and_frees_a_full_store_goes_on(own_server: StoreServer) -> None:
    async with opened(own_server) as store:
        lease = await lead(store)
        older = await publish(store, lease)
        before = await publish_for_ann(store, {"item-0": 5.0, "item-1": 2.0})
        ready = await write_generation(store, lease)
        epoch = await store.epochs.begin()
        await store.ratings.append([rating("ben", "item-2")])
        async with full(store):
            await lease.renew()
            await lease.release()
            second = await lead(store, "two")
            assert second.fence > lease.fence
            await store.generations.claim_deltas(second, 1, before.writer.number)
            await store.generations.activate(older.writer.number, hold=True)
            await store.generations.activate(before.writer.number, hold=False)
            command = await store.commands.ask("erase", epoch=1, user=b"ann")
            await store.commands.report(second, command, Outcome("done"))
            (taken,) = await store.commands.take("0", 0)
            await store.commands.drop(taken.stream_id)
            # A worker that starts finds the store as it was, and is heard.
            follower = Follower(store, own_server.folder / "cache", "worker")
            following = asyncio.create_task(follower.run(asyncio.Event()))
            await wait_until_async(lambda: follower.live is not None, "a generation is served")
            # Cancelled, not stopped: one that stops takes its beat back.
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            assert [worker.id for worker in await store.generations.workers()] == ["worker"]
            # Events, users, generations and histories leave it.
            events = await store.stream.read(1, second, 100, 0)
            assert len(events) == 3
            await store.stream.done(1, second, events.last)
            assert sum((await store.stream.lag(1)).values()) == 0
            forgotten = await store.ratings.forget(b"ann")
            assert forgotten.ratings == 2
            assert await store.ratings.release_forgotten(1, {forgotten.digest: forgotten.n}) == 1
            assert ready.writer.number not in await store.generations.prune(second)
            await store.epochs.abandon(epoch)
            assert (await store.generations.live()).pending == 0
