"""Bounds in the store: what waits, items, entries of a user. A refused call changes nothing."""

import numpy as np
import pytest

from featurestore.errors import HistoryFull
from featurestore.ratings.batches import Columns
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
