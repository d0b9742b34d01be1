"""A load of the catalogue goes on without the answer that began it, and holds up no other epoch."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from featurestore.catalogue.catalogue import Changes, ItemState
from featurestore.catalogue.item import CatalogueItem, pack_item, unpack_item
from featurestore.errors import StoreDamaged, StoreUnavailable
from service.catalogue import follower as catalogue_follower
from service.catalogue.follower import CatalogueFollower

ITEM = b"dune"


class _Catalogue:
    """One item, and the changes of it."""

    def __init__(self) -> None:
        self.changes: list[bytes] = [b"1-1"]
        self.hidden = False
        self.loads = 0
        self.failure: Exception | None = None

    def hide(self) -> None:
        self.hidden = True
        self.changes.append(b"2-1")

    def ask_version(self) -> "asyncio.Future[list[Any]]":
        asked = asyncio.get_running_loop().create_future()
        asked.set_result([self.changes[-1]])
        return asked

    def version_of(self, reply: bytes) -> bytes:
        return reply

    async def version(self) -> bytes:
        return self.changes[-1]

    async def ids(self, _: int, *, after: bytes) -> list[bytes]:
        if after:
            return []
        self.loads += 1
        if self.failure is not None:
            raise self.failure
        return [ITEM]

    async def deleted(self, _: int) -> tuple[int, list[bytes]]:
        return 0, []

    async def states(self, item_ids: Sequence[bytes]) -> list[ItemState]:
        data = pack_item(CatalogueItem("dune", hidden=self.hidden))
        return [ItemState(item_id, data, deleted=False) for item_id in item_ids]

    async def changes_since(self, version: bytes, _: int) -> Changes:
        since = self.changes[self.changes.index(version) + 1 :]
        return Changes(self.changes[-1], [ITEM] if since else [], whole=True)

    async def require_whole(self) -> None: ...

    def read(self, data: bytes) -> CatalogueItem:
        return unpack_item(data, "key")


class _Registry:
    """It has the item; it says so when `goes_on` is set."""

    def __init__(self) -> None:
        self.ids = [ITEM]
        self.goes_on, self.asked = asyncio.Event(), asyncio.Event()

    async def rows(self, item_ids: Sequence[bytes]) -> list[int]:
        self.asked.set()
        await self.goes_on.wait()
        return [0] * len(item_ids)


class _Store:
    def __init__(self) -> None:
        self.catalogue = _Catalogue()
        self.users = SimpleNamespace(moved=False)
        self.registries = {1: _Registry(), 2: _Registry()}

    def items(self, epoch: int) -> _Registry:
        return self.registries[epoch]


async def shown(follower: CatalogueFollower, epoch: int) -> bool:
    """Whether the item is in a list that is asked for now."""
    view, degraded = await follower.current(follower.ask(), epoch)
    assert not degraded
    allowed = view.allowed(0.0, 1)
    return allowed is None or bool(allowed[0])


def loads() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("load the catalogue")]


async def test_a_load_that_outlasts_an_answer_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store()
    follower = CatalogueFollower(cast("Any", store))
    store.catalogue.failure = StoreUnavailable("away")
    await follower.prepare(1)
    store.catalogue.failure = None
    with monkeypatch.context() as patch:
        patch.setattr(catalogue_follower, "_WAIT_S", 0.02)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="being read"):
                await shown(follower, 1)
    # The load has read the item as it was before.
    store.catalogue.hide()
    store.registries[1].goes_on.set()
    assert not await shown(follower, 1)
    assert store.catalogue.loads == 2
    assert not loads()


async def test_a_load_of_the_next_epoch_holds_up_no_answer_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue_follower, "_WAIT_S", 1.0)
    store = _Store()
    follower = CatalogueFollower(cast("Any", store))
    store.registries[1].goes_on.set()
    assert await shown(follower, 1)
    preparing = asyncio.create_task(follower.prepare(2))
    await store.registries[2].asked.wait()
    store.catalogue.hide()
    assert not await shown(follower, 1)
    assert not preparing.done()
    store.registries[2].goes_on.set()
    await preparing
    assert not await shown(follower, 2)


async def test_a_catalogue_that_is_damaged_is_not_read_with_each_question() -> None:
    store = _Store()
    follower = CatalogueFollower(cast("Any", store))
    store.catalogue.failure = StoreDamaged("key", "it lacks items")
    for _ in range(3):
        with pytest.raises(StoreDamaged, match="lacks items"):
            await shown(follower, 1)
    assert store.catalogue.loads == 1


async def test_a_load_ends_with_the_follower() -> None:
    store = _Store()
    follower = CatalogueFollower(cast("Any", store))
    running = asyncio.create_task(follower.run())
    asking = asyncio.create_task(shown(follower, 1))
    await store.registries[1].asked.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert len(loads()) == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not loads()
