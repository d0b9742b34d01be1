"""Ratings and events are taken back while others forget their user, or replace the history."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from featurestore.settings import StoreSettings
from featurestore.store import Store
from service.context import CONTEXT
from tests.support.factories import Written, lead, publish, rating
from tests.support.serving import Client, is_problem, serves, serving

Served = tuple[Client, web.Application]


@pytest.fixture
async def served(store_settings: StoreSettings, published: Written) -> AsyncIterator[Served]:
    async with serving(store_settings) as (client, app):
        await serves(client, published.writer.number)
        yield client, app


PATHS = pytest.mark.parametrize(
    ("path", "unknown"),
    [
        ("/ratings/eve/item-1", "unknown_rating"),
        ("/events/eve/item-1/view", "unknown_event"),
    ],
)


@PATHS
async def test_who_is_forgotten_meanwhile_is_not_brought_back(
    served: Served, store: Store, monkeypatch: pytest.MonkeyPatch, path: str, unknown: str
) -> None:
    client, app = served
    users = app[CONTEXT].store.users
    read = users.history
    for again in (0, 4):
        await client.post("/events", [{"user_id": "eve", "item_id": "item-1", "type": "view"}])
        await client.post("/ratings", {"user_id": "eve", "item_id": "item-1", "rating": 3})

        async def then_forgotten(epoch: int, user_id: bytes, again: int = again) -> Any:
            found = await read(epoch, user_id)
            monkeypatch.setattr(users, "history", read)
            # By another worker.
            await store.ratings.forget(user_id)
            await store.ratings.append([rating("eve", f"item-{2 + n}") for n in range(again)])
            return found

        monkeypatch.setattr(users, "history", then_forgotten)
        assert is_problem(await client.ask("DELETE", path), 404, unknown)
        # Nothing was added to what the user has rated since.
        assert (await store.users.history(1, b"eve"))[1].entries == again
        assert (await client.get("/users/eve")).status == (200 if again else 404)


async def test_it_is_taken_back_though_the_history_is_replaced_meanwhile(
    served: Served, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, app = served
    await store.ratings.append([rating("eve", f"item-{n}") for n in (1, 2, 1, 2)])
    users = app[CONTEXT].store.users
    read = users.history

    async def then_replaced(epoch: int, user_id: bytes) -> Any:
        found = await read(epoch, user_id)
        monkeypatch.setattr(users, "history", read)
        later = await store.epochs.begin()
        await store.items(later).register([b"item-2", b"item-1"])
        # Compacted: fewer entries than were read.
        await store.ratings.append([rating("eve", "item-1"), rating("eve", "item-2")], epoch=later)
        written = await publish(store, await lead(store), epoch=later, n_items=2)
        await store.epochs.finish(later)
        await serves(client, written.writer.number)
        return found

    monkeypatch.setattr(users, "history", then_replaced)
    assert (await client.ask("DELETE", "/ratings/eve/item-1")).status == 200
    page = (await client.get("/users/eve/ratings")).json
    assert [each["item_id"] for each in page["ratings"]] == ["item-2"]
