"""SIGKILL of a worker, the trainer and the store, one after the other while users rate."""

import asyncio
import os
import signal
from functools import partial
from itertools import count

import aiohttp
import pytest

from featurestore.settings import StoreSettings
from tests.support.factories import opened
from tests.support.servers import StoreServer
from tests.support.serving import Client, client_of, processes
from tests.support.trainers import ChildTrainer, archived, fitted, trainer_settings, until_drained
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]
RATERS = 4
# Acknowledged ratings between two kills.
BETWEEN = 40


class Rater:
    """Rates one item after the other; `acknowledged`: the rating of each that was answered with 200."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.acknowledged: dict[str, float] = {}

    async def rate(self, client: Client, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            item, rating = f"i{number}", 1.0 + number % 5
            try:
                body = {"user_id": self.user, "item_id": item, "rating": rating}
                reply = await client.post("/ratings", body)
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.01)
                continue
            if reply.status == 200:
                self.acknowledged[item] = rating
            else:
                assert reply.status in (503, 504, 507), reply.text
                await asyncio.sleep(0.01)

    async def read(self, client: Client) -> dict[str, float] | None:
        shown: dict[str, float] = {}
        for offset in count(0, 1000):
            reply = await client.get(f"/users/{self.user}/ratings?n=1000&offset={offset}")
            if reply.status == 503:
                return None
            shown |= {each["item_id"]: each["rating"] for each in reply.json["ratings"]}
            if len(reply.json["ratings"]) < 1000:
                break
        return shown


async def test_what_was_acknowledged_outlasts_the_kill_of_each_process(own_server: StoreServer) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, scale="1:5", timeout_s=30.0)
    settings = trainer_settings(at, own_server.folder / "archive")
    raters = [Rater(f"u{number}") for number in range(RATERS)]
    stop = asyncio.Event()

    async def more_acknowledged(what: str) -> None:
        before = sum(len(rater.acknowledged) for rater in raters)
        await wait_until_async(
            lambda: sum(len(rater.acknowledged) for rater in raters) >= before + BETWEEN, what
        )

    trainer = ChildTrainer(settings)
    try:
        with processes(at, own_server.folder, workers=2) as service:
            async with client_of(service.url) as client, asyncio.TaskGroup() as group:
                for rater in raters:
                    group.create_task(rater.rate(client, stop))
                await more_acknowledged("ratings before the first kill")
                os.kill(service.worker_pids()[0], signal.SIGKILL)
                await more_acknowledged("ratings after a worker was killed")
                archive = settings.archive_folder
                await wait_until_async(lambda: [*archive.glob("*/*.parquet")], "the trainer archives")
                assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
                trainer = ChildTrainer(settings)
                await more_acknowledged("ratings after the trainer was killed")
                own_server.kill()
                own_server.start()
                await more_acknowledged("ratings after the store was killed")
                stop.set()
            async with client_of(service.url) as client:
                for rater in raters:
                    # A worker that has not heard of the store since says to ask again.
                    shown = await wait_until_async(partial(rater.read, client), "a worker with its store")
                    assert shown.items() >= rater.acknowledged.items()
        async with opened(at) as store:
            await until_drained(store)
            generation = await fitted(store)
            meta = await store.generations.meta(1, generation)
    finally:
        stop.set()
        trainer.end(signal.SIGKILL)
    events = archived(settings)
    assert len({(user, n) for user, n, _, _ in events}) == len(events), "each event once"
    found = {(user, item): rating for user, _, item, rating in events}
    for rater in raters:
        mine = {item: rating for (user, item), rating in found.items() if user == rater.user}
        assert mine.items() >= rater.acknowledged.items()
    assert meta.summary.n_ratings == len(found)
