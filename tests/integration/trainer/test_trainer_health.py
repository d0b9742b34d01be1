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

from featurestore.settings import StoreSettings
from processes.probes import unused_port
from processes.settings import SettingsError
from tests.support.factories import low_rank_ratings
from tests.support.recovering import opened
from tests.support.servers import StoreServer
from tests.support.serving import Client, client_of
from tests.support.trainers import fitted, trainer_settings, until_drained, until_live
from tests.support.waiting import wait_until_async
from trainer.app import Trainer
from trainer.archive.segments import Step, no_step
from trainer.errors import CannotStartError
from trainer.health import listener
from trainer.health.listener import serving_health
from trainer.settings import Address, TrainerSettings


@contextlib.asynccontextmanager
async def trainer_that_answers(settings: TrainerSettings, step: Step = no_step) -> AsyncIterator[Client]:
    """As `python -m trainer` does, in this process."""
    address = Address("127.0.0.1", unused_port())
    trainer, stop = Trainer(settings, step=step), asyncio.Event()
    async with serving_health(trainer, address), client_of(f"http://{address}") as client:
        running = asyncio.create_task(trainer.run(stop))
        try:
            yield client
        finally:
            stop.set()
            await asyncio.wait_for(running, 30)


async def metrics(client: Client) -> dict[tuple[str, str], float]:
    """Values by name and label."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
async def test_leader_and_one_who_waits(own_server: StoreServer, tmp_path: Path) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=1.0)
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=2.0)
    ratings = low_rank_ratings(users=10, items=12)
    async with trainer_that_answers(settings) as leader, opened(at) as store:
        await until_live(store)
        await store.ratings.append(ratings)
        generation = await fitted(store)
        await until_drained(store)
        live = (await leader.get("/livez")).json
        assert live["role"] == "leader"
        found = await metrics(leader)
        assert found["foldin_trainer_leading", ""] == 1
        assert found["foldin_trainer_fence", ""] == live["fence"] >= 1
        assert found["foldin_trainer_live_generation", ""] == generation
        assert found["foldin_trainer_live_ratings", ""] == len(ratings)
        assert found["foldin_trainer_archived_events", ""] == len(ratings)
        assert found["foldin_trainer_unfitted_events", ""] == 0
        assert found["foldin_trainer_archive_bytes", ""] > 0
        assert found["foldin_trainer_events_total", "fit_published"] >= 1
        positions = [value for (name, _), value in found.items() if name.endswith("archive_position_seconds")]
        now = await store.time()
        assert len(positions) == at.partitions
        assert all(now - 60 < position <= now for position in positions)
        elsewhere = replace(settings, archive_dir=tmp_path / "other")
        async with trainer_that_answers(elsewhere) as waiting:
            assert (await waiting.get("/livez")).json == {"status": "ok", "role": "waiting", "fence": None}
            assert (await metrics(waiting))["foldin_trainer_leading", ""] == 0
        # Without its store it still answers, and says how long it has heard nothing.
        own_server.pause()
        try:

            async def behind() -> bool:
                found = await metrics(leader)
                return found.get(("foldin_trainer_behind_seconds", ""), 0.0) > 1.0 or (
                    found["foldin_trainer_leading", ""] == 0
                )

            await wait_until_async(behind, "the trainer says that it is behind")
        finally:
            own_server.resume()


async def test_which_server_is_the_store_and_since_when_the_trainer_runs(
    own_server: StoreServer, tmp_path: Path
) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=1.0)
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=2.0)
    run, start = ("foldin_trainer_store_run", ""), ("foldin_trainer_start_timestamp_seconds", "")
    async with trainer_that_answers(settings) as trainer:

        async def said(other: float = 0.0) -> float | None:
            found = (await metrics(trainer)).get(run, other)
            return None if found == other else found

        first = await wait_until_async(said, "the trainer says which server is the store")
        # It is the same while it runs.
        began = (await metrics(trainer))[start]
        own_server.pause()
        own_server.resume()
        assert (await metrics(trainer))[run] == first
        own_server.kill()
        own_server.start()
        await wait_until_async(lambda: said(first), "another server is the store")
        assert (await metrics(trainer))[start] == began


async def test_a_term_that_does_not_end_without_its_lease(own_server: StoreServer, tmp_path: Path) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=1.0)
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=1.0, grace_s=1.0)
    hangs, goes_on = threading.Event(), threading.Event()

    def step(name: str) -> None:
        # In a thread, as a disk that does not answer.
        if name == "segment:written" and not hangs.is_set():
            hangs.set()
            goes_on.wait(60)

    async with trainer_that_answers(settings, step) as client, opened(at) as store:
        try:
            await until_live(store)
            await store.ratings.append(low_rank_ratings(users=10, items=12))
            await wait_until_async(hangs.is_set, "a thread hangs")
            # As long as it leads all is well.
            assert (await client.get("/livez")).json["status"] == "ok"
            fence = (await client.get("/livez")).json["fence"]
            await store.redis.set(store.keys.lease, "another trainer", px=60_000)

            async def stuck() -> bool:
                reply = await client.get("/livez")
                return reply.status == 503 and reply.json["status"] == "stuck"

            await wait_until_async(stuck, "it says that its term does not end")
            assert (await client.get("/livez")).json == {"status": "stuck", "role": "leader", "fence": fence}
        finally:
            goes_on.set()

        async def well() -> bool:
            said = (await client.get("/livez")).json
            return bool(said == {"status": "ok", "role": "waiting", "fence": None})

        await wait_until_async(well, "the term has ended")


async def test_an_address_that_is_taken(own_server: StoreServer, tmp_path: Path) -> None:
    trainer = Trainer(trainer_settings(StoreSettings(url=own_server.url), tmp_path))
    with pytest.raises(CannotStartError, match="FOLDIN_TRAINER_ADDRESS"):
        async with serving_health(trainer, Address("127.0.0.1", own_server.port)):
            pass


@pytest.mark.parametrize("text", ["9108", "host:", ":9108", "host:0", "host:65536", "host:x"])
def test_an_address_that_is_none(own_server: StoreServer, text: str) -> None:
    with pytest.raises(SettingsError, match="FOLDIN_TRAINER_ADDRESS must be an address and a port"):
        TrainerSettings.load([], {"FOLDIN_TRAINER_ADDRESS": text})


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def answer_to(port: int, sent: bytes) -> bytes:
    """Send bytes, and read until the other end closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.slow
