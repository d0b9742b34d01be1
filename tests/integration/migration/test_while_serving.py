"""A namespace moves to a cluster, or from one, while clients rate and ask."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.recovery.verifying import verify
from processes.blocking import BlockingChild, plain_environment, python_command
from tests.support.recovering import live_history, opened
from tests.support.servers import StoreServer
from tests.support.serving import Client, Service, is_problem, serves, serving
from tests.support.trainers import archived, fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import PATIENCE_S, wait_until_async
from torture.cluster_set import cluster_set
from trainer.settings import TrainerSettings

MANUAL = Path(__file__).resolve().parents[3] / "docs/operations.md"
# Whole stacks on busy cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STILL = [f"u{k}" for k in range(20)]


def ratings() -> list[dict[str, object]]:
    pairs = [(user, item) for user in STILL for item in range(12)]
    return [{"user_id": u, "item_id": f"i{i}", "rating": 1.0 + (len(u) * i) % 4} for u, i in pairs]


@dataclass
class Clients:
    """Rate and ask without a pause, at whichever address there is. `acknowledged`: of each user what was
    rated, in its order.
    """

    client: Client
    before: dict[str, float]
    acknowledged: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    refused: int = 0
    asked: int = 0

    async def rate(self, number: int) -> None:
        """Rate as one user, each time another value; send again what was refused."""
        user, count = f"rater{number}", 0
        while True:
            count += 1
            row = {"user_id": user, "item_id": f"r{count % 12}", "rating": 1 + count % 5, "timestamp": count}
            while (reply := await self.client.post("/ratings", row)).status != 200:
                assert reply.status == 503, reply
                assert int(reply.headers["Retry-After"]) >= 1
                self.refused += 1
                await asyncio.sleep(0.05)
            self.acknowledged.setdefault(user, []).append((f"r{count % 12}", float(1 + count % 5)))
            await asyncio.sleep(0.01)

    async def ask(self) -> None:
        """Ask for users who do not rate: the same bits, whichever store answers."""
        while True:
            for user in STILL:
                reply = await self.client.get(f"/predict?user_id={user}&item_id=i3")
                assert reply.status == 200, reply
                # A service that was not started again says of what it answers that it may lack something.
                assert reply.json["rating"] == self.before[user] or reply.json.get("degraded")
                self.asked += 1
                await asyncio.sleep(0.01)

    @classmethod
    async def of(cls, client: Client, store: Store) -> "Clients":
        """Clients of a service whose users are rated, and fitted."""
        assert (await client.post("/ratings", ratings())).status == 200
        await serves(client, await fitted(store))
        asked = [(await client.get(f"/predict?user_id={user}&item_id=i3")).json for user in STILL]
        return cls(client, dict(zip(STILL, [each["rating"] for each in asked], strict=True)))

    async def go_on(self) -> None:
        """Return when each has rated some more."""
        before = {f"rater{k}": len(self.acknowledged.get(f"rater{k}", ())) for k in range(3)}

        def rated() -> bool:
            return all(len(self.acknowledged.get(user, ())) > count + 5 for user, count in before.items())

        await wait_until_async(rated, "all rate on")

    async def require_all(self, store: Store, settings: TrainerSettings) -> None:
        """Check that a store and its archive have what was acknowledged: once, in each user's order."""
        await until_drained(store)
        events = archived(settings)
        for user, given in self.acknowledged.items():
            rows = [(item, value) for of, _, item, value in events if of == user]
            numbers = [n for of, n, _, _ in events if of == user]
            assert numbers == list(range(1, len(numbers) + 1)), user
            # What was cut off in the end may have come.
            assert rows[: len(given)] == given, user
            assert len(rows) <= len(given) + 1, user
            history, registry = await live_history(store, user.encode())
            items = [registry.ids[row].decode() for row in history.item_row.tolist()]
            assert dict(zip(items, history.rating.tolist(), strict=True)) == dict(rows), user
        assert self.asked
        found = await verify(store, settings, lambda _line: None)
        assert found.count == 0, found.differences

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        works = [self.rate(0), self.rate(1), self.rate(2), self.ask()]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), ended


async def test_to_a_cluster_by_the_commands_of_the_manual(own_server: StoreServer, tmp_path: Path) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=5.0)
    settings = trainer_settings(at, tmp_path / "archive", lease_ttl_s=20.0)
    with cluster_set("valkey", tmp_path / "servers", 3) as cluster:
        to = StoreSettings(url=cluster.url, namespace="t", timeout_s=5.0)
        moved = replace(settings, store=to)
        service = None
        try:
            async with serving(at) as (client, _), opened(at) as store, running_trainer(settings):
                clients = await Clients.of(client, store)
                async with clients.at_work():
                    service = await moved_as_the_manual_says(at, to, tmp_path)
                    # One that was not started again says of what it answers that it may lack something.
                    assert (await client.get("/predict?user_id=u1&item_id=i3")).json["degraded"]
                    assert is_problem(await client.get("/users/u1/ratings"), 503, "store_unavailable")
                    clients.client = Client(client.session, service.url)
                    await clients.go_on()
            assert clients.refused
            async with opened(to) as store, running_trainer(moved):
                await clients.require_all(store, moved)
        finally:
            if service is not None:
                service.end()


async def moved_as_the_manual_says(at: StoreSettings, to: StoreSettings, folder: Path) -> Service:
    """Run the commands of docs/operations.md; return a service that was started on the way, and is ready."""
    first, second = migrate_lines(at.url, to.url)
    environment = plain_environment(os.environ, {"FOLDIN_NAMESPACE": at.namespace})
    log = folder / "migrate.log"
    with BlockingChild(python_command("foldin", *first), log, environment=environment) as looking:
        assert await asyncio.to_thread(looking.wait, PATIENCE_S) == 0, looking.text
    with BlockingChild(python_command("foldin", *second), log, environment=environment) as moving:
        async with opened(at) as store:
            await wait_until_async(lambda: stage(store), "the migration has begun")
        service = Service(to, folder)
        assert await asyncio.to_thread(moving.wait, PATIENCE_S) == 0, moving.text
        assert f"FOLDIN_REDIS_URL={to.url}" in moving.text
    await asyncio.to_thread(service.wait_for)
    return service


async def stage(store: Store) -> str:
    return (await store.generations.live()).migration


def migrate_lines(source: str, target: str) -> list[list[str]]:
    """The lines of the manual that move a store, with these addresses."""
    lines = re.findall(r"^foldin (migrate --from .*)$", MANUAL.read_text("utf-8"), re.MULTILINE)
    found = [line.partition("#")[0].split() for line in lines]
    for line in found:
        line[line.index("--from") + 1] = source
        line[line.index("--to") + 1] = target
    return found
