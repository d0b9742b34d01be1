"""Users by the counter rule, beside what `test_featurestore_counter_rule` walks through."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from factors import Float32s
from featurestore import codecs
from featurestore.generations.live import LiveGeneration
from featurestore.store import Store
from featurestore.users import records as users_module
from tests.support.factories import as_live, lead, publish, rating
from tests.support.waiting import some, wait_until_async


@dataclass
class World:
    store: Store
    live: LiveGeneration


@pytest.fixture
async def world(store: Store) -> World:
    await store.items(1).register([b"%d" % row for row in range(8)])
    return World(store, as_live(await publish(store, await lead(store))))


async def expected(world: World, user: bytes) -> Float32s:
    _, history = await world.store.users.history(1, user)
    rows = world.live.posterior.fold_in_users(world.live.items, codecs.pack_histories([history]))
    row: Float32s = rows[0]
    return row


async def stored(world: World, user: bytes) -> bytes | None:
    field = b"g%d" % world.live.generation
    found = await world.store.redis.hget(world.store.keys.user(1, user), field)
    assert found is None or isinstance(found, bytes)
    return found


async def settled(world: World, user: bytes, n: int) -> None:
    await wait_until_async(
        lambda: stored(world, user),
        "the record is handed back",
        lambda record: record and int.from_bytes(record[:8], "little") == n,
    )


@pytest.mark.parametrize(
    "damaged",
    [
        lambda _: b"",
        lambda record: record + b"x",
        lambda record: record[:9] + bytes([record[9] ^ 2]) + record[10:],
        # Of more ratings than there are.
        lambda record: codecs.pack_records(np.array([9]), np.ones((1, len(record) // 4 - 3), np.float32))[0],
    ],
)
async def test_an_answer_rests_on_no_record_that_is_not_sound(
    world: World, damaged: Callable[[bytes], bytes]
) -> None:
    """The vector is that of the history, and a sound record comes again; also where one more rating came."""
    store, key, field = world.store, world.store.keys.user(1, b"u"), b"g%d" % world.live.generation
    await store.ratings.append([rating("u", "1", 5.0)])
    await store.users.current(world.live, [b"u"])
    await settled(world, b"u", 1)
    for n in (1, 2):
        await store.redis.hset(key, mapping={field: damaged(some(await stored(world, b"u")))})
        if n == 2:
            await store.ratings.append([rating("u", "2", 1.0)])
        current = await store.users.current(world.live, [b"unknown", b"u"])
        assert current.folded.tolist() == [False, True]
        np.testing.assert_array_equal(current.vectors[1], await expected(world, b"u"))
        profile = await store.users.profile(world.live, b"u")
        np.testing.assert_array_equal(profile.vector, current.vectors[1])
        await settled(world, b"u", n)


async def test_a_flushed_library_comes_back_in_mid_flight(world: World) -> None:
    store = world.store
    for round_ in range(3):
        await store.redis.function_flush()
        await asyncio.gather(*[store.ratings.append([rating("u", str(i))]) for i in range(5)])
        await store.redis.function_flush()
        current = await store.users.current(world.live, [b"u"])
        assert current.n.tolist() == [5 * (round_ + 1)]


async def test_a_large_batch_is_what_its_users_are_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, users = world.store, [b"u%d" % i for i in range(40)]
    await store.ratings.append([rating(user.decode(), str(k % 8)) for k, user in enumerate(users)])
    await store.ratings.append([rating("u7", str(k % 8)) for k in range(12)])
    await store.users.current(world.live, users)
    for user in users:
        await settled(world, user, 13 if user == b"u7" else 1)
    one_by_one = [await store.users.current(world.live, [user]) for user in users]
    monkeypatch.setattr(users_module, "LOOKUPS_AT_ONCE", 16)
    monkeypatch.setattr(users_module, "FEW_LOOKUPS", 8)
    await store.ratings.append([rating("u3", "5")])
    mixed = await store.users.current(world.live, [b"unknown", *users])
    assert mixed.n.tolist() == [0, *[{3: 2, 7: 13}.get(k, 1) for k in range(40)]]
    assert np.flatnonzero(mixed.folded).tolist() == [4]
    for position, alone in enumerate(one_by_one):
        if position != 3:
            np.testing.assert_array_equal(mixed.vectors[position + 1], alone.vectors[0])
