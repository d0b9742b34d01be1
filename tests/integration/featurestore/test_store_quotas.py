"""Quotas in the store: buckets that workers share, new items, entries of a user; a refused call changes
nothing.
"""

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from featurestore.errors import HistoryFull, ItemsSpent, RegistryFull, StoreError, StreamFull
from featurestore.keys import digest_of
from featurestore.quotas.buckets import Spending
from featurestore.quotas.limits import DEFAULT, Limits, Rate, WriteLimits, parse_quota, parse_quotas
from featurestore.ratings.batches import Columns
from featurestore.settings import StoreSettings
from featurestore.store import Store

SHOP = digest_of(b"key shop")
SLOW = Rate(10.0, 10.0 / 3600, "10/h")


def ratings(users: list[str], items: list[str]) -> Columns:
    """One rating of each user for each item in turn."""
    n = len(users)
    return Columns(
        [user.encode() for user in users],
        [items[at % len(items)].encode() for at in range(n)],
        np.full(n, 3.0),
        np.full(n, 1e9),
    )


def only(items: Rate | None = None, history: int | None = None) -> WriteLimits:
    return WriteLimits(SHOP, items, history)


@pytest.fixture
async def other(store_settings: StoreSettings, store: Store) -> AsyncIterator[Store]:
    """The store as another worker has opened it."""
    opened = await Store.open(store_settings, hot=False)
    yield opened
    await opened.close()


async def stored(store: Store) -> tuple[int, object]:
    """How many items there are, and what waits in the streams."""
    return await store.redis.llen(store.keys.order(1)), await store.stream.lag(1)


async def test_what_any_worker_reports_counts_once_and_comes_back_with_time(
    store: Store, other: Store
) -> None:
    minute = Rate(600.0, 10.0, "600/m")
    assert await store.quotas.spend([Spending(b"requests:a", minute, 100.0)]) == [500.0]
    (left,) = await other.quotas.spend([Spending(b"requests:a", minute, 550.0)])
    # Below nothing: it was let through already, and is paid for by waiting.
    assert -50.0 <= left < -40.0
    spent = [Spending(b"requests:%d" % each, minute, float(each)) for each in range(600)]
    assert await store.quotas.spend(spent) == pytest.approx([600.0 - each for each in range(600)])
    # As long as it takes to be full again, and no longer.
    assert 60_000 < await store.redis.pttl(store.keys.bucket(b"requests:a")) <= 65_000
    await store.redis.set(store.keys.bucket(b"requests:b"), b"what no bucket is")
    assert await store.quotas.spend([Spending(b"requests:b", minute, 1.0)]) == [599.0]
    await store.redis.lpush(store.keys.bucket(b"requests:c"), b"nor this")
    with pytest.raises(StoreError):
        await store.quotas.spend([Spending(b"requests:c", minute, 1.0)])


async def test_new_items_are_bounded_for_a_caller_and_known_ones_are_free(store: Store, other: Store) -> None:
    await store.ratings.append_columns(ratings(["ann"] * 6, [f"i{n}" for n in range(6)]), limits=only(SLOW))
    before = await stored(store)
    # Another worker, which has met none of these items: one call, five of them new.
    more = ratings(["bob"] * 6, ["i0", *(f"j{n}" for n in range(5))])
    with pytest.raises(ItemsSpent) as refused:
        await other.ratings.append_columns(more, limits=only(SLOW))
    assert 300 < refused.value.retry_after_s <= 360
    assert await stored(store) == before
    await other.ratings.append_columns(ratings(["bob"] * 6, ["i0", "i1", "j0"]), limits=only(SLOW))
    # Another caller, and one without a quota.
    await other.ratings.append_columns(more, limits=WriteLimits(digest_of(b"key other"), SLOW, None))
    await other.ratings.append_columns(ratings(["bob"] * 50, [f"k{n}" for n in range(50)]))


async def test_a_call_of_several_blocks_of_new_items_is_registered_whole_or_not_at_all(
    store: Store, other: Store
) -> None:
    few = Rate(3_000.0, 1.0, "3000/h")
    many = ratings(["ann"] * 4_500, [f"i{n}" for n in range(4_500)])
    await store.ratings.append_columns(many.part(slice(0, 1_000)), limits=only(few))
    before = await stored(store)
    with pytest.raises(ItemsSpent):
        await other.ratings.append_columns(many, limits=only(few))
    assert await stored(store) == before
    # More than a bucket ever holds: a full one takes it, and has less than nothing then.
    await other.ratings.append_columns(many, limits=WriteLimits(digest_of(b"full"), few, None))
    with pytest.raises(ItemsSpent):
        await other.ratings.append_columns(
            ratings(["ann"], ["new"]), limits=WriteLimits(digest_of(b"full"), few, None)
        )


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
    limits = only(history=20)
    await store.ratings.append_columns(ratings(["ann"] * 19, ["i0", "i1"]), limits=limits)
    before = await stored(store)
    n = await store.redis.hget(store.keys.user(1, b"ann"), "n")
    for users in (["ann"] * 2, [f"u{n}" for n in range(300)] + ["ann"] * 2):
        # With a new item as well, which must not stay.
        with pytest.raises(HistoryFull) as refused:
            await store.ratings.append_columns(ratings(users, ["i0", "new"]), limits=limits)
        assert refused.value.user_id == b"ann"
        assert await stored(store) == before
        assert await store.redis.hget(store.keys.user(1, b"ann"), "n") == n
    # By the step itself, too: here nothing is looked at before.
    with pytest.raises(HistoryFull):
        await store.ratings.append_columns(ratings(["ann"] * 2, ["i0"]), limits=limits)
    assert await stored(store) == before
    await store.ratings.append_columns(ratings(["ann"], ["i0"]), limits=limits)
    # An import or a restore is not held to it.
    await store.ratings.append_columns(ratings(["ann"] * 5, ["i0"]))


@pytest.mark.parametrize(
    "text", ["requests", "requests=5", "requests=0/s", "history=5/s", "calls=5/s", "items=1e3/h", "OFF", "="]
)
def test_what_is_no_quota_is_refused_with_what_it_must_be(text: str) -> None:
    with pytest.raises(ValueError, match="must be quotas like requests=500/s"):
        parse_quota(text)


def test_quotas_are_written_over_others_one_after_the_other() -> None:
    limits = DEFAULT.but(parse_quotas("requests=500/s, items=off  history=7"))
    assert limits.requests == Rate(500.0, 500.0, "500/s")
    assert (limits.items, limits.history, limits.ratings) == (None, 7, DEFAULT.ratings)
    assert DEFAULT.but(parse_quotas("off")) == Limits()
    per_hour = DEFAULT.but(parse_quotas("off,items=36/h")).items
    assert per_hour is not None
    assert per_hour.per_s == 0.01
