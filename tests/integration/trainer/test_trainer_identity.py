"""Accidents with a store or an archive: the trainer stops, says what to do, and no rating is lost."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.errors import LeaseLost
from processes.probes import unused_port
from tests.integration.conftest import Learned
from tests.support.factories import rating
from tests.support.recovering import GIVEN, LATER, archive_ratings, copied_files, empty, opened, put_back
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import Client, client_of, serving
from tests.support.trainers import archived, fitted, refused, refuses, running_trainer, until_drained
from tests.support.waiting import PATIENCE_S, some, wait_until_async
from trainer.app import Trainer
from trainer.archive.segments import Step, no_step
from trainer.errors import CannotStartError
from trainer.health.listener import serving_health
from trainer.settings import Address, TrainerSettings

pytestmark = pytest.mark.usefixtures("quick_rounds")


def files(settings: TrainerSettings) -> dict[str, bytes]:
    root = settings.archive_folder
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def what_to_do(line: str) -> bool:
    return "`foldin restore`" in line and "--adopt" in line and "the archive is left as it is" in line


def log_of(server: StoreServer) -> Path:
    (file,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    return file


async def test_emptied_store(learned: Learned) -> None:
    """As a process says it, whatever comes in meanwhile."""
    before = files(learned.settings)
    empty(learned.server)
    line = await refused(learned.settings)
    assert "another store" in line
    async with opened(learned.settings.store) as store:
        await store.ratings.append([rating("meanwhile", "i1")])
        assert (await store.users.history(1, b"meanwhile"))[0] == 1
    assert (why := await refuses(learned.settings)) in line
    async with serving(learned.settings.store) as (client, _):
        reply = await client.ask("POST", "/train")
        assert (reply.status, reply.json["cause"]) == (503, "no_trainer"), "and not a wait for nothing"
        assert why in reply.json["detail"]
    assert what_to_do(line)
    assert files(learned.settings) == before
    async with (
        serving(learned.settings.store) as (client, _),
        opened(learned.settings.store) as store,
        running_trainer(replace(learned.settings, adopt=True)),
    ):
        await wait_until_async(store.leases.held, "a trainer that leads")
        assert (await client.ask("POST", "/train")).status == 200


@pytest.mark.parametrize("accident", ["another store", "epoch never begun", "newer format"])
async def test_an_archive_that_is_not_the_stores_is_refused_and_left_as_it_is(
    learned: Learned, tmp_path: Path, accident: str
) -> None:
    settings, why = learned.settings, "another store"
    if accident == "epoch never begun":
        why = "epoch 9, and the store has begun no more than 1"
        (settings.archive_folder / "epoch-000001").rename(settings.archive_folder / "epoch-000009")
    elif accident == "newer format":
        (settings.archive_folder / "identity.json").write_text('{"format": 2}')
        why = "has format 2, this version reads 1"
    before = files(settings)
    if accident == "another store":
        (tmp_path / "other").mkdir()
        with running_server(KIND, tmp_path / "other") as other:
            elsewhere = replace(settings, store=replace(settings.store, url=other.url))
            # It has a life of its own, with more ratings than the archive.
            await archive_ratings(replace(elsewhere, archive_dir=tmp_path / "its own"), [*GIVEN, *LATER])
            line = await refuses(elsewhere)
    else:
        line = await refuses(settings)
    assert why in line
    assert files(settings) == before
    if accident == "newer format":
        assert await refuses(replace(settings, adopt=True)) == line
        assert files(settings) == before
    else:
        assert what_to_do(line)


async def test_older_store_put_back(learned: Learned, tmp_path: Path) -> None:
    settings, server = learned.settings, learned.server
    copied_files(server, tmp_path / "backup")
    await archive_ratings(settings, LATER)
    before = files(settings)
    put_back(server, tmp_path / "backup")
    line = await refuses(settings)
    assert "the archive goes on to event" in line
    assert what_to_do(line)
    # Ratings that came since take the numbers of those that were lost: that is seen, too.
    async with opened(settings.store) as store:
        for k in range(40):
            await store.ratings.append([rating(f"new{k}", f"fresh{k % 20}", 1.0) for _ in range(3)])
    line = await refuses(settings)
    assert "is another one in the store" in line or "goes on to event" in line
    assert files(settings) == before


@pytest.mark.parametrize("lost", ["tail", "all"])
async def test_tail_lost_under_a_trainer_that_runs(learned: Learned, lost: str) -> None:
    settings, server = learned.settings, learned.server
    trainer = Trainer(settings)
    running = asyncio.create_task(trainer.run(asyncio.Event()))
    async with opened(settings.store) as store:
        await wait_until_async(lambda: trainer.term, "it leads")
        mark = log_of(server).stat().st_size
        await store.ratings.append(LATER)
        await until_drained(store)
        if lost == "tail":
            # As a power cut does with `appendfsync everysec`: the end of the file was never written.
            server.kill()
            os.truncate(log_of(server), mark)
            server.start()
        else:
            await store.redis.flushall()
            # The service finds the store as new, and goes on.
            await store.ratings.append([rating("meanwhile", "i1")])
        with pytest.raises(CannotStartError) as caught:
            await running
    assert ("the archive goes on to event" if lost == "tail" else "another store") in str(caught.value)
    found = {(user, item, value) for user, _, item, value in archived(settings)}
    assert found == {(r.user_id.decode(), r.item_id.decode(), r.rating) for r in (*GIVEN, *LATER)}
    assert not any((settings.archive_folder / "trash").glob("epoch-*/trash.json"))


RUN, START = ("foldin_trainer_store_run", ""), ("foldin_trainer_start_timestamp_seconds", "")


@contextlib.asynccontextmanager
async def answering(settings: TrainerSettings, step: Step = no_step) -> AsyncIterator[tuple[Client, Trainer]]:
    address = Address("127.0.0.1", unused_port())
    async with (
        running_trainer(settings, step=step) as trainer,
        serving_health(trainer, address),
        client_of(f"http://{address}") as client,
    ):
        yield client, trainer


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
