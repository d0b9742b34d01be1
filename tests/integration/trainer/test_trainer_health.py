"""What a trainer says of itself while it leads, waits and loses its store."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.errors import LeaseLost
from processes.probes import unused_port
from tests.integration.conftest import Learned
from tests.support.recovering import GIVEN, LATER, opened
from tests.support.serving import Client, client_of
from tests.support.trainers import fitted, until_drained
from tests.support.waiting import PATIENCE_S, some, wait_until_async
from trainer.app import Trainer
from trainer.archive.segments import Step, no_step
from trainer.health.listener import serving_health
from trainer.settings import Address, TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")
RUN, START = ("foldin_trainer_store_run", ""), ("foldin_trainer_start_timestamp_seconds", "")


@contextlib.asynccontextmanager
async def answering(settings: TrainerSettings, step: Step = no_step) -> AsyncIterator[tuple[Client, Trainer]]:
    address = Address("127.0.0.1", unused_port())
    trainer, stop = Trainer(settings, step=step), asyncio.Event()
    async with serving_health(trainer, address), client_of(f"http://{address}") as client:
        running = asyncio.create_task(trainer.run(stop))
        try:
            yield client, trainer
        finally:
            stop.set()
            await running


async def metrics(client: Client) -> dict[tuple[str, str], float]:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_leader_one_who_waits_and_one_without_its_store(learned: Learned, tmp_path: Path) -> None:
    settings = learned.settings
    async with answering(settings) as (leader, _), opened(settings.store) as store:
        await store.ratings.append(LATER)
        generation = await fitted(store)
        await until_drained(store)
        live = (await leader.get("/livez")).json
        assert live["role"] == "leader"
        count = len(GIVEN) + len(LATER)
        # Counted by the next round.
        found = await wait_until_async(
            lambda: metrics(leader),
            "what is archived, and which server is the store",
            lambda values: RUN in values and values.get(("foldin_trainer_archived_events", "")) == count,
        )
        assert found["foldin_trainer_leading", ""] == 1
        assert found["foldin_trainer_fence", ""] == live["fence"] >= 1
        assert found["foldin_trainer_live_generation", ""] == generation
        assert found["foldin_trainer_live_ratings", ""] == count
        assert found["foldin_trainer_unfitted_events", ""] == 0
        assert found["foldin_trainer_archive_bytes", ""] > 0
        assert found["foldin_trainer_events_total", "fit_published"] >= 1
        positions = [value for (name, _), value in found.items() if name.endswith("archive_position_seconds")]
        assert len(positions) == settings.store.partitions
        # The store tells whole seconds.
        assert max(positions) < await store.time() + 1
        async with answering(replace(settings, archive_dir=tmp_path / "other")) as (waiting, _):
            assert (await waiting.get("/livez")).json == {"status": "ok", "role": "waiting", "fence": None}
            assert (await metrics(waiting))["foldin_trainer_leading", ""] == 0
        # Its store is away.
        learned.server.pause()
        try:
            assert (await leader.get("/livez")).status == 200
            assert (await metrics(leader))[START] == found[START]
        finally:
            learned.server.resume()


async def test_a_term_that_does_not_end_without_its_lease(learned: Learned) -> None:
    settings = learned.settings
    hangs, goes_on = threading.Event(), threading.Event()

    def step(name: str) -> None:
        # In a thread, as a disk that does not answer.
        if name == "segment:written" and not hangs.is_set():
            hangs.set()
            goes_on.wait()

    async with answering(settings, step) as (client, trainer), opened(settings.store) as store:
        # What a term may take to end is over at once.
        trainer.term_ends_within_s = 0.0
        try:
            await store.ratings.append(LATER)
            await wait_until_async(hangs.is_set, "a thread hangs")
            # As long as it leads all is well.
            said = (await client.get("/livez")).json
            assert (said["status"], said["role"]) == ("ok", "leader")
            await store.redis.set(store.keys.lease, "another trainer")
            some(trainer.leadership).end()
            await wait_until_async(
                lambda: client.get("/livez"),
                "it says that its term does not end",
                lambda reply: (reply.status, reply.json) == (503, {**said, "status": "stuck"}),
            )
        finally:
            goes_on.set()
        waiting = {"status": "ok", "role": "waiting", "fence": None}
        ended = "the term has ended"
        await wait_until_async(lambda: client.get("/livez"), ended, lambda reply: reply.json == waiting)


async def test_a_stop_that_comes_as_the_lease_is_lost_ends_the_trainer(learned: Learned) -> None:
    stop = asyncio.Event()

    def step(name: str) -> None:
        if name == "consume:read":
            stop.set()
            raise LeaseLost("another trainer leads")

    async with opened(learned.settings.store) as store:
        await store.ratings.append(LATER)
        async with asyncio.timeout(PATIENCE_S):
            await Trainer(replace(learned.settings, grace_s=10 * PATIENCE_S), step=step).run(stop)
        assert await store.redis.get(store.keys.lease) is None
