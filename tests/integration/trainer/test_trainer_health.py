"""What a trainer says of itself while it leads, waits and loses its store."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.store import Store
from processes.probes import unused_port
from processes.settings import SettingsError
from tests.integration.conftest import Learned
from tests.support.recovering import GIVEN, LATER, opened
from tests.support.serving import Client, client_of
from tests.support.trainers import fitted, until_drained
from tests.support.waiting import wait_until_async
from trainer.app import Trainer
from trainer.archive.segments import Step, no_step
from trainer.errors import CannotStartError
from trainer.health import listener, reporter
from trainer.health.listener import serving_health
from trainer.settings import Address, TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")
RUN, START = ("foldin_trainer_store_run", ""), ("foldin_trainer_start_timestamp_seconds", "")


@contextlib.asynccontextmanager
async def answering(settings: TrainerSettings, step: Step = no_step) -> AsyncIterator[tuple[Client, Trainer]]:
    """As `python -m trainer` does, in this process."""
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
    """Values by name and label."""
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

        async def said() -> bool:
            values = await metrics(leader)
            # Counted by the next round.
            return RUN in values and values.get(("foldin_trainer_archived_events", "")) == count

        await wait_until_async(said, "what is archived, and which server is the store")
        found = await metrics(leader)
        assert found["foldin_trainer_leading", ""] == 1
        assert found["foldin_trainer_fence", ""] == live["fence"] >= 1
        assert found["foldin_trainer_live_generation", ""] == generation
        assert found["foldin_trainer_live_ratings", ""] == count
        assert found["foldin_trainer_unfitted_events", ""] == 0
        assert found["foldin_trainer_archive_bytes", ""] > 0
        assert found["foldin_trainer_events_total", "fit_published"] >= 1
        positions = [value for (name, _), value in found.items() if name.endswith("archive_position_seconds")]
        assert len(positions) == settings.store.partitions
        assert max(positions) <= await store.time()
        async with answering(replace(settings, archive_dir=tmp_path / "other")) as (waiting, _):
            assert (await waiting.get("/livez")).json == {"status": "ok", "role": "waiting", "fence": None}
            assert (await metrics(waiting))["foldin_trainer_leading", ""] == 0
        # Its store is away. That another process is the store, and what is said then:
        # tests/fault/test_alerts_of_restarts.py.
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
            assert trainer.leadership is not None
            trainer.leadership.end()

            async def stuck() -> bool:
                reply = await client.get("/livez")
                return (reply.status, reply.json) == (503, {**said, "status": "stuck"})

            await wait_until_async(stuck, "it says that its term does not end")
        finally:
            goes_on.set()

        async def well() -> bool:
            answer = (await client.get("/livez")).json
            return bool(answer == {"status": "ok", "role": "waiting", "fence": None})

        await wait_until_async(well, "the term has ended")


@pytest.mark.parametrize("text", ["9108", "host:65536", "host:x"])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(SettingsError, match="FOLDIN_TRAINER_ADDRESS must be an address and a port"):
        TrainerSettings.load([], {"FOLDIN_TRAINER_ADDRESS": text})


def answer_to(port: int, sent: bytes) -> bytes:
    """Send bytes, and read until the other end closes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))


async def test_hostile_connections_take_nothing_from_it(
    learned: Learned, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Silent ones and heads without end are few at a time and soon over; what is no HTTP is not logged."""
    monkeypatch.setattr(listener, "_LASTS_S", 0.2)
    trainer = Trainer(learned.settings)
    address = Address("127.0.0.1", unused_port())
    beginnings = (b"", b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 7000, b"POST /livez HTTP/1.1\r\n")

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with serving_health(trainer, address), client_of(f"http://{address}") as client:
        with pytest.raises(CannotStartError, match="FOLDIN_TRAINER_ADDRESS"):
            async with serving_health(trainer, address):
                pass
        with contextlib.ExitStack() as ends:
            before = open_files()
            for number in range(300):
                given = socket.create_connection((address.host, address.port))
                ends.enter_context(given).sendall(beginnings[number % 3])
                # The trainer is in this process: it accepts in between.
                await asyncio.sleep(0)
            # Of the 600 ends only those of the clients stay.
            await wait_until_async(lambda: open_files() <= before + 310, "the others are closed")
        for wrong in (b"\x16\x03\x01" * 50 + b"\r\n\r\n", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n"):
            assert (await asyncio.to_thread(answer_to, address.port, wrong)).startswith(b"HTTP/1.0 400 ")
        assert (await client.get("/livez")).status == 200
        assert "Traceback" not in caplog.text


async def test_a_trainer_that_waits_says_so_in_the_store_and_one_without_a_store_is_silent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "EVERY_S", 0.01)
    trainer = Trainer(TrainerSettings(store=store.settings))
    async with reporter.reporting(trainer):
        assert await store.telemetry.read(60) == []
        trainer.store = store

        async def told() -> bool:
            return bool(await store.telemetry.read(60))

        await wait_until_async(told, "a point")
    point = (await store.telemetry.read(60))[0]
    assert (point.process, point.busy, point.generation) == ("trainer", "waits for the lease", 0)
    assert point.resident_bytes > 10**7
