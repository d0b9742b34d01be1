"""What contexts of ratings take, as docs/sizing.md says: in the store, and in its streams."""

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.store import Store

pytestmark = [pytest.mark.parametrize("fields", [5])]
USERS, EACH = 50, 60


async def rated(store: Store, users: list[bytes], fields: int) -> None:
    """As clients send them: each call has one more rating of each user."""
    rng = np.random.default_rng(fields)
    for call in range(EACH):
        context = rng.normal(size=(USERS, fields)).astype(np.float32) if fields else None
        values = np.full(USERS, 3.0), np.full(USERS, 1e9 + call)
        await store.ratings.append_columns(Columns(users, [b"i%d" % call] * USERS, *values, context=context))


async def memory(store: Store, keys: list[bytes]) -> float:
    """Bytes a rating."""
    found = [await store.redis.memory_usage(key, samples=0) or 0 for key in keys]
    return sum(found) / (USERS * EACH)


async def test_the_store_takes_what_is_said(store: Store, fields: int) -> None:
    streams = [store.keys.ratings(1, partition) for partition in range(store.config.partitions)]
    await rated(store, [b"plain-%06d" % k for k in range(USERS)], 0)
    plain = await memory(store, streams)
    await store.redis.delete(*streams)
    users = [b"told--%06d" % k for k in range(USERS)]
    await rated(store, users, fields)
    told, waiting = (
        await memory(store, [store.keys.user_contexts(1, user) for user in users]),
        await memory(store, streams),
    )
    entry = 16 + 4 * fields
    print(
        f"{fields} fields: {told:.1f} bytes a rating in the store, {waiting - plain:.1f} more in its stream"
    )
    # A value that grows has as much again in reserve, and is rounded up to what the allocator has.
    assert entry <= told <= 2.5 * entry + 4
    assert entry <= waiting - plain <= 1.5 * (entry + 4)
