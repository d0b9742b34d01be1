"""The item registry: rows are given once, to one item each, whichever process asks."""

import asyncio
from dataclasses import replace

import pytest

from featurestore.errors import EpochGone, RegistryFull
from featurestore.store import Store


async def test_rows_are_given_in_order_and_once(store: Store) -> None:
    items = store.items(1)
    assert await items.register([b"a", b"b", b"a"]) == [0, 1, 0]
    assert await items.register([b"c", b"a"]) == [2, 0]
    assert [items.id(row) for row in range(3)] == ["a", "b", "c"]
    assert len(items) == 3
    ids = ["\N{SNOWMAN}".encode(), b"a b\r\n", b"{x}", b"0" * 256]
    assert await items.register(ids) == [3, 4, 5, 6]
    with pytest.raises(EpochGone):
        await store.items(9).register([b"a"])
    assert not await store.redis.exists(store.keys.items(9), store.keys.order(9))


async def test_two_processes_give_the_same_rows(store: Store) -> None:
    other = await Store.open(store.settings)
    ids = [b"%d" % i for i in range(300)]
    many = await asyncio.gather(
        *[s.items(1).register(ids[start:] + ids[:start]) for s in (store, other) for start in (0, 100, 200)]
    )
    by_id = [
        dict(zip(ids[s:] + ids[:s], rows, strict=True))
        for s, rows in zip((0, 100, 200) * 2, many, strict=True)
    ]
    assert all(rows == by_id[0] for rows in by_id)
    assert sorted(by_id[0].values()) == list(range(300))
    await other.close()


async def test_lookups_do_not_register(store: Store) -> None:
    other = await Store.open(store.settings)
    await other.items(1).register([b"a", b"b"])
    items = store.items(1)
    assert items.row(b"b") is None
    assert await items.rows([b"b", b"unknown", b"a", b""]) == [1, None, 0, None]
    assert items.row(b"b") == 1
    assert await store.redis.llen(store.keys.order(1)) == 2
    await other.close()


async def test_a_full_registry_takes_known_items_only(store: Store) -> None:
    small = await Store.open(replace(store.settings, max_items=2))
    items = small.items(1)
    assert await items.register([b"a", b"b"]) == [0, 1]
    with pytest.raises(RegistryFull):
        await items.register([b"a", b"c"])
    assert await items.rows([b"c"]) == [None]
    assert await items.register([b"b"]) == [1]
    await small.close()
