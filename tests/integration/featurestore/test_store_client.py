"""The client of the cold paths: errors say what to do, nothing is sent twice, missing functions come back."""

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as LateReply

from featurestore.errors import StoreDamaged, StoreError, StoreUnavailable
from featurestore.store import Store
from tests.support.factories import opened
from tests.support.servers import StoreServer
from tests.support.waiting import wait_until_async


async def test_an_error_reply_says_what_to_do(store: Store) -> None:
    await store.redis.set("text", "x")
    with pytest.raises(StoreError, match="WRONGTYPE") as caught:
        await store.redis.hgetall("text")
    assert isinstance(caught.value, StoreDamaged)
    assert caught.value.key == "text"


async def test_a_call_whose_reply_is_late_is_not_sent_again(own_server: StoreServer) -> None:
    async with opened(own_server, timeout_s=0.1) as store, Redis.from_url(own_server.url) as other:
        await store.redis.ping()
        own_server.pause()
        try:
            with pytest.raises(StoreUnavailable):
                await store.redis.incr("counted")
        finally:
            own_server.resume()

        async def back() -> bool:
            return bool(await other.exists("counted")) and store.bulk.connected

        await wait_until_async(back, "the store has answered")
        assert await store.redis.get("counted") == b"1"


@pytest.mark.parametrize(
    "ends", [None, LateReply("no reply"), LostConnection("closed"), ResponseError("ERR")]
)
async def test_a_cancellation_that_redis_py_drops_is_raised_all_the_same(
    store: Store, ends: Exception | None
) -> None:
    """However the call ends that it came in: a loop that goes on after a failure would go on for ever."""

    async def drop() -> None:
        with contextlib.suppress(StoreError), store.redis.errors():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            if ends is not None:
                raise ends

    task = asyncio.create_task(drop())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
