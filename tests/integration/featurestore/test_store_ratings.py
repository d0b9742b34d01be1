"""The ratings log and the catalogue: what is acknowledged is there, what is refused changed nothing."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest

from featurestore.catalogue.catalogue import NO_VERSION
from featurestore.catalogue.item import CatalogueItem
from featurestore.codecs import pack_history
from featurestore.errors import HistoryFull, StreamFull
from featurestore.keys import partition_of
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.support.factories import keys_of, lead, opened, rating


async def held(store: Store, user: str, epoch: int = 1) -> dict[str, float]:
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
        # In the order of the calls.
        assert events.time[mine].tolist() == [each.time for each in sent if each.user_id == b"u%d" % user]
    wanted = {(r.user_id, r.item_id, r.rating, r.time) for r in sent}
    items = store.items(1)
    found = {
        (events.user_id[n], items.id(int(events.item_row[n])).encode(), events.rating[n], events.time[n])
        for n in range(50)
    }
    assert found == wanted


async def test_a_full_stream_refuses_before_the_first_write(store: Store) -> None:
    async with opened(replace(store.settings, stream_limit=10)) as small:
        await small.ratings.append([rating("u", f"i{n}") for n in range(8)])
        with pytest.raises(StreamFull) as caught:
            await small.ratings.append([rating("u", "x"), rating("u", "y"), rating("u", "z")])
        assert caught.value.retry_after_s > 0
        assert await counter(small, "u") == 8
        # Users of every partition, one of which has no room.
        many = [*(rating(f"v{n}", "x") for n in range(20)), *(rating("u", item) for item in "xyz")]
        with pytest.raises(StreamFull):
            await small.ratings.append(many)
        assert [await counter(small, f"v{n}") for n in range(20)] == [0] * 20
        await small.ratings.append([rating("u", "x"), rating("u", "y")])


async def test_a_full_history_refuses_before_the_first_write(store: Store) -> None:
    def rated(users: list[bytes], item: bytes = b"i0") -> Columns:
        return Columns(users, [item] * len(users), np.full(len(users), 3.0), np.full(len(users), 1e9))

    await store.ratings.append_columns(rated([b"ann"] * 19), most_entries=20)
    for users in ([b"ann"] * 2, [*(b"u%d" % n for n in range(300)), *[b"ann"] * 2]):
        # A new item, which must not stay, and a known one, of which nothing is looked up before the step.
        for item in (b"new", b"i0"):
            with pytest.raises(HistoryFull) as refused:
                await store.ratings.append_columns(rated(users, item), most_entries=20)
            assert refused.value.user_id == b"ann"
    assert await store.redis.llen(store.keys.order(1)) == 1
    assert (sum((await store.stream.lag(1)).values()), await counter(store, "ann")) == (19, 19)
    await store.ratings.append_columns(rated([b"ann"]), most_entries=20)
    # An import or a restore is not held to it.
    await store.ratings.append_columns(rated([b"ann"] * 5))


async def test_a_write_decided_on_another_store_is_redone(store: Store) -> None:
    """One of two processes has set the emptied store up again, and the other does not know of it yet."""
    async with opened(store.settings, hot=False) as other:
        for each in (store, other):
            await each.ratings.append([rating("u", "a"), rating("u", "b")])
        await store.redis.delete(*await keys_of(store))
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


async def contexts_of(store: Store, user: bytes) -> dict[str, list[float] | None]:
    """The context of each rating of a user, by item; None where nothing of it was given."""
    _, history = await store.users.history(1, user)
    await store.items(1).refresh()
    rows = [None] * len(history) if history.context is None else list(history.context)
    return {
        store.items(1).id(int(item)): None if row is None or np.isnan(row).all() else row.tolist()
        for item, row in zip(history.item_row, rows, strict=True)
    }


async def test_a_context_is_what_the_last_entry_of_its_rating_gave(store: Store) -> None:
    def told(item: str, *context: float) -> NewRating:
        return replace(rating("u", item), context=np.array(context, dtype=np.float32))

    await store.ratings.append([told("a", 1.5, math.nan, 3.0), rating("u", "b"), rating("v", "a")])
    given = [1.5, pytest.approx(math.nan, nan_ok=True), 3.0]
    assert await contexts_of(store, b"u") == {"a": given, "b": None}
    assert await contexts_of(store, b"v") == {"a": None}
    # Another one at the same moment, then none at the same moment.
    await store.ratings.append([told("a", 7.0), told("b", 8.0)])
    assert await contexts_of(store, b"u") == {"a": [7.0], "b": [8.0]}
    await store.ratings.append([rating("u", "a")])
    assert await contexts_of(store, b"u") == {"a": None, "b": [8.0]}
    # Taken back and rated again, at the same moment.
    await store.ratings.append([rating("u", "b", math.nan), rating("u", "b")])
    assert await contexts_of(store, b"u") == {"a": None, "b": None}


async def test_a_rating_is_taken_back_unless_its_item_had_an_event_since(store: Store) -> None:
    """Users who cannot be judged keep it, too, and no others for that."""
    users = [b"still", b"other", b"viewed", b"again", b"gone", b"compacted", b"torn", b"odd"]
    await store.ratings.append([rating(user.decode(), item) for user in users for item in ("x", "y")])
    at, viewed = np.array([1e9]), np.array([1], dtype=np.uint8)
    await store.ratings.append_columns(Columns([b"viewed"], [b"x"], np.array([1.0]), at, viewed))
    changed = [rating(user, "x", 2.0) for user in ("again", "compacted", "compacted")]
    await store.ratings.append([*changed, rating("other", "z")])
    n, history = await store.users.history(1, b"compacted")
    await store.redis.set(store.keys.history(1, b"compacted"), pack_history(history))
    await store.ratings.forget(b"gone")
    await store.redis.append(store.keys.history(1, b"torn"), b"-")
    await store.redis.delete(store.keys.history(1, b"odd"))
    await store.redis.hset(store.keys.history(1, b"odd"), "of another", "type")
    nan, then = np.full(len(users), math.nan), np.full(len(users), 1e9)
    known = dict.fromkeys(users, 2)
    columns = Columns(users, [b"x"] * len(users), nan, then, known=known, only_into=(1,))
    assert await store.ratings.append_columns(columns) == 4
    ns = [await counter(store, user) for user in ("still", "other", "viewed", "again", "compacted")]
    assert ns == [3, 4, 4, 3, n]
    assert [len(await held(store, user)) for user in ("still", "other", "again")] == [1, 2, 2]


async def test_changes_since_a_version_are_told(store: Store) -> None:
    seen = NO_VERSION
    for name in ("a", "b", "c"):
        await store.catalogue.change({name.encode(): lambda _, name=name: CatalogueItem(name)})  # type: ignore[misc]
        found = await store.catalogue.changes_since(seen, 10)
        assert (found.item_ids, found.whole) == ([name.encode()], True)
        seen = found.version
        assert seen == await store.catalogue.version()
    assert (await store.catalogue.changes_since(NO_VERSION, 2)).item_ids == [b"a", b"b", b"c"]
    assert (await store.catalogue.changes_since(seen, 10)).item_ids == []
    # Of another store, or of one that lost its last changes and took others since.
    assert not (await store.catalogue.changes_since(b"3-123", 10)).whole
    assert not (await store.catalogue.changes_since(b"9-1", 10)).whole


async def test_changes_of_one_item_at_a_time_lose_nothing(store: Store) -> None:
    def count(item: CatalogueItem | None) -> CatalogueItem:
        before = 0.0 if item is None else float(item.attributes["count"])  # type: ignore[arg-type]
        return CatalogueItem("a", attributes={"count": before + 1})

    await store.catalogue.schema.hold("items", {"count": "number"})
    await asyncio.gather(*(store.catalogue.change({b"a": count}) for _ in range(5)))
    item = await store.catalogue.get(b"a")
    assert item is not None
    assert item.attributes == {"count": 5.0}


async def test_attributes_that_come_after_an_erasure_stay_whatever_the_clock_says(store: Store) -> None:
    user, ahead_ms = b"ann", await store.time_ms() + 600_000
    counts = store.keys.counts(1, partition_of(user, store.keys.partitions))
    # As a user leaves it who was forgotten while the clock was ahead.
    await store.redis.hset(counts, "floor", ahead_ms)
    await store.attributes.change(user, lambda _: {"age": 30.0})
    await store.attributes.erase(1, user, ahead_ms)
    assert await store.attributes.stored([user]) == [b'{"age":30.0}']
