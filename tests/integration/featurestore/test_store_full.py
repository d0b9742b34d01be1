"""A store at its `maxmemory`: what would grow is refused whole, what leads and what frees goes on, and so do
reads.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from featurestore.commands import Outcome
from featurestore.errors import StoreFull
from featurestore.generations.follower import Follower
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
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.fault


@asynccontextmanager
async def full(store: Store) -> AsyncIterator[None]:
    """The store has no memory left for the length of a `with`."""
    await store.redis.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        await store.redis.config_set("maxmemory", "0")


async def test_what_would_grow_is_refused_whole(own_server: StoreServer) -> None:
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


async def test_what_leads_goes_on(own_server: StoreServer, tmp_path: Path) -> None:
    async with opened(own_server) as store:
        lease = await lead(store, "one")
        before = await publish(store, lease)
        await publish(store, lease)
        ready = await write_generation(store, lease)
        follower = Follower(store, tmp_path / "cache", "worker")
        async with full(store):
            await lease.renew()
            await lease.release()
            second = await lead(store, "two")
            assert second.fence > lease.fence
            await store.generations.claim_deltas(second, 1, before.writer.number)
            await store.generations.activate(before.writer.number, hold=True)
            await store.generations.activate(ready.writer.number, hold=False)
            command = await store.commands.ask("erase", epoch=1, user=b"ann")
            await store.commands.report(second, command, Outcome("done"))
            assert await store.commands.outcome(command) == Outcome("done")
            (taken,) = await store.commands.take("0", 0)
            await store.commands.drop(taken.stream_id)
            # A worker is heard, and one that starts or comes back finds the store as it was.
            await follow_once(follower)
            assert [worker.id for worker in await store.generations.workers()] == ["worker"]
            async with opened(own_server) as other:
                assert (await other.generations.live()).generation == ready.writer.number


async def follow_once(follower: Follower) -> None:
    """Follow until the worker serves what is live."""
    stop = asyncio.Event()
    following = asyncio.create_task(follower.run(stop))
    try:
        await wait_until_async(lambda: follower.live is not None, "a generation is served")
    finally:
        # Cancelled, not stopped: one that stops takes its beat back.
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_what_frees_goes_on(own_server: StoreServer) -> None:
    async with opened(own_server) as store:
        lease = await lead(store)
        written = await publish_for_ann(store, {"item-0": 5.0, "item-1": 2.0})
        older = await write_generation(store, lease)
        epoch = await store.epochs.begin()
        await store.ratings.append([rating("ben", "item-2")])
        async with full(store):
            events = await store.stream.read(1, lease, 100, 0)
            assert len(events) == 3
            await store.stream.done(1, lease, events.last)
            assert sum((await store.stream.lag(1)).values()) == 0
            forgotten = await store.ratings.forget(b"ann")
            assert forgotten.ratings == 2
            assert (await store.users.history(1, b"ann"))[0] == 0
            assert await store.generations.prune(lease) == {written.writer.number}
            assert older.writer.number not in [each.generation for each in await store.generations.list()]
            await store.epochs.abandon(epoch)
            assert (await store.generations.live()).pending == 0
            assert await store.ratings.release_forgotten(1, {forgotten.digest: forgotten.n}) == 1
