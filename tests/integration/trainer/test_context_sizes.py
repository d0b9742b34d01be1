"""What contexts of ratings take, as docs/sizing.md says: in the store, in its streams and in the archive."""

from pathlib import Path

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.store import Store
from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import spans_of

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("fields", [1, 5, 32])]
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


def test_the_archive_takes_what_is_said(tmp_path: Path, fields: int) -> None:
    rng, count = np.random.default_rng(1), 20_000
    sizes, ns = [], np.arange(count)
    for name, context in (("plain", None), ("told", rng.normal(size=(count, fields)))):
        archive = EpochArchive(tmp_path / name, 1, guard=free)
        users = [f"u{k % 200}" for k in range(count)]
        table = event_table(users, ns // 200 + 1, ns % 300, [3.0] * count, stream_ms=ns, context=context)
        archive.append(table, spans_of(table))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / name).rglob("*.parquet")))
    print(f"{fields} fields: {(sizes[1] - sizes[0]) / count:.1f} bytes a rating in the archive")
    assert 3 * fields <= (sizes[1] - sizes[0]) / count <= 4 * fields + 1
