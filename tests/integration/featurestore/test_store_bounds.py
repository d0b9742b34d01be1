"""Bounds in the store: what waits, items, entries of a user. A refused call changes nothing."""

from dataclasses import replace

import numpy as np
import pytest

from featurestore.errors import HistoryFull, RegistryFull, StreamFull
from featurestore.ratings.batches import Columns
from featurestore.settings import StoreSettings
from featurestore.store import Store


def ratings(users: list[str], items: list[str]) -> Columns:
    """One rating of each user for each item in turn."""
    n = len(users)
    return Columns(
        [user.encode() for user in users],
        [items[at % len(items)].encode() for at in range(n)],
        np.full(n, 3.0),
        np.full(n, 1e9),
    )


async def stored(store: Store) -> tuple[int, object]:
    """How many items there are, and what waits in the streams."""
    return await store.redis.llen(store.keys.order(1)), await store.stream.lag(1)


async def test_refused_calls_do_not_fill_the_catalogue(store_settings: StoreSettings, store: Store) -> None:
    small = await Store.open(replace(store_settings, stream_limit=10), hot=False)
    try:
        await small.ratings.append_columns(ratings(["ann"] * 8, ["i0"]))
        before = await stored(store)
        for users in (["ann"] * 3, ["ann"] * 3 + [f"u{n}" for n in range(30)]):
            with pytest.raises(StreamFull):
                await small.ratings.append_columns(ratings(users, [f"new{n}" for n in range(3)]))
            assert await stored(store) == before
    finally:
        await small.close()
    small = await Store.open(replace(store_settings, max_items=3_000), hot=False)
    try:
        with pytest.raises(RegistryFull):
            await small.ratings.append_columns(ratings(["bob"] * 4_500, [f"new{n}" for n in range(4_500)]))
        assert await stored(store) == before
    finally:
        await small.close()


async def test_a_user_has_so_many_entries_and_the_refused_call_changes_nothing(store: Store) -> None:
    await store.ratings.append_columns(ratings(["ann"] * 19, ["i0", "i1"]), most_entries=20)
    before = await stored(store)
    n = await store.redis.hget(store.keys.user(1, b"ann"), "n")
    for users in (["ann"] * 2, [f"u{n}" for n in range(300)] + ["ann"] * 2):
        # With a new item as well, which must not stay.
        with pytest.raises(HistoryFull) as refused:
            await store.ratings.append_columns(ratings(users, ["i0", "new"]), most_entries=20)
        assert refused.value.user_id == b"ann"
        assert await stored(store) == before
        assert await store.redis.hget(store.keys.user(1, b"ann"), "n") == n
    # By the step itself, too: here nothing is looked at before.
    with pytest.raises(HistoryFull):
        await store.ratings.append_columns(ratings(["ann"] * 2, ["i0"]), most_entries=20)
    assert await stored(store) == before
    await store.ratings.append_columns(ratings(["ann"], ["i0"]), most_entries=20)
    # An import or a restore is not held to it.
    await store.ratings.append_columns(ratings(["ann"] * 5, ["i0"]))
