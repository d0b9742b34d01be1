"""Contexts of ratings: one is there if and only if the last entry of its rating gave it."""

import math
import struct
from typing import Any

import numpy as np
import pytest

from factors import Float32s
from featurestore import codecs
from featurestore.contexts import codec as contexts
from featurestore.errors import StoreError
from featurestore.keys import partition_of
from featurestore.ratings.batches import Columns
from featurestore.ratings.log import NewRating
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


def same(found: Float32s | None, wanted: list[list[float]]) -> None:
    np.testing.assert_array_equal(found, np.array(wanted, dtype=np.float32))


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


async def test_the_stream_has_the_contexts_of_its_events(store: Store) -> None:
    views = Columns(
        [b"u"] * 3,
        [b"a", b"b", b"a"],
        np.array([3.0, 1.0, 2.0]),
        np.array([1e9, 1e9, 2e9]),
        np.array([0, 1, 0], dtype=np.uint8),
        context=np.array([[1.0, NAN], [NAN, NAN], [NAN, 2.0]], dtype=np.float32),
    )
    await store.ratings.append_columns(views)
    await store.ratings.append([rating("u", "c"), rating("v", "a"), told("w", "a", NAN, NAN, 5.0)])
    events = await events_of(store)
    found = {
        (events.users[user], store.items(1).id(int(row & codecs.MAX_ITEM_ROW)), int(row >> 27), time): context
        for user, row, time, context in zip(
            events.user.tolist(),
            events.item_row.tolist(),
            events.time.tolist(),
            np.asarray(events.context).tolist(),
            strict=True,
        )
    }
    given = {key: [each for each in row if not math.isnan(each)] for key, row in found.items()}
    assert given == {
        (b"u", "a", 0, 1e9): [1.0],
        (b"u", "b", 1, 1e9): [],
        (b"u", "a", 0, 2e9): [2.0],
        (b"u", "c", 0, 1e9): [],
        (b"v", "a", 0, 1e9): [],
        (b"w", "a", 0, 1e9): [5.0],
    }


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


async def test_what_a_forgotten_user_has_again_keeps_its_contexts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.ratings.log.KEPT_AT_ONCE", 2)
    await store.ratings.append([told("u", "old", 1.0)])
    epoch = await store.epochs.begin()
    keep = Columns(
        [b"u"] * 5,
        [b"a", b"b", b"c", b"d", b"e"],
        np.full(5, 3.0),
        np.full(5, 1e9),
        context=np.array([[1.0], [2.0], [NAN], [NAN], [5.0]], dtype=np.float32),
    )
    await store.ratings.forget(b"u", keep)
    for each in (1, epoch):
        assert await held(store, epoch=each) == {"a": [1.0], "b": [2.0], "c": None, "d": None, "e": [5.0]}
        events = await events_of(store, each)
        assert np.nan_to_num(np.asarray(events.context)[-5:, 0]).tolist() == [1.0, 2.0, 0.0, 0.0, 5.0]


async def test_a_refusal_leaves_no_context(store: Store) -> None:
    await store.ratings.append([told("u", "a", 1.0), told("v", "a", 1.0)])
    p = partition_of(b"u", store.keys.partitions)
    key = store.keys.user_contexts(1, b"u")
    before = await store.redis.get(key), await store.redis.get(store.keys.history(1, b"u"))
    # The last write of the step is refused.
    await store.redis.delete(store.keys.counts(1, p))
    await store.redis.hset(store.keys.counts(1, p), "last", "9999999999999-1")
    await store.redis.xadd(store.keys.ratings(1, p), {"n": b""}, id="9999999999999-99")
    with pytest.raises(StoreError):
        await store.ratings.append([told("u", "a", 2.0), told("u", "b", 3.0)])
    assert (await store.redis.get(key), await store.redis.get(store.keys.history(1, b"u"))) == before
    assert await store.redis.hget(store.keys.user(1, b"u"), "n") == b"1"


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
    for step in range(80):
        await store.ratings.append([rating("u", "1", at=2e9 + step), rating("u", "2", at=2e9 + step)])
    await store.users.current(live, [b"u"])
    await wait_until_async(compacted, "the history is compacted")
    assert not await store.redis.exists(store.keys.user_contexts(1, b"u"))
    assert await held(store) == {"1": None, "2": None}


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: data[:-1], {"a", "b", "c"}),
        (lambda data: data[3:], {"a"}),
        (lambda data: data[:4] + struct.pack("<f", math.inf) + data[8:], {"a"}),
        (lambda data: data[:-24] + b"\xff\xff\xff\xff" + data[-20:], {"a", "b"}),
        (lambda _: b"\x01", {"a", "b", "c"}),
    ],
)
async def test_a_damaged_context_counts_as_not_given_and_is_named(
    store: Store, caplog: pytest.LogCaptureFixture, damage: Any, left: set[str]
) -> None:
    live = as_live(await publish(store, await lead(store), n_items=8))
    await store.ratings.append([told("u", "a", 1.0, 2.0), told("u", "b", 3.0), told("u", "c", 4.0)])
    key = store.keys.user_contexts(1, b"u")
    await store.redis.set(key, damage(await store.redis.get(key)))
    found = await held(store)
    assert {item for item, context in found.items() if context is None} >= left - {"a"}
    assert any("contexts damaged" in each.message for each in caplog.records)
    assert not any("contexts:u" in each.message for each in caplog.records)
    current = await store.users.current(live, [b"u"])
    assert np.isfinite(current.vectors).all()
    # And what comes after it is there.
    await store.ratings.append([told("u", "d", 5.0)])
    assert (await held(store))["d"] == [5.0]
