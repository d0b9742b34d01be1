"""From one history to the next: nothing acknowledged is lost or shown in the wrong one."""

import asyncio
import math
from typing import Any

import pytest

from featurestore.errors import EpochBusy, EpochGone, GenerationUnknown
from featurestore.keys import partition_of
from featurestore.store import Store
from tests.integration.featurestore.test_store_generations import a_read_waits
from tests.integration.featurestore.test_store_ratings import held
from tests.support.factories import keys_of, lead, opened, publish, rating, write_generation


async def test_a_new_history_takes_over(store: Store) -> None:
    lease = await lead(store)
    await store.ratings.append([rating("u", "old", 1.0)])
    old = await publish(store, lease, users=[b"u"])
    async with opened(store.settings) as other:
        began = await asyncio.gather(store.epochs.begin(), other.epochs.begin(), return_exceptions=True)
    assert {type(each) for each in began} == {int, EpochBusy}
    epoch = 2
    pointer = await store.generations.live()
    assert (pointer.epoch, pointer.pending) == (1, 2)
    assert pointer.pending_since > 1.6e9
    await store.ratings.append([rating("u", "given", 5.0)], epoch=epoch)
    assert await held(store, "u", 1) == {"old": 1.0}
    # A rating that comes in during the change goes to both.
    await store.ratings.append([rating("u", "loose", 3.0)])
    assert await held(store, "u", 1) == {"old": 1.0, "loose": 3.0}
    # One that is given never replaces one that came in since, be that taken back.
    await store.ratings.append([rating("u", "back", math.nan)])
    for _ in range(2):
        await store.ratings.append([rating("u", "loose", 1.0), rating("u", "back", 1.0)], epoch=epoch)
    assert await held(store, "u", 2) == {"given": 5.0, "loose": 3.0}
    assert await store.ratings.count_live(2) == 2
    await publish(store, lease, epoch=2)
    # A generation of the history before cannot come back.
    with pytest.raises(GenerationUnknown):
        await store.generations.activate(old.writer.number, hold=False)
    assert (await store.generations.live()).previous == 0
    await store.epochs.finish(2)
    await store.generations.remove_epoch(1)
    assert await keys_of(store, ".1:*") == []
    await store.ratings.append([rating("u", "after", 2.0)])
    assert await held(store, "u", 2) == {"given": 5.0, "loose": 3.0, "after": 2.0}
    assert await keys_of(store, ".1:*") == []
    assert (await store.generations.live()).pending == 0
    assert {summary.epoch for summary in await store.generations.list()} == {2}


async def test_an_abandoned_epoch_leaves_nothing(store: Store) -> None:
    lease = await lead(store)
    await publish(store, lease)
    epoch = await store.epochs.begin()
    await store.ratings.append([rating("u", "given")], epoch=epoch)
    await store.ratings.append([rating("v", "loose")])
    written = await write_generation(store, lease, epoch=epoch)
    assert len(await store.stream.read(epoch, lease, 100, 0)) == 2
    waiting = asyncio.create_task(store.stream.read(epoch, lease, 100, 60_000))
    await a_read_waits(store)
    await store.epochs.abandon(epoch)
    await store.epochs.abandon(epoch)
    with pytest.raises(EpochGone):
        await waiting
    assert await keys_of(store, f".{epoch}:*") == []
    with pytest.raises(EpochGone):
        await store.ratings.append([rating("u", "given")], epoch=epoch)
    with pytest.raises(GenerationUnknown):
        await written.writer.flip(automatic=False)
    await store.ratings.append([rating("v", "loose", 4.0)])
    assert await held(store, "v", 1) == {"loose": 4.0}
    assert await keys_of(store, f".{epoch}:*") == []
    # A service that died half-way: the epoch was allotted, one partition was switched, then nothing came.
    keys, next_one = store.keys, epoch + 1
    assert await store.redis.call("begin_epoch", ([keys.live, keys.stored], [])) == [[b"OK", next_one]]
    await store.redis.hset(keys.items(next_one), b"", b"")
    switched = [keys.epochs(0), keys.counts(1, 0)], [b"1", b"1,%d" % next_one]
    await store.redis.call("switch_epochs", switched)
    raters = [rating(f"u{n}", "a") for n in range(20)]
    await store.ratings.append(raters)
    await store.epochs.abandon(next_one)
    assert await keys_of(store, f".{next_one}:*") == []
    await store.ratings.append(raters)
    assert [(await store.users.history(1, b"u%d" % n))[0] for n in range(20)] == [2] * 20
    assert (await store.generations.live()).pending == 0
    # A number is given once.
    assert await store.epochs.begin() == epoch + 2


