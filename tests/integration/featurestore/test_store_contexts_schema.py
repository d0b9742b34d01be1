"""The schema of contexts in a real server of each kind: followed by all, changed by many at once."""

import asyncio
from functools import partial
from threading import current_thread

import numpy as np
import pytest

from featurestore.errors import HistoryFull, StoreDamaged, StreamFull
from featurestore.ratings.batches import Columns
from featurestore.ratings.context_schema import (
    ContextField,
    ContextRefused,
    ContextSchema,
    UnknownContextField,
)
from featurestore.ratings.stored_context_schema import StoredContextSchema
from featurestore.store import Store


async def allowed() -> None:
    """Nothing else about the call is wrong."""


async def refused() -> None:
    raise StreamFull("no room", 1.0)


def another(store: Store) -> StoredContextSchema:
    """As another process has it."""
    return StoredContextSchema(store.keys, store.redis, store.confirmation)


async def test_contexts_of_ratings_are_registered_and_known_to_others(store: Store) -> None:
    other = another(store)
    assert await other.rows([None, {}], extend=allowed) is None
    assert await other.current() == ContextSchema()
    assert await store.redis.get(store.keys.contexts) is None, "nothing is stored before there is a field"
    rows = await store.contexts.rows([{"hour": 1, "device": "phone"}], extend=allowed)
    assert rows is not None
    # The copy of the other one is of less than a second ago, and has no field.
    asked = await other.rows([{"device": "phone"}])
    np.testing.assert_array_equal(asked, np.array([[np.nan, 0]], dtype=np.float32))
    with pytest.raises(UnknownContextField):
        await other.rows([{"day": 1}])


async def test_fields_that_come_at_once_get_places_of_their_own(store: Store) -> None:
    writers = [another(store) for _ in range(6)]
    given = [[{f"v{k}": k, "device": f"d{k}"}] for k in range(6)]
    await asyncio.gather(
        *(each.rows(rows, extend=allowed) for each, rows in zip(writers, given, strict=True))
    )
    schema = await store.contexts.fresh()
    assert {each.name for each in schema.fields} == {"device", *(f"v{k}" for k in range(6))}
    for writer, rows in zip(writers, given, strict=True):
        found = await writer.rows(rows, extend=allowed)
        assert found is not None
        assert schema.named(found[0]) == rows[0]


async def test_what_is_refused_leaves_nothing(store: Store) -> None:
    with pytest.raises(ContextRefused):
        await store.contexts.rows([{"hour": 1}, {"hour": "noon"}], extend=allowed)
    assert await store.redis.get(store.keys.contexts) is None


async def test_damaged_bytes_are_told(store: Store) -> None:
    await store.redis.set(store.keys.contexts, b"{")
    with pytest.raises(StoreDamaged, match=":contexts: no schema of contexts"):
        await store.contexts.rows([{"hour": 1}], extend=allowed)


async def test_ratings_that_are_refused_leave_no_field_and_no_category(store: Store) -> None:
    with pytest.raises(StreamFull):
        await store.contexts.rows([{"typo": 1}], extend=refused)
    assert await store.redis.get(store.keys.contexts) is None
    await store.contexts.rows([{"device": "tv"}], extend=allowed)
    with pytest.raises(StreamFull):
        await store.contexts.rows([{"device": "tvv"}], extend=refused)
    # What is known asks nothing more.
    assert await store.contexts.rows([{"device": "tv"}], extend=refused) is not None
    assert [each.shown for each in (await store.contexts.fresh()).fields] == [("tv",)]


async def test_what_is_known_before_is_checked_of_a_single_rating_too(store: Store) -> None:
    columns = Columns([b"u"], [b"i"], np.array([3.0]), np.array([1e9]))
    await store.ratings.append_columns(columns, most_entries=1)
    with pytest.raises(HistoryFull):
        await store.contexts.rows([{"typo": 1}], extend=partial(store.ratings.admit, columns, most_entries=1))
    assert await store.redis.get(store.keys.contexts) is None


async def test_what_is_retired_stays_so_until_it_is_told(store: Store) -> None:
    other = another(store)
    await store.contexts.rows([{"typo": 1, "device": "tv"}], extend=allowed)
    rows = await other.rows([{"typo": 2, "device": "tv"}], extend=allowed)
    assert rows is not None
    await store.contexts.retire("typo")
    await store.contexts.retire("device", "tv")
    assert (await other.fresh()).named(rows[0]) == {}
    with pytest.raises(ContextRefused, match="'typo' is retired"):
        await other.rows([{"typo": 1}], extend=allowed)
    # One that had read it before may not bring it back by what else it adds.
    late = another(store)
    await late.rows([{"new": 1}], extend=allowed)
    assert [each.name for each in (await store.contexts.fresh()).shown] == ["device", "new"]
    back = await store.contexts.tell([ContextField("typo", "number")])
    assert back.named(rows[0]) == {"typo": 2}
    # The copy of the other one is of less than a second ago.
    assert await other.rows([{"typo": 1}], extend=allowed) is not None


async def test_what_is_stored_is_parsed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other, parsed = another(store), list[bytes]()
    read = other._from_bytes

    def counted(data: bytes) -> ContextSchema:
        parsed.append(data)
        return read(data)

    monkeypatch.setattr(other, "_from_bytes", counted)
    for k in range(3):
        await store.contexts.rows([{"device": f"{k}"}], extend=allowed)
        first, again = await other.fresh(), await other.fresh()
        assert first is again
        assert len(parsed) == k + 1
    # A large one in a thread.
    texts = [{"device": f"{k:060}"} for k in range(200)]
    assert await other.rows(texts, extend=allowed) is not None
    threads = set[str]()

    def told(data: bytes) -> ContextSchema:
        threads.add(current_thread().name)
        return read(data)

    monkeypatch.setattr(other, "_from_bytes", told)
    await store.contexts.rows([{"hour": 1}], extend=allowed)
    assert len((await other.fresh()).fields) == 2
    assert threads
    assert "MainThread" not in threads
