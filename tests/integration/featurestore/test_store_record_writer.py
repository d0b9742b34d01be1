"""Records of a generation as they are written: which are taken, and what goes to make room for them."""

import numpy as np
import pytest

from featurestore.codecs import pack_records, unpack_records
from featurestore.generations.record_writer import RecordWriter
from featurestore.store import Store
from tests.support.factories import rating

WIDTH = 5


def writer(store: Store, number: int, *kept: int) -> RecordWriter:
    """A writer for that generation beside those that are kept."""
    return RecordWriter(store.keys, store.bulk, epoch=1, number=number, kept=kept)


async def write(store: Store, users: list[bytes], number: int, *kept: int, n: int = 1) -> int:
    """Write a record of ones for each; how many are there."""
    vectors = np.ones((len(users), WIDTH), dtype=np.float32)
    return await writer(store, number, *kept).write(users, np.full(len(users), n, dtype=np.int64), vectors)


async def fields(store: Store, user: bytes) -> set[bytes]:
    """What a user's hash holds."""
    names = await store.redis.hkeys(store.keys.user(1, user))
    return {name for name in names if isinstance(name, bytes)}


async def test_many_users_of_all_partitions_get_their_own_record(store: Store) -> None:
    users = [b"%d" % u for u in range(300)]
    await store.ratings.append([rating(user.decode(), "a") for user in users for _ in range(2)])
    n = np.arange(300) % 2 + 1
    vectors = np.arange(300 * WIDTH, dtype=np.float32).reshape(300, WIDTH)
    assert await writer(store, 3).write(users, n, vectors) == 300
    records = [await store.redis.hget(store.keys.user(1, user), "g3") for user in users]
    seen, read = unpack_records([record for record in records if isinstance(record, bytes)], WIDTH)
    assert seen.tolist() == n.tolist()
    assert read.tolist() == vectors.tolist()
    assert await writer(store, 3).write(users, n, vectors) == 300


@pytest.mark.parametrize("left", [[1], [1, 2, 3], [48, 49], [1, 48]])
async def test_what_earlier_generations_left_goes_however_old(store: Store, left: list[int]) -> None:
    await store.ratings.append([rating("u", "a")])
    (record,) = pack_records(np.array([1]), np.ones((1, WIDTH), dtype=np.float32))
    key = store.keys.user(1, b"u")
    for number in (*left, 40, 47, 60):
        await store.redis.hset(key, b"g%d" % number, record)
    assert await write(store, [b"u"], 50, 40, 47) == 1
    # The later one belongs to a trainer that this one does not know of.
    assert await fields(store, b"u") == {b"n", b"g40", b"g47", b"g50", b"g60"}


async def test_a_newer_record_of_the_same_generation_stays(store: Store) -> None:
    await store.ratings.append([rating("u", "a")] * 3)
    assert await write(store, [b"u"], 2, n=2) == 1
    assert await write(store, [b"u"], 2, n=1) == 0
    assert await write(store, [b"u"], 2, n=3) == 1
    # Of more ratings than there are: of a history that was lost.
    assert await write(store, [b"u"], 2, n=4) == 0
    record = await store.redis.hget(store.keys.user(1, b"u"), "g2")
    assert isinstance(record, bytes)
    assert unpack_records([record], WIDTH)[0].tolist() == [3]
