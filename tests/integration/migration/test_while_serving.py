"""A namespace moves to a cluster, or from one, while clients rate and ask."""

import asyncio
import itertools
import os
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from processes.blocking import BlockingChild, plain_environment, python_command
from tests.support.recovering import opened, verified
from tests.support.servers import StoreServer
from tests.support.serving import Client, Service, is_problem, serves, serving
from tests.support.trainers import archived, fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import PATIENCE_S, wait_until_async
from torture.cluster_set import cluster_set

MANUAL = Path(__file__).resolve().parents[3] / "docs/operations.md"
# Whole stacks on busy cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PAIRS = itertools.product(range(20), range(12))
RATED = [{"user_id": f"u{u}", "item_id": f"i{i}", "rating": 1 + (u * i) % 4} for u, i in PAIRS]
ASKED = "/predict?user_id=u1&item_id=i3"


@dataclass
class Clients:
    """Rate and ask without a pause. `acknowledged`: of each user what was rated, in its order."""

    client: Client
    acknowledged: dict[str, list[tuple[str, float]]]
    refused: int = 0

    async def rate(self, user: str) -> None:
        for count in itertools.count(1):
            row = {"user_id": user, "item_id": f"r{count % 12}", "rating": 1 + count % 5, "timestamp": count}
            while (reply := await self.client.post("/ratings", row)).status != 200:
                assert reply.status == 503, reply
                assert int(reply.headers["Retry-After"]) >= 1
                self.refused += 1
                await asyncio.sleep(0.05)
            self.acknowledged[user].append((f"r{count % 12}", float(1 + count % 5)))
            await asyncio.sleep(0.01)

    async def ask(self, before: float) -> None:
        """Ask for a user who does not rate: the same bits, whichever store answers."""
        while True:
            reply = await self.client.get(ASKED)
            assert reply.status == 200, reply
            # A service that was not started again says of what it answers that it may lack something.
            assert reply.json["rating"] == before or reply.json.get("degraded")
            await asyncio.sleep(0.01)

    async def go_on(self) -> None:
        before = {user: len(given) for user, given in self.acknowledged.items()}

        def rated() -> bool:
            return all(len(self.acknowledged[user]) > count + 5 for user, count in before.items())

        await wait_until_async(rated, "all rate on")

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        before = (await self.client.get(ASKED)).json["rating"]
        works = [*map(self.rate, self.acknowledged), self.ask(before)]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), ended


async def test_to_a_cluster_by_the_commands_of_the_manual(own_server: StoreServer, tmp_path: Path) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=30.0)
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=20.0)
    with ExitStack() as stack:
        cluster = stack.enter_context(cluster_set("valkey", tmp_path / "servers", 3))
        to = StoreSettings(url=cluster.url, namespace="t", timeout_s=30.0)
        moved = replace(settings, store=to)
        async with serving(at) as (client, _), opened(at) as store, running_trainer(settings):
            assert (await client.post("/ratings", RATED)).status == 200
            await serves(client, await fitted(store))
            clients = Clients(client, {f"rater{k}": [] for k in range(3)})
            async with clients.at_work():
                service = await moved_as_the_manual_says(at, to, tmp_path)
                stack.callback(service.end)
                assert (await client.get(ASKED)).json["degraded"]
                assert is_problem(await client.get("/users/u1/ratings"), 503, "store_unavailable")
                clients.client = Client(client.session, service.url)
                await clients.go_on()
        assert clients.refused
        async with opened(to) as store, running_trainer(moved):
            await until_drained(store)
            events = archived(moved)
            found = await verified(moved)
    # The archive has what was acknowledged once, in each user's order, and the store has the same.
    assert found.count == 0, found.differences
    for user, given in clients.acknowledged.items():
        rows = [(item, value) for of, _, item, value in events if of == user]
        assert [n for of, n, _, _ in events if of == user] == list(range(1, len(rows) + 1)), user
        # What was cut off in the end may have come.
        assert rows[: len(given)] == given, user
        assert len(rows) <= len(given) + 1, user


async def moved_as_the_manual_says(at: StoreSettings, to: StoreSettings, folder: Path) -> Service:
    """Run the commands of docs/operations.md; return a service that was started on the way, and is ready."""
    first, second = migrate_lines(at.url, to.url)
    environment = plain_environment(os.environ, {"FOLDIN_NAMESPACE": at.namespace})
    log = folder / "migrate.log"
    with BlockingChild(python_command("foldin", *first), log, environment=environment) as looking:
        assert await asyncio.to_thread(looking.wait, PATIENCE_S) == 0, looking.text
    with BlockingChild(python_command("foldin", *second), log, environment=environment) as moving:
        async with opened(at) as store:
            begun = "the migration has begun"
            await wait_until_async(store.generations.live, begun, lambda pointer: pointer.migration)
        service = Service(to, folder)
        assert await asyncio.to_thread(moving.wait, PATIENCE_S) == 0, moving.text
        assert f"FOLDIN_REDIS_URL={to.url}" in moving.text
    await asyncio.to_thread(service.wait_for)
    return service


def migrate_lines(source: str, target: str) -> list[list[str]]:
    lines = re.findall(r"^foldin (migrate --from .*)$", MANUAL.read_text("utf-8"), re.MULTILINE)
    found = [line.partition("#")[0].split() for line in lines]
    for line in found:
        line[line.index("--from") + 1] = source
        line[line.index("--to") + 1] = target
    return found