async def test_users_who_are_forgotten_meanwhile_are_not_given_to_the_new_history(store: Store) -> None:
    await store.ratings.append([rating("ann", "a", 1.0), rating("bob", "a", 1.0), rating("cy", "a", 1.0)])
    epoch = await store.epochs.begin()
    await store.ratings.append([rating("bob", "a", 2.0)], epoch=epoch)
    for user in (b"ann", b"bob", b"never seen"):
        await store.ratings.forget(user)
    await store.ratings.append([rating("ann", "b", 4.0)])
    given = [rating(user, item, 5.0) for user in ("ann", "bob", "cy", "never seen") for item in "ab"]
    await store.ratings.append(given, epoch=epoch)
    for name, kept in (("ann", {"b": 4.0}), ("bob", {}), ("cy", {"a": 5.0, "b": 5.0}), ("never seen", {})):
        assert await held(store, name, epoch) == kept


async def test_ratings_keep_coming_through_a_whole_change(store: Store) -> None:
    async with opened(store.settings) as other:
        lease = await lead(store)
        await publish(store, lease)
        acknowledged: dict[str, float] = {}
        stop = asyncio.Event()
        began = asyncio.Event()

        async def rate(of: Store, name: str) -> None:
            count = 0
            while not stop.is_set():
                item = f"{name}-{count}"
                since = began.is_set()
                await of.ratings.append([rating("u", item, 1.0 + count % 5)])
                if since:
                    acknowledged[item] = 1.0 + count % 5
                count += 1

        raters = [asyncio.create_task(rate(of, name)) for of, name in ((store, "a"), (other, "b"))]
        epoch = await store.epochs.begin()
        began.set()
        await store.ratings.append([rating("u", f"given-{n}") for n in range(20)], epoch=epoch)
        await publish(store, lease, epoch=epoch)
        await store.epochs.finish(epoch)
        await store.generations.remove_epoch(1)
        stop.set()
        await asyncio.gather(*raters)
        found = await held(store, "u", epoch)
        assert acknowledged.items() <= found.items()
        assert len(acknowledged) > 2
        assert await keys_of(store, ".1:*") == []
        # A process that has heard of no change forgets in the history that is live.
        await other.ratings.forget(b"u")
        assert await held(store, "u", epoch) == {}


async def arrivals(store: Store, user: bytes, epoch: int) -> list[int]:
    key = store.keys.ratings(epoch, partition_of(user, store.keys.partitions))
    entries: Any = await store.redis.xrange(key)
    return [int(entry.partition(b"-")[0]) for entry, _ in entries]


async def test_what_is_rated_after_an_erasure_is_later_in_each_history(store: Store) -> None:
    """By a clock that was ahead for a while and is right again, times of a stream are ahead of the others."""
    seconds, _ = await store.redis.time()
    ahead = 1000 * (seconds + 3600)
    partition = partition_of(b"ann", store.keys.partitions)
    await store.redis.hset(store.keys.counts(1, partition), "last", f"{ahead}-0")
    await store.ratings.append([rating("ann", "a", 1.0)])
    # Nothing of ann is in the second history when she is forgotten: no mark goes into its stream.
    await store.epochs.begin()
    forgotten = await store.ratings.forget(b"ann")
    assert forgotten.at_ms > ahead
    await store.ratings.append([rating("ann", "b", 4.0)])
    assert min(await arrivals(store, b"ann", 2)) >= forgotten.at_ms
    assert (await arrivals(store, b"ann", 1))[-1] >= forgotten.at_ms
    # One that is forgotten in the second history is forgotten later than all that came into the first.
    await publish(store, await lead(store), epoch=2)
    await store.epochs.finish(2)
    before = max(await arrivals(store, b"ann", 2))
    again = await store.ratings.forget(b"ann")
    assert again.at_ms > before >= ahead
