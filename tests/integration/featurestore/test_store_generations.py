"""Generations: written, verified, flipped, held, removed in small steps; what trainers of a store share."""

import asyncio
from functools import partial

import numpy as np
import pytest

from featurestore.codecs import pack_records, unpack_records
from featurestore.commands import Outcome
from featurestore.errors import GenerationBroken, GenerationUnknown, LeaseLost, StoreError
from featurestore.generations.manifest import CHUNK_BYTES
from featurestore.generations.writer import RecordWriter
from featurestore.keys import partition_of
from featurestore.ratings.batches import Columns
from featurestore.store import Store
from foldin.sizing.model import Deployment
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


async def numbers(store: Store) -> list[int]:
    return [summary.generation for summary in await store.generations.list()]


async def loaded(store: Store, generation: int) -> bytes:
    meta = await store.generations.meta(1, generation)
    return b"".join([chunk async for chunk in store.generations.load_items(meta)])


async def test_a_generation_is_written_verified_and_flipped(store: Store) -> None:
    lease = await lead(store)
    users = [b"u%d" % n for n in range(150)]
    await store.ratings.append([rating(user.decode(), "a", 4.0) for user in users])
    written = await write_generation(store, lease, n_items=8_000, users=users)
    number = written.writer.number
    assert (await store.generations.live()).generation == 0
    summary = (await store.generations.list())[0]
    assert (summary.state, summary.generation, summary.metrics) == ("ready", number, {"rmse": 0.9})
    assert summary.chunks == -(-8_000 // (CHUNK_BYTES // (4 * written.model.item_width))) > 4
    assert await loaded(store, number) == written.items.tobytes()
    assert await written.writer.flip()
    pointer = await store.generations.live()
    assert (pointer.epoch, pointer.generation, pointer.previous) == (1, number, 0)
    records = [await store.redis.hget(store.keys.user(1, user), f"g{number}") for user in users]
    n, _ = unpack_records([each for each in records if isinstance(each, bytes)], written.model.user_width)
    assert n.tolist() == [1] * 150


async def test_what_is_not_whole_does_not_fit_or_is_not_finite_cannot_go_live(store: Store) -> None:
    model = make_model()
    writer = await store.generations.begin(await lead(store), make_draft(model), {0: "1-1"})
    with pytest.raises(StoreError, match="item table"):
        await writer.finish()
    items, rows = make_items(model, 3), np.zeros((1, model.user_width + 1), np.float32)
    with pytest.raises(StoreError, match="after the items"):
        await writer.write_users([b"u"], np.array([1]), rows[:, 1:])
    bad = items.copy()
    bad[1, 2] = np.nan
    for table in (items[:, 1:], bad):
        with pytest.raises(GenerationBroken):
            await writer.write_items(table, model)
    await writer.write_items(items, model)
    for n, vectors in ((1, rows), (2, rows[:, 1:]), (1, rows[:, 1:] + np.inf)):
        with pytest.raises(GenerationBroken):
            await writer.write_users([b"u"], np.arange(n), vectors)
    for attempt in (
        writer.flip(),
        store.generations.activate(writer.number, hold=False),
        store.generations.activate(99, hold=False),
        store.generations.meta(1, writer.number),
    ):
        with pytest.raises(GenerationUnknown):
            await attempt


async def test_the_one_before_stays_and_older_ones_go(store: Store) -> None:
    lease = await lead(store)
    first = await publish(store, lease)
    second = await publish(store, lease)
    # Again it is no other, and the one to roll back to stays.
    assert await second.writer.flip()
    assert (await store.generations.live()).previous == first.writer.number
    assert await numbers(store) == [first.writer.number, second.writer.number]
    third = await publish(store, lease)
    await store.generations.prune(lease)
    assert await keys_of(store, f"*:generation:{first.writer.number}:*") == []
    pointer = await store.generations.live()
    assert (pointer.generation, pointer.previous) == (third.writer.number, second.writer.number)
    assert await numbers(store) == [second.writer.number, third.writer.number]
    with pytest.raises(StoreError, match="live"):
        await store.generations.remove(1, third.writer.number)
    for _ in range(2):
        await store.generations.remove(1, second.writer.number)
    assert await numbers(store) == [third.writer.number]
    assert await keys_of(store, f"*:generation:{second.writer.number}:*") == []
    assert await loaded(store, third.writer.number) == third.items.tobytes()


async def test_back_and_forward_and_held(store: Store) -> None:
    lease = await lead(store)
    one, two = (await publish(store, lease)).writer.number, (await publish(store, lease)).writer.number
    await store.generations.activate(one, hold=True)
    pointer = await store.generations.live()
    assert (pointer.generation, pointer.previous, pointer.held) == (one, two, True)
    third = await write_generation(store, lease)
    assert not await third.writer.flip()
    assert (await store.generations.live()).generation == one
    # Held for long, the refits that do not go live do not pile up.
    fourth = await write_generation(store, lease)
    assert third.writer.number not in await numbers(store)
    await store.generations.activate(two, hold=False)
    assert not (await store.generations.live()).held
    await store.generations.activate(one, hold=True)
    # A person asked for this one.
    assert await fourth.writer.flip(automatic=False)
    assert not (await store.generations.live()).held


@pytest.mark.parametrize("last", ["begin", "items", "some items", "users", "finish"])
async def test_a_publish_that_stops_is_removed_by_the_next_leader(store: Store, last: str) -> None:
    await store.ratings.append([rating(f"u{n}", "a") for n in range(30)])
    lease = await lead(store)
    live, model = (await publish(store, lease)).writer.number, make_model()
    writer = await store.generations.begin(lease, make_draft(model), {0: "1-1"})
    if last != "begin":
        await writer.write_items(make_items(model, 2_000), model)
    if last == "some items":
        await store.redis.delete(store.keys.meta(1, writer.number), store.keys.chunk(1, writer.number, 0))
    if last in {"users", "finish"}:
        vectors = np.zeros((30, model.user_width), np.float32)
        await writer.write_users([b"u%d" % n for n in range(30)], np.ones(30, dtype=np.int64), vectors)
    if last == "finish":
        await writer.finish()
    await lease.release()
    await store.generations.prune(await lead(store, "next"))
    pointer = await store.generations.live()
    assert pointer.generation == live
    assert await numbers(store) == [live]
    assert await keys_of(store, f"*:generation:{writer.number}:*") == []


async def test_records_of_older_generations_go_and_newer_ones_stay(store: Store) -> None:
    await store.ratings.append([rating("u", "a")] * 3)
    key, vectors = store.keys.user(1, b"u"), np.ones((1, 5), dtype=np.float32)
    for number in (1, 2, 48, 40, 47, 60):
        await store.redis.hset(key, b"g%d" % number, pack_records(np.array([1]), vectors)[0])
    records = RecordWriter(store.keys, store.bulk, epoch=1, number=50, kept=(40, 47))
    # The last is of more ratings than there are: of a history that was lost.
    for n, taken in ((2, 1), (1, 0), (3, 1), (4, 0)):
        assert await records.write([b"u"], np.array([n]), vectors) == taken
    # The later one belongs to a trainer that this one does not know of.
    assert set(await store.redis.hkeys(key)) == {b"n", b"g40", b"g47", b"g50", b"g60"}
    record = await store.redis.hget(key, "g50")
    assert isinstance(record, bytes)
    assert unpack_records([record], 5)[0].tolist() == [3]


async def test_a_store_takes_no_more_than_foldin_size_says_and_not_far_less(store: Store) -> None:
    users, rng = [b"user-%07d" % k for k in range(200)], np.random.default_rng(1)
    for _ in range(25):
        items = [b"item-%07d" % k for k in rng.integers(0, 100, 200)]
        await store.ratings.append_columns(Columns(users, items, np.full(200, 3.0), np.full(200, 1e9)))
    lease, model = await lead(store), make_model(16)
    for _ in range(2):  # the live one, and the one to roll back to
        await publish(store, lease, n_items=100, users=users, model=model)
    # As `foldin up` and the compose file set it.
    await store.redis.config_set("hash-max-listpack-value", 4096)
    waiting = {store.keys.ratings(1, partition) for partition in range(store.keys.partitions)}
    keys = [key for key in await keys_of(store) if key not in waiting]
    taken = sum([await store.redis.memory_usage(key, samples=0) or 0 for key in keys])
    said = Deployment(200, 100, 5_000, rank=16)
    # Nothing waits, there is no ranking head, and a third generation is not being written.
    most = said.store_bytes(0) - 100 * (3 * said.head_bytes + 8 * 64)
    assert 0.4 * most <= taken <= most


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
