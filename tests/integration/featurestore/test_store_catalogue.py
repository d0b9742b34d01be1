"""The stored catalogue on a real server of each kind."""

import asyncio
from typing import Any

from featurestore.catalogue.catalogue import NO_VERSION
from featurestore.catalogue.item import CatalogueItem
from featurestore.store import Store


def becomes(item: Any) -> Any:
    return lambda _: item


async def put(store: Store, *items: CatalogueItem) -> None:
    await store.catalogue.change({item.item_id.encode(): becomes(item) for item in items})


async def test_changes_since_a_version_are_told(store: Store) -> None:
    seen = NO_VERSION
    for name in ("a", "b", "c"):
        await put(store, CatalogueItem(name))
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

    await asyncio.gather(*(store.catalogue.change({b"a": count}) for _ in range(5)))
    item = await store.catalogue.get(b"a")
    assert item is not None
    assert item.attributes == {"count": 5.0}


async def listed(store: Store) -> dict[bytes, bytes]:
    """The attributes of all users, by the list of those who have any."""
    found: dict[bytes, bytes] = {}
    async for some in store.attributes.read_all():
        assert not found.keys() & some.keys(), "each comes once"
        found.update(some)
    return found


async def scans(store: Store) -> int:
    """How often the store went through its keys."""
    stats = await store.redis.info("commandstats")
    return int(stats.get("cmdstat_scan", {}).get("calls", 0))


async def test_the_attributes_of_a_user_are_listed_and_go_with_it(store: Store) -> None:
    """The list of all who have any is read, and not all keys of the store."""
    users = {b"u%d" % n for n in range(20)} | {b"x}:attributes:y", b"{0}:attributes:z"}
    for user in users:
        await store.attributes.change(user, becomes({"age": 30.0}))
    assert set(await listed(store)) == users
    before = await scans(store)
    await store.attributes.change(b"u1", becomes(None))
    await store.attributes.change(b"new", becomes({"age": 1.0}))
    await store.ratings.forget(b"u2")
    at = await store.time_ms()
    # An erasure leaves what came after it.
    await store.attributes.erase(1, b"u4", at - 10_000)
    await store.attributes.erase(1, b"u3", at)
    await store.attributes.change(b"u4", becomes({"age": 31.0}))
    found = await listed(store)
    assert set(found) == (users | {b"new"}) - {b"u1", b"u2", b"u3"}
    assert b"31" in found[b"u4"]
    assert await store.attributes.get(b"u3") is None
    assert await scans(store) == before