async def test_hostile_connections_take_nothing_from_it(
    own_server: StoreServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Silent ones and heads without end are few at a time and soon over; what is no HTTP is not logged."""
    monkeypatch.setattr(listener, "_LASTS_S", 2.0)
    settings = trainer_settings(StoreSettings(url=own_server.url, namespace="t"), tmp_path / "archive")
    async with trainer_that_answers(settings) as client, opened(settings.store) as store:
        # It has its own files and sockets by then.
        await until_live(store)
        port = int(client.url.rpartition(":")[2])
        beginnings = (
            b"",
            b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 7000,
            b"POST /livez HTTP/1.1\r\n",
        )
        with contextlib.ExitStack() as ends:
            before = open_files()
            for number in range(300):
                given = socket.create_connection(("127.0.0.1", port), timeout=10)
                ends.enter_context(given).sendall(beginnings[number % 3])
                # The trainer is in this process: it accepts in between.
                await asyncio.sleep(0)
            # The clients' ends, and those that are let in.
            most = before + 300 + listener._MOST
            await wait_until_async(lambda: open_files() <= most + 10, "the others are closed")
            await wait_until_async(lambda: open_files() <= before + 310, "those are over, too")
        for wrong in (b"\x16\x03\x01" * 50 + b"\r\n\r\n", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n"):
            assert (await asyncio.to_thread(answer_to, port, wrong)).startswith(b"HTTP/1.0 400 ")
        assert (await client.get("/livez")).status == 200
        assert "Traceback" not in caplog.text
