"""Contexts of ratings: one is there if and only if the last entry of its rating gave it. Their schema is
followed by all.
"""

import asyncio
import math

import numpy as np
import pytest

from featurestore import codecs
from featurestore.contexts import codec as contexts
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import NewRating
from featurestore.ratings.stored_context_schema import StoredContextSchema
from featurestore.ratings.stream import Events
from featurestore.store import Store
from tests.support.factories import as_live, lead, publish, rating
from tests.support.waiting import wait_until_async

NAN = math.nan


def told(user: str, item: str, *context: float, at: float = 1e9, value: float = 3.0) -> NewRating:
    """A rating with a context."""
    return NewRating(user.encode(), item.encode(), value, at, np.array(context, dtype=np.float32))


async def held(store: Store, user: str = "u", epoch: int = 1) -> dict[str, list[float] | None]:
    """The context of each rating of a user, by item; None where nothing of it was given."""
    _, history = await store.users.history(epoch, user.encode())
    items = store.items(epoch)
    await items.refresh()
    rows = [None] * len(history) if history.context is None else list(history.context)
    return {
        items.id(int(item)): None if row is None or np.isnan(row).all() else row.tolist()
        for item, row in zip(history.item_row, rows, strict=True)
    }


async def events_of(store: Store, epoch: int = 1) -> Events:
    return await store.stream.read(epoch, await lead(store), 10_000, 0)


async def test_a_context_is_what_the_last_entry_of_its_rating_gave(store: Store) -> None:
    await store.ratings.append([told("u", "a", 1.5, NAN, 3.0), rating("u", "b"), rating("v", "a")])
    assert await held(store) == {"a": [1.5, pytest.approx(NAN, nan_ok=True), 3.0], "b": None}
    assert await held(store, "v") == {"a": None}
    # Another one at the same moment, then none at the same moment.
    await store.ratings.append([told("u", "a", 7.0), told("u", "b", 8.0)])
    assert await held(store) == {"a": [7.0], "b": [8.0]}
    await store.ratings.append([rating("u", "a")])
    assert await held(store) == {"a": None, "b": [8.0]}
    # Taken back and rated again, at the same moment.
    await store.ratings.append([rating("u", "b", NAN), rating("u", "b")])
    assert await held(store) == {"a": None, "b": None}


async def test_both_epochs_get_them_and_what_came_in_live_keeps_its_own(store: Store) -> None:
    await store.ratings.append([told("u", "x", 9.0), told("u", "a", 1.0)])
    epoch = await store.epochs.begin()
    # Rows of items are others there; live ratings go to both.
    await store.items(epoch).register([b"z", b"a"])
    await store.ratings.append([told("u", "a", 2.0)])
    # Of the same moment, but from before.
    await store.ratings.append([told("u", "a", 3.0), told("u", "b", 4.0)], epoch=epoch)
    assert await held(store) == {"x": [9.0], "a": [2.0]}
    assert await held(store, epoch=epoch) == {"a": [2.0], "b": [4.0]}
    # The stream of each has them, for the trainer.
    events = await events_of(store)
    assert np.asarray(events.context)[:, 0].tolist() == [9.0, 1.0, 2.0]
    # They go with their user, but for those of what is rated anew.
    keep = Columns([b"u"], [b"a"], np.ones(1), np.full(1, 1e9), context=np.ones((1, 1), dtype=np.float32))
    await store.ratings.forget(b"u", keep)
    for each in (1, epoch):
        assert await held(store, epoch=each) == {"a": [1.0]}


async def test_contexts_are_compacted_with_their_history(store: Store) -> None:
    live = as_live(await publish(store, await lead(store), n_items=200))
    await store.items(1).register([b"%d" % row for row in range(200)])
    for step in range(80):
        await store.ratings.append([told("u", "1", float(step), at=1e9 + step), told("u", "2", 0.5)])
    size = await store.redis.strlen(store.keys.user_contexts(1, b"u"))
    assert size == 160 * (contexts.LEAST_BYTES + 4)
    await store.users.current(live, [b"u"])

    async def compacted() -> bool:
        return await store.redis.strlen(store.keys.history(1, b"u")) == 2 * codecs.ENTRY_BYTES

    await wait_until_async(compacted, "the history is compacted")
    assert await store.redis.strlen(store.keys.user_contexts(1, b"u")) == 2 * (contexts.LEAST_BYTES + 4)
    assert await held(store) == {"1": [79.0], "2": [0.5]}


async def allowed() -> None:
    """Nothing else about the call is wrong."""


def another(store: Store) -> StoredContextSchema:
    """As another process has it."""
    return StoredContextSchema(store.keys, store.redis, store.confirmation)


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
