"""The ratings log: what is acknowledged is there, what is refused changed nothing, who is forgotten stays
forgotten.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from featurestore import codecs
from featurestore.errors import StreamFull
from featurestore.keys import digest_of
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.factories import lead, make_draft, make_items, make_model, rating


async def held(store: Store, user: str, epoch: int = 1) -> dict[str, float]:
    """What a user's history says, by item id."""
    _, history = await store.users.history(epoch, user.encode())
    items = store.items(epoch)
    await items.refresh()
    return {items.id(row): value for row, value in zip(history.item_row, history.rating, strict=True)}


async def counter(store: Store, user: str, epoch: int = 1) -> int:
    return (await store.users.history(epoch, user.encode()))[0]


async def test_every_rating_is_an_event_with_its_n(store: Store) -> None:
    lease = await lead(store)
    sent = [rating(f"u{n % 5}", f"i{n}", 1.0 + n % 5, 1e9 + n) for n in range(50)]
    await store.ratings.append(sent)
    events = await store.stream.read(1, lease, 1000, 0)
    assert len(events) == 50
    for user in range(5):
        mine = [n for n, user_id in enumerate(events.user_id) if user_id == b"u%d" % user]
        assert events.n[mine].tolist() == list(range(1, 11))
    wanted = {(r.user_id, r.item_id, r.rating, r.time) for r in sent}
    items = store.items(1)
    found = {
        (events.user_id[n], items.id(int(events.item_row[n])).encode(), events.rating[n], events.time[n])
        for n in range(50)
    }
    assert found == wanted


async def test_a_full_stream_refuses_before_the_first_write(store: Store) -> None:
    small = await Store.open(replace(store.settings, stream_limit=10))
    await small.ratings.append([rating("u", f"i{n}") for n in range(8)])
    with pytest.raises(StreamFull) as caught:
        await small.ratings.append([rating("u", "x"), rating("u", "y"), rating("u", "z")])
    assert caught.value.retry_after_s > 0
    assert await counter(small, "u") == 8
    # Users of every partition, one of which has no room.
    many = [rating(f"v{n}", "x") for n in range(20)] + [rating("u", "x"), rating("u", "y"), rating("u", "z")]
    with pytest.raises(StreamFull):
        await small.ratings.append(many)
    assert [await counter(small, f"v{n}") for n in range(20)] == [0] * 20
    await small.ratings.append([rating("u", "x"), rating("u", "y")])
    await small.close()


async def test_a_forgotten_user_is_gone_and_the_trainer_is_told(store: Store) -> None:
    lease = await lead(store)
    await store.ratings.append([rating("u", "a"), rating("u", "b"), rating("u", "a", math.nan)])
    receipt = await store.ratings.forget(b"u")
    assert (receipt.ratings, receipt.n, receipt.digest) == (1, 3, digest_of(b"u"))
    n, history = await store.users.history(1, b"u")
    assert (n, len(history)) == (0, 0)
    assert not await store.redis.exists(store.keys.user(1, b"u"), store.keys.history(1, b"u"))
    events = await store.stream.read(1, lease, 1000, 0)
    assert events.item_row.tolist()[-1] == codecs.FORGOTTEN_ROW
    assert events.n.tolist()[-1] == 3
    assert await store.ratings.forgotten(1) == {digest_of(b"u"): 3}
    # Again, or of a user who never was, it is harmless.
    again, unknown = await store.ratings.forget(b"u"), await store.ratings.forget(b"unknown")
    assert (again.ratings, again.n, unknown.ratings) == (0, 3, 0)
    assert not await store.stream.read(1, lease, 1000, 0)


async def test_who_comes_back_counts_on_and_old_records_stay_out(store: Store) -> None:
    lease = await lead(store)
    model = make_model()
    writer = await store.generations.begin(lease, make_draft(model, 1), {0: "1-1"})
    await writer.write_items(make_items(model, 2), model)
    vectors = np.ones((1, model.user_width), dtype=np.float32)
    await store.ratings.append([rating("u", "a")] * 5)
    await store.ratings.forget(b"u")
    # A fit that knew the user writes its record after it was forgotten, and after it came back.
    assert await writer.write_users([b"u"], np.array([5]), vectors) == 0
    await store.ratings.append([rating("u", "b")])
    assert await counter(store, "u") == 6
    assert await writer.write_users([b"u"], np.array([5]), vectors) == 0
    assert await writer.write_users([b"u"], np.array([6]), vectors) == 1
    assert await held(store, "u") == {"b": 3.0}


async def test_a_write_that_was_decided_on_another_store_is_decided_again(
    store: Store, store_settings: StoreSettings
) -> None:
    """Two processes know the rows of the store before; one has set the emptied store up again, and the other
    does not know of it yet.
    """
    other = await Store.open(store_settings, hot=False)
    try:
        for each in (store, other):
            await each.ratings.append([rating("u", "a"), rating("u", "b")])
        names = [
            key async for key in store.redis.scan_iter(match=f"*{store.settings.namespace}*", count=1000)
        ]
        await store.redis.delete(*names)
        await store.ratings.append([rating("u", "b", 2.0)])
        # Row 1 of the store before, where `b` is row 0 now; several partitions, and one.
        await other.ratings.append([rating(f"v{n}", "b", 4.0) for n in range(40)])
        await other.ratings.append([rating("u", "c", 5.0)])
        assert await held(store, "u") == {"b": 2.0, "c": 5.0}
        assert await held(store, "v7") == {"b": 4.0}
        assert await store.redis.lrange(store.keys.order(1), 0, -1) == [b"b", b"c"]
        assert other.identity == store.identity
        # What has lost its identity alone takes ratings.
        await store.redis.delete(store.keys.config)
        await store.look_again()
        await store.ratings.append([rating("u", "d")])
        assert set(await held(store, "u")) == {"b", "c", "d"}
    finally:
        await other.close()
