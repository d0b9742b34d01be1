"""The schema of contexts in a real server of each kind: followed by all, changed by many at once."""

import asyncio

import numpy as np
import pytest

from featurestore.errors import StoreDamaged, StreamFull
from featurestore.ratings.context_schema import (
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
    rows = await store.contexts.rows([{"hour": 1, "device": "phone"}], extend=allowed)
    assert rows is not None
    # The copy of the other one is of less than a second ago, and has no field.
    asked = await other.rows([{"device": "phone"}])
    np.testing.assert_array_equal(asked, np.array([[np.nan, 0]], dtype=np.float32))
    with pytest.raises(UnknownContextField):
        await other.rows([{"day": 1}])
    await store.redis.set(store.keys.contexts, b"{")
    with pytest.raises(StoreDamaged, match=":contexts: no schema of contexts"):
        await another(store).rows([{"hour": 1}], extend=allowed)


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
