"""Users by the counter rule, beside `test_featurestore_counter_rule`; histories of any length cost little."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from factors import SAMPLED, Float32s
from featurestore import codecs
from featurestore.generations.live import LiveGeneration
from featurestore.ratings.batches import Columns
from featurestore.store import Store
from featurestore.users import records as users_module
from featurestore.users.histories import ANSWER_ENTRIES, RENEW_EVENTS
from tests.support.factories import as_live, lead, make_items, make_model, publish, rating
from tests.support.waiting import some, wait_until_async


@dataclass
class World:
    store: Store
    live: LiveGeneration


@pytest.fixture
async def world(store: Store) -> World:
    await store.items(1).register([b"%d" % row for row in range(8)])
    return World(store, as_live(await publish(store, await lead(store))))


async def by_hand(world: World, user: bytes = b"u") -> Float32s:
    data = await world.store.redis.get(world.store.keys.history(1, user))
    assert isinstance(data, bytes)
    packed = codecs.pack_histories([codecs.unpack_history(data, world.store.scale.value)])
    row: Float32s = world.live.posterior.fold_in_users(world.live.items, packed)[0]
    return row


async def stored(world: World, user: bytes) -> bytes | None:
    field = b"g%d" % world.live.generation
    found = await world.store.redis.hget(world.store.keys.user(1, user), field)
    assert found is None or isinstance(found, bytes)
    return found


async def settled(world: World, user: bytes, n: int) -> None:
    await wait_until_async(
        lambda: stored(world, user),
        "the record is written back",
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
        np.testing.assert_array_equal(current.vectors[1], await by_hand(world))
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


async def test_a_large_batch_equals_its_users_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


ITEMS, MANY = 16_000, 10_000


@pytest.fixture
async def live(store: Store) -> LiveGeneration:
    ids = [b"%d" % row for row in range(ITEMS)]
    await store.items(1).register(ids)
    items = np.tile(make_items(make_model(), 400), (ITEMS // 400, 1))
    return as_live(await publish(store, await lead(store), items=items, n_items=ITEMS))


async def rate(store: Store, items: np.ndarray) -> None:
    for part in np.split(items, range(5_000, len(items), 5_000)):
        ids, times = [b"%d" % item for item in part.tolist()], np.full(len(part), 1e9)
        await store.ratings.append_columns(Columns([b"u"] * len(ids), ids, 1.0 + part % 5, times))


async def vector(world: World) -> Float32s:
    current = await world.store.users.current(world.live, [b"u"])
    await settled(world, b"u", current.n[0])
    row: Float32s = current.vectors[0]
    return row


async def sent(store: Store) -> int:
    return int((await store.redis.info("stats"))["total_net_output_bytes"])


async def test_a_user_with_many_ratings_costs_a_bounded_answer(store: Store, live: LiveGeneration) -> None:
    world, order = World(store, live), np.random.default_rng(1).permutation(ITEMS)
    await rate(store, order[:MANY])
    before = await sent(store)
    (end,) = await store.users.parts(1, [b"u"], one_look=True)
    assert await sent(store) - before < ANSWER_ENTRIES * codecs.ENTRY_BYTES + 10_000
    assert end.item_row.tolist() == order[MANY - ANSWER_ENTRIES : MANY].tolist()
    await vector(world)
    # More come than one sample spans. None is taken back, so that what is read gives the same as everything.
    rated = MANY
    for more in (1, 1, 700, 1_500, 1, 3_000, 1):
        await rate(store, order[rated : rated + more])
        rated += more
        before = await sent(store)
        folded = await store.users.current(live, [b"u"])
        profile = await store.users.profile(live, b"u")
        assert folded.folded[0]
        if more == 1:
            # Each of the two: the sample and the latest entries, not 200 KB.
            most = 2 * (2 * SAMPLED + ANSWER_ENTRIES) * codecs.ENTRY_BYTES
            assert await sent(store) - before < most + 10_000
            assert not profile.whole
            assert len(profile.history) <= 2 * SAMPLED + ANSWER_ENTRIES
            (part,) = await store.users.parts(1, [b"u"], one_look=True)
            assert part.item_row.tolist() == profile.history.item_row.tolist()
        np.testing.assert_allclose(folded.vectors[0], await by_hand(world), atol=1e-5)
        await vector(world)
    assert profile.n == rated
    sample = await store.redis.hget(store.keys.user(1, b"u"), "sample")
    assert isinstance(sample, bytes)
    assert int.from_bytes(sample[:8], "little") > rated - RENEW_EVENTS
    # A damaged one is as good as none.
    await store.redis.hset(store.keys.user(1, b"u"), "sample", b"\xff" * 44)
    await rate(store, order[:1])
    np.testing.assert_allclose(await vector(world), await by_hand(world), atol=1e-5)
