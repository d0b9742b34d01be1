"""A real Prometheus watches a stack of real processes by the files of the deployment: every fault raises its
alert within a minute and is over when the fault is, and a stack that is well raises none.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild, python_command
from processes.probes import http_ok, unused_port
from tests.support.factories import low_rank_ratings
from tests.support.servers import StoreServer, missing
from tests.support.serving import Service
from tests.support.trainers import fitted, running_fits, trainer_environment, trainer_settings, until_live
from tests.support.waiting import wait_until, wait_until_async

pytestmark = [
    pytest.mark.fault,
    # What is watched does not depend on the kind of store.
    pytest.mark.parametrize("own_server", ["redis"], indirect=True),
]
FILES = Path(__file__).resolve().parents[2] / "deploy/prometheus"
# By promise: from the fault to the alert, and from the end of the fault to the end of the alert.
WITHIN_S = 60.0
# Several scrapes and evaluations, and longer than the `for` of every alert that a quiet stack may meet.
QUIET_S = 40.0


@dataclass
class Watch:
    """The stack, and the Prometheus that watches it."""

    service: Service
    trainer: BlockingChild
    store: StoreServer
    archive: Path
    opened: Store
    key: str
    url: str
    session: aiohttp.ClientSession

    async def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        async with self.session.get(f"{self.url}/api/v1/alerts") as answer:
            alerts = (await answer.json())["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def raises(self, *names: str) -> None:
        """Wait until each of `names` fires; of several in one, joined by `|`, any will do."""
        began = time.monotonic()
        for name in names:
            wanted = set(name.split("|"))

            async def fires(wanted: set[str] = wanted) -> bool:
                return bool(wanted & await self.firing())

            await wait_until_async(fires, WITHIN_S - (time.monotonic() - began), f"{name} fires")

    async def clears(self, *names: str) -> None:
        """Wait until none of `names` fires."""

        async def over() -> bool:
            return not set(names) & await self.firing()

        await wait_until_async(over, WITHIN_S, f"{names} are over")

    async def ask(self, method: str, path: str, key: str | None = None) -> int:
        """Ask the service; the status, 0 where it did not answer."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.session.request(method, self.service.url + path, headers=headers) as answer:
                return answer.status
        return 0


@pytest.fixture
async def watch(own_server: StoreServer, tmp_path: Path) -> AsyncIterator[Watch]:
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus")
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=1.0)
    settings = trainer_settings(at, tmp_path / "archive")
    key = new_secret()
    async with contextlib.AsyncExitStack() as ends:
        store = await ends.enter_async_context(opened(at))
        await store.access.add(key, "operator", "operate")
        trainer_port = unused_port()
        trainer = ends.enter_context(
            BlockingChild(
                python_command("trainer"),
                tmp_path / "trainer.log",
                environment={
                    **trainer_environment(settings),
                    "FOLDIN_TRAINER_ADDRESS": f"127.0.0.1:{trainer_port}",
                    # Only when the test asks for one.
                    "FOLDIN_REFIT_SECONDS": "80000",
                },
            )
        )
        await until_live(store)
        await store.ratings.append(low_rank_ratings(users=30, items=12))
        await fitted(store)
        assert http_ok("127.0.0.1", trainer_port, "/livez")
        service = Service(at, tmp_path, workers=2)
        ends.callback(service.end)
        service.wait_for()
        session = await ends.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2.0)))
        url = ends.enter_context(prometheus(tmp_path, str(program), key, service.port, trainer_port))
        yield Watch(service, trainer, own_server, settings.archive_folder, store, key, url, session)


@contextlib.asynccontextmanager
async def opened(at: StoreSettings) -> AsyncIterator[Store]:
    store = await Store.open(at)
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def prometheus(folder: Path, program: str, key: str, service: int, trainer: int) -> Iterator[str]:
    """A Prometheus with the files of the deployment; only where the parts are is told in another way."""
    (folder / "key").write_text(key)
    text = (FILES / "prometheus.yml").read_text("utf-8")
    text = text.replace("/etc/prometheus/", f"{FILES}/").replace("/run/scrape-key/prometheus.key", "key")
    config = yaml.safe_load(text)
    for job, port in zip(config["scrape_configs"], (service, trainer), strict=True):
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = unused_port()
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with BlockingChild(command, folder / "prometheus.log") as child:
        child.wait_ready(lambda: http_ok("127.0.0.1", port, "/-/ready"), 30.0)
        yield f"http://127.0.0.1:{port}"


