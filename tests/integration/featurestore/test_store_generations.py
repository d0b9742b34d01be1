"""Generations: written beside, verified, flipped, held, rolled back, removed in small steps."""

import asyncio
import json

import numpy as np
import pytest

from featurestore.codecs import pack_records, unpack_records
from featurestore.errors import GenerationBroken, GenerationUnknown, StoreError
from featurestore.generations.manifest import CHUNK_BYTES
from featurestore.generations.record_writer import RecordWriter
from featurestore.generations.served import wait_until_served
from featurestore.store import Store
from tests.support.factories import (
    lead,
    make_draft,
    make_items,
    make_model,
    publish,
    rating,
    write_generation,
)
from tests.support.waiting import PATIENCE_S


async def numbers(store: Store) -> list[int]:
    """The generations that there are."""
    return [summary.generation for summary in await store.generations.list()]


async def keys_of(store: Store, generation: int) -> list[bytes]:
    """What is stored of a generation besides its entry and records."""
    pattern = f"*{store.settings.namespace}*:generation:{generation}:*"
    return [key async for key in store.redis.scan_iter(match=pattern, count=1000)]


async def loaded(store: Store, generation: int) -> bytes:
    """The item table of a generation."""
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


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "blob"])
async def test_what_was_damaged_since_it_was_written_is_not_finished(store: Store, damage: str) -> None:
    model = make_model()
    writer = await store.generations.begin(await lead(store), make_draft(model), {0: "1-1"})
    await writer.write_items(make_items(model, 2_000), model)
    await writer.write_blob("ranking", b"as it was written")
    name = store.keys.chunk(1, writer.number, 1)
    if damage == "blob":
        name = store.keys.index_chunk(1, writer.number, 0)
    data = await store.redis.get(name)
    assert isinstance(data, bytes)
    if damage == "gone":
        await store.redis.delete(name)
    else:
        await store.redis.set(name, data[:-4] if damage == "short" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(GenerationBroken):
        await writer.finish()


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
    assert await keys_of(store, first.writer.number) == []
    pointer = await store.generations.live()
    assert (pointer.generation, pointer.previous) == (third.writer.number, second.writer.number)
    assert await numbers(store) == [second.writer.number, third.writer.number]
    with pytest.raises(StoreError, match="live"):
        await store.generations.remove(1, third.writer.number)
    for _ in range(2):
        await store.generations.remove(1, second.writer.number)
    assert await numbers(store) == [third.writer.number]
    assert await keys_of(store, second.writer.number) == []
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
    assert await keys_of(store, writer.number) == []


async def test_deltas_reach_readers_and_the_later_wins(store: Store) -> None:
    lease = await lead(store)
    written = await publish(store, lease)
    number, width = written.writer.number, written.model.item_width
    rows = np.array([3, 1], dtype=np.int32)
    await store.generations.claim_deltas(lease, 1, number)
    await store.generations.push_delta(lease, 1, number, rows, np.ones((2, width), np.float32))
    await store.generations.push_delta(lease, 1, number, rows[:1], np.full((1, width), 2.0, np.float32))
    deltas = await store.generations.read_deltas(1, number, width)
    assert deltas.rows.tolist() == [1, 3]
    assert deltas.vectors[:, 0].tolist() == [1.0, 2.0]
    assert len((await store.generations.read_deltas(1, number, width, deltas.after)).rows) == 0
    with pytest.raises(GenerationUnknown):
        await store.generations.push_delta(lease, 1, 99, rows, np.ones((2, width), np.float32))
    with pytest.raises(GenerationUnknown):
        await store.generations.claim_deltas(lease, 1, 99)
    assert not await store.redis.exists(store.keys.deltas(1, 99))


def beat(at: int, generation: int = 1) -> str:
    return json.dumps({"generation": generation, "epoch": 1, "at": at, "pid": 1})


async def test_workers_that_beat_are_waited_for(store: Store) -> None:
    seconds, _ = await store.redis.time()
    now = int(seconds)
    for name, at in (("fresh", 30), ("late", -60), ("dead", -9_999)):
        await store.redis.hset(store.keys.workers, name, beat(now + at))
    await store.redis.hset(store.keys.workers, "odd", "nonsense")
    assert {worker.id for worker in await store.generations.workers()} == {"fresh", "late"}
    assert set(await store.redis.hkeys(store.keys.workers)) == {b"fresh", b"late"}
    assert await wait_until_served(store.generations, 1, 1, 0.0)
    assert not await wait_until_served(store.generations, 1, 2, 0.0)
    waiting = asyncio.create_task(wait_until_served(store.generations, 1, 2, PATIENCE_S))
    await store.redis.hset(store.keys.workers, "fresh", beat(now + 30, 2))
    assert await waiting


async def test_an_index_and_blobs_are_read_as_written_or_refused(store: Store) -> None:
    model = make_model()
    writer = await store.generations.begin(await lead(store), make_draft(model, 0, 50), {0: "1-1"})
    await writer.write_items(make_items(model, 50), model)
    index, ranking, other = (np.random.default_rng(k).bytes(n) for k, n in enumerate((70_000, 65_536, 3)))
    await writer.write_index(index)
    await writer.write_blob("ranking", ranking)
    await writer.write_blob("other", other)
    meta = await writer.finish()
    assert meta.blobs == (await store.generations.meta(1, writer.number)).blobs

    async def blob(name: str) -> bytes:
        pieces = store.generations.load_blob(meta, meta.blobs[name])
        return b"".join([bytes(piece) async for piece in pieces])

    assert await store.generations.load_index(meta) == index
    assert [await blob(name) for name in ("ranking", "other")] == [ranking, other]
    await store.redis.delete(store.keys.index_chunk(1, writer.number, 2))
    with pytest.raises(GenerationBroken):
        await blob("ranking")
    await store.generations.remove(1, writer.number)
    assert await keys_of(store, writer.number) == []


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
