"""Contexts of ratings: one is there if and only if the last entry of its rating gave it. Their schema is
followed by all.
"""

import math

import numpy as np
import pytest

from featurestore.ratings.batches import Columns
from featurestore.ratings.log import NewRating
from featurestore.ratings.stream import Events
from featurestore.store import Store
from tests.support.factories import lead, rating

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


async def allowed() -> None:
    """Nothing else about the call is wrong."""
