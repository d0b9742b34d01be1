"""A trainer tells of itself in the store, beside the workers."""

import asyncio

import pytest

from featurestore.store import Store
from featurestore.telemetry.servers import StoreServer
from tests.support.waiting import wait_until_async
from trainer.app import Trainer
from trainer.health import reporter
from trainer.settings import TrainerSettings


async def test_a_trainer_that_waits_says_so_and_one_without_a_store_is_silent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "EVERY_S", 0.01)
    trainer = Trainer(TrainerSettings(store=store.settings))
    async with reporter.reporting(trainer):
        await asyncio.sleep(0.05)
        assert await store.telemetry.read(60) == []
        trainer.store = store

        async def told() -> bool:
            return bool(await store.telemetry.read(60))

        await wait_until_async(told, "a point")
        # Whenever a scrape comes.
        seen: list[list[StoreServer]] = []
        while len({id(servers) for servers in seen}) < 5:
            await asyncio.sleep(0)
            seen.append(trainer.store_servers)
        assert all(len(servers) == 1 for servers in seen)
    point = (await store.telemetry.read(60))[0]
    assert (point.process, point.busy, point.generation) == ("trainer", "waits for the lease", 0)
    assert point.resident_bytes > 10**7
