"""The lease, the stream and the commands: what the trainers of a namespace share."""

import asyncio
from functools import partial

import numpy as np
import pytest

from featurestore.commands import Outcome
from featurestore.errors import LeaseLost
from featurestore.keys import partition_of
from featurestore.store import Store
from tests.support.factories import (
    keys_of,
    lead,
    make_draft,
    make_items,
    make_model,
    opened,
    publish,
    rating,
    write_generation,
)
from tests.support.waiting import some, wait_until_async


async def test_one_leads_and_the_next_has_a_higher_fence(store: Store) -> None:
    first = await lead(store, "one")
    assert 0 < await store.redis.pttl(store.keys.lease) <= 60_000
    assert await store.leases.acquire("two", 60_000) is None
    assert (await lead(store, "one")).fence == first.fence
    # When its time is over it goes on, unless another has taken it.
    await store.redis.delete(store.keys.lease)
    await first.renew()
    await store.redis.delete(store.keys.lease)
    second = await lead(store, "two")
    assert second.fence == first.fence + 1
    with pytest.raises(LeaseLost):
        await first.renew()
    # Nor does it take it from the other one.
    await first.release()
    await second.renew()
    await second.release()
    assert (await lead(store, "three")).fence > second.fence


async def test_a_leader_that_was_replaced_changes_nothing(store: Store) -> None:
    first = await lead(store, "one")
    model = make_model()
    writer = await store.generations.begin(first, make_draft(model), {0: "1-1"})
    await writer.write_items(make_items(model, 2), model)
    await writer.finish()
    await first.release()
    second = await lead(store, "two")
    with pytest.raises(LeaseLost):
        await writer.finish()
    live = await publish(store, second)
    older = await write_generation(store, second)
    number, rows = live.writer.number, np.zeros(1, dtype=np.int32)
    await store.generations.claim_deltas(second, 1, number)
    command = await store.commands.ask("refit", epoch=1)
    await store.commands.report(second, command, Outcome("done", generation=number))
    epoch = await store.epochs.begin()
    before = await everything(store)
    for attempt in (
        writer.flip,
        lambda: writer.write_items(make_items(model, 2), model),
        lambda: store.generations.begin(first, make_draft(model), {0: "1-1"}),
        lambda: store.generations.prune(first),
        lambda: store.generations.remove(1, older.writer.number, lease=first),
        lambda: store.generations.remove_epoch(7, lease=first),
        lambda: store.generations.claim_deltas(first, 1, number),
        lambda: store.generations.push_delta(first, 1, number, rows, live.items[:1]),
        lambda: store.epochs.abandon(epoch, lease=first),
        lambda: store.commands.report(first, command, Outcome("running")),
        lambda: store.room.say(first, "archive_disk", 1e9),
        lambda: store.active.replace(1, [b"u1"], lease=first),
    ):
        with pytest.raises(LeaseLost):
            await attempt()
    assert await everything(store) == before
    # The same calls by the one that leads: none of them was refused for another reason.
    await store.generations.push_delta(second, 1, number, rows, live.items[:1])
    await store.generations.prune(second)
    await store.epochs.abandon(epoch, lease=second)
    assert [each.generation for each in await store.generations.list()] == [number]


async def everything(store: Store) -> dict[bytes, object]:
    return {key: await store.redis.dump(key) for key in sorted(await keys_of(store))}


async def test_events_come_once_to_each_leader_until_they_are_done(store: Store) -> None:
    lease = await lead(store)
    p = partition_of(b"u", store.keys.partitions)
    stream = store.keys.ratings(1, p)
    await store.ratings.append([rating("u", f"i{n}") for n in range(7)])
    assert await store.redis.xlen(stream) == 1
    events = await store.stream.read(1, lease, 3, 0)
    assert events.n.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert events.stream_seq.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert not await store.stream.read(1, lease, 3, 0)
    # Of an entry of which part is archived only that much is done; it comes again to the next leader.
    await store.stream.done(1, lease, {p: (int(events.stream_ms[3]), 4)})
    assert (await store.stream.lag(1))[p] == 3
    assert await store.redis.xlen(stream) == 1
    await store.stream.done(1, lease, {p: (int(events.stream_ms[1]), 2)})
    assert (await store.stream.lag(1))[p] == 3
    await lease.release()
    late, lease = lease, await lead(store, "two")
    async with opened(store.settings) as other:
        assert (await other.stream.read(1, lease, 100, 0)).n.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for attempt in (store.stream.read(1, late, 4, 0), store.stream.done(1, late, events.last)):
        with pytest.raises(LeaseLost):
            await attempt
    assert (await store.stream.lag(1))[p] == 3
    await store.stream.done(1, lease, events.last)
    assert (await store.stream.lag(1))[p] == 0
    assert await store.redis.xlen(stream) == 0
    await store.ratings.append([rating("u", "a"), rating("u", "b")])
    assert (await store.stream.read(1, lease, 3, 0)).stream_seq.tolist() == [8, 9]


SECRET = b"a user with a long id, erased"


async def dumped(store: Store, key: bytes) -> bytes:
    # What is compressed does not have its bytes.
    await store.redis.config_set("rdbcompression", "no")
    return bytes(some(await store.redis.dump(key)))


async def a_read_waits(store: Store) -> None:
    clients = partial(store.redis.info, "clients")
    await wait_until_async(clients, "the read blocks", lambda told: told["blocked_clients"] > 0)


async def test_nothing_of_removed_events_is_left_and_reading_goes_on(store: Store) -> None:
    lease, partition = await lead(store), partition_of(SECRET, 4)
    stream = store.keys.ratings(1, partition)
    others = [user for user in (f"u{k}" for k in range(100)) if partition_of(user.encode(), 4) == partition]
    await store.ratings.append([rating(SECRET.decode(), "i1")])
    await store.ratings.append([rating(others[0], "i1")])
    events = await store.stream.read(1, lease, 100, 0)
    assert events.users == [SECRET, others[0].encode()]
    await store.stream.done(1, lease, {partition: (int(events.stream_ms[0]), 1)})
    # The reason for all this: it was removed, and is there.
    assert SECRET in await dumped(store, stream)
    reading = asyncio.create_task(store.stream.read(1, lease, 100, 60_000))
    await a_read_waits(store)
    assert await store.files.renew_streams([1])
    assert SECRET not in await dumped(store, stream)
    assert not reading.done()
    await store.ratings.append([rating(others[1], "i1")])
    assert (await reading).users == [others[1].encode()]
    # What is not archived is left, and nothing else.
    left = [user async for events in store.stream.rest(1, {}, 100) for user in events.users]
    assert left == [others[0].encode(), others[1].encode()]
