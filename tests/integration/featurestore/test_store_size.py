"""A store takes what `foldin size` says of it."""

import numpy as np

from featurestore.ratings.batches import Columns
from featurestore.store import Store
from foldin.sizing.model import Deployment
from tests.support.factories import lead, make_model, publish

USERS, ITEMS, EACH, RANK = 200, 100, 25, 16


async def test_a_store_takes_no_more_than_is_said_and_not_far_less(store: Store) -> None:
    users, rng = [b"user-%07d" % k for k in range(USERS)], np.random.default_rng(1)
    for _ in range(EACH):
        items = [b"item-%07d" % k for k in rng.integers(0, ITEMS, USERS)]
        await store.ratings.append_columns(Columns(users, items, np.full(USERS, 3.0), np.full(USERS, 1e9)))
    lease, model = await lead(store), make_model(RANK)
    for _ in range(2):  # the live one, and the one to roll back to
        await publish(store, lease, n_items=ITEMS, users=users, model=model)
    # As `foldin up` and the compose file set it.
    await store.redis.config_set("hash-max-listpack-value", 4096)
    waiting = {store.keys.ratings(1, partition) for partition in range(store.config.partitions)}
    pattern = f"*{store.settings.namespace}*"
    keys = [key async for key in store.redis.scan_iter(match=pattern, count=1000) if key not in waiting]
    taken = sum([await store.redis.memory_usage(key, samples=0) or 0 for key in keys])
    said = Deployment(USERS, ITEMS, USERS * EACH, rank=RANK)
    # Nothing waits, there is no ranking head, and a third generation is not being written.
    most = said.store_bytes(0) - ITEMS * (3 * said.head_bytes + 8 * 64)
    assert 0.4 * most <= taken <= most
