"""The stored catalogue on a real server of each kind."""

import asyncio

from featurestore.catalogue.catalogue import NO_VERSION
from featurestore.catalogue.item import CatalogueItem
from featurestore.keys import partition_of
from featurestore.store import Store


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