# Six times the fault, the alert and its end, each within a minute.
@pytest.mark.timeout(600)
async def test_each_fault_raises_its_alert_and_a_quiet_stack_none(watch: Watch) -> None:
    await asyncio.sleep(QUIET_S)
    assert await watch.firing() == set()
    assert await samples(watch) >= watched_of_the_trainer()

    # A worker that was killed.
    still, killed = watch.service.worker_pids()
    os.kill(killed, signal.SIGKILL)
    await watch.raises("FoldinWorkerRestarted")

    # A trainer that stands still, and a worker that does: the replica, where that is the one that is scraped.
    os.kill(watch.trainer.pid, signal.SIGSTOP)
    os.kill(still, signal.SIGSTOP)
    try:
        await watch.raises("FoldinTrainerDown", "FoldinNoLeader", "FoldinWorkerSilent|FoldinReplicaSilent")
    finally:
        os.kill(watch.trainer.pid, signal.SIGCONT)
        os.kill(still, signal.SIGCONT)
    await watch.clears("FoldinTrainerDown", "FoldinNoLeader", "FoldinWorkerSilent", "FoldinReplicaSilent")

    # A client with a wrong key; a fit whose process was killed; a file of the archive that was damaged.
    guessing = asyncio.create_task(guess(watch))
    damage(watch.archive)
    await fitted(watch.opened)
    await one_killed(watch)
    await watch.raises("FoldinFitFails", "FoldinTrainerTrouble", "FoldinTurnedAway")
    guessing.cancel()
    await fitted(watch.opened)
    await watch.clears("FoldinFitFails")

    # A store that is full.
    info = await watch.opened.redis.info("memory")
    await watch.opened.redis.config_set("maxmemory", info["used_memory"] + 10_000)
    await watch.raises("FoldinRefusing")
    await watch.opened.redis.config_set("maxmemory", 0)
    await watch.clears("FoldinRefusing")

    # A store that stands still.
    os.kill(watch.store.pid, signal.SIGSTOP)
    try:
        await watch.raises("FoldinStoreDown", "FoldinNoLeader|FoldinArchiveBehind")
    finally:
        os.kill(watch.store.pid, signal.SIGCONT)
    await watch.clears("FoldinStoreDown", "FoldinNoLeader", "FoldinArchiveBehind")


async def guess(watch: Watch) -> None:
    for _ in range(2_000):
        await watch.ask("GET", "/predict?user_id=u1&item_id=i1", new_secret())
        await asyncio.sleep(0.05)


def damage(folder: Path) -> None:
    """Turn the last byte of the data of each file of the archive."""
    for path in folder.rglob("*.parquet"):
        data = bytearray(path.read_bytes())
        # Behind the data stand the footer, its length and four bytes that name the format.
        data[len(data) - 8 - int.from_bytes(data[-8:-4], "little") - 1] ^= 0xFF
        path.write_bytes(data)


async def one_killed(watch: Watch) -> None:
    """Ask for a fit, and kill its process."""
    command = await watch.opened.commands.ask("refit", epoch=1)
    found = await asyncio.to_thread(wait_until, lambda: running_fits(watch.trainer.pid), 20, "a fit")
    os.kill(found[0], signal.SIGKILL)
    outcome = await watch.opened.commands.wait(command, 20)
    assert outcome is not None
    assert outcome.state == "failed"


async def samples(watch: Watch) -> set[str]:
    """The names of all series of the trainer."""
    async with watch.session.get(f"{watch.url}/api/v1/label/__name__/values") as answer:
        return set((await answer.json())["data"])


def watched_of_the_trainer() -> set[str]:
    text = (FILES / "alerts.yml").read_text("utf-8")
    # There only while a fit runs.
    return set(re.findall(r"\bfoldin_trainer_\w+", text)) - {"foldin_trainer_fit_running_seconds"}
