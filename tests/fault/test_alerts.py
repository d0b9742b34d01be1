"""A real Prometheus watches a stack of real processes by the files of the deployment: every fault raises its
alert within a minute, those that tell of a state are over a minute after it, and a stack that is well raises
none.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from featurestore.access import new_secret
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.blocking import BlockingChild, python_command
from processes.probes import http_ok, unused_port
from tests.support.alerts import FILES, QUIET_S, WITHIN_S, Alerts, watching_ports
from tests.support.disks import leave_free, small_disk
from tests.support.factories import low_rank_ratings
from tests.support.servers import KIND, StoreServer, running_server
from tests.support.serving import Service
from tests.support.trainers import fitted, running_fits, trainer_environment, trainer_settings, until_live
from tests.support.waiting import wait_until, wait_until_async
from torture.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.fault]
# What is watched does not depend on the kind of store.


@dataclass
class Watch(Alerts):
    """The stack, and the Prometheus that watches it."""

    service: Service
    trainer: BlockingChild
    store: StoreServer
    archive: Path
    opened: Store
    key: str

    async def ask(self, method: str, path: str, key: str | None = None) -> int:
        """Ask the service; the status, 0 where it did not answer."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.session.request(method, self.service.url + path, headers=headers) as answer:
                return answer.status
        return 0


@pytest.fixture
async def watch(own_server: StoreServer, tmp_path: Path) -> AsyncIterator[Watch]:
    async with watching(own_server, tmp_path, own_server.url, tmp_path / "archive") as found:
        yield found


@contextlib.asynccontextmanager
async def watching(
    own_server: StoreServer,
    tmp_path: Path,
    url: str,
    archive: Path,
    trainer_command: Sequence[str] = (),
    *,
    store_folder: Path | None = None,
) -> AsyncIterator[Watch]:
    """A stack that reaches its store by `url`. `trainer_command`: another one than that of the trainer;
    `store_folder`: where that looks for room of the store.
    """
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=1.0)
    settings = trainer_settings(replace(at, url=url), archive)
    key = new_secret()
    async with contextlib.AsyncExitStack() as ends:
        store = await ends.enter_async_context(opened(at))
        await store.access.add(key, "operator", "operate")
        trainer_port = unused_port()
        trainer = ends.enter_context(
            BlockingChild(
                [*trainer_command] or python_command("trainer"),
                tmp_path / "trainer.log",
                environment={
                    **trainer_environment(settings),
                    "FOLDIN_TRAINER_ADDRESS": f"127.0.0.1:{trainer_port}",
                    # Only when the test asks for one.
                    "FOLDIN_REFIT_SECONDS": "80000",
                    **({} if store_folder is None else {"FOLDIN_STORE_DIR": str(store_folder)}),
                },
            )
        )
        await until_live(store)
        await store.ratings.append(low_rank_ratings(users=30, items=12))
        await fitted(store)
        assert await asyncio.to_thread(http_ok, "127.0.0.1", trainer_port, "/livez")
        service = Service(settings.store, tmp_path, workers=2)
        # One that the test has killed has ended.
        ends.callback(lambda: service.process.code is None and service.end())
        await asyncio.to_thread(service.wait_for)
        watched = await ends.enter_async_context(
            watching_ports(tmp_path, [service.port], [trainer_port], key)
        )
        yield Watch(
            *(watched.url, watched.session, service, trainer, own_server, settings.archive_folder, store, key)
        )


@contextlib.asynccontextmanager
async def opened(at: StoreSettings) -> AsyncIterator[Store]:
    store = await Store.open(at)
    try:
        yield store
    finally:
        await store.close()


# Ten times the fault, the alert and its end, each within a minute.
@pytest.mark.fit_process
@pytest.mark.timeout(900)
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
    await watch.raises("FoldinFitFails", "FoldinTurnedAway")
    # Of the trainer that stood still the alert has not ended.
    of_damage = 'ALERTS{alertname="FoldinTrainerTrouble", alertstate="firing", event="segment_damaged"}'

    async def told() -> bool:
        return bool(await watch.asked(of_damage))

    await wait_until_async(told, "the damage is told of")
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

    # A fit that stands still.
    command = await watch.opened.commands.ask("refit", epoch=1)
    (fit, *_) = await asyncio.to_thread(wait_until, lambda: running_fits(watch.trainer.pid), "a fit")
    os.kill(fit, signal.SIGSTOP)
    try:
        # On a machine that is busy a fit takes seconds, and ten times as long counts.
        await watch.raises("FoldinFitHangs", within_s=max(WITHIN_S, 10 * await last_fit_s(watch) + 20))
    finally:
        os.kill(fit, signal.SIGCONT)
    outcome = await watch.opened.commands.wait(command, 60)
    assert outcome is not None
    assert outcome.state == "done", outcome
    await watch.clears("FoldinFitHangs")

    # A store, a trainer and the parent of the workers that were killed, and stay so.
    watch.store.kill()
    await watch.raises("FoldinStoreDown")
    watch.trainer.end(signal.SIGKILL)
    watch.service.end(signal.SIGKILL)
    await watch.raises("FoldinTrainerDown", "FoldinNoLeader", "FoldinReplicaSilent", "FoldinNoReplica")


# A trainer whose clock is ahead by the seconds that a file has.
JUMPING = """
import pathlib, runpy, sys, time
clock, ahead = time.time, pathlib.Path(sys.argv.pop())
time.time = lambda: clock() + float(ahead.read_text())
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


# Three times the fault, the alert and its end.
@pytest.mark.timeout(600)
async def test_clocks_that_jump_cut_connections_and_a_full_disk_raise_theirs(
    own_server: StoreServer, tmp_path: Path
) -> None:
    proxy, ahead = Proxy(own_server.port, unused_port()), tmp_path / "ahead"
    ahead.write_text("0")
    trainer = [sys.executable, "-c", JUMPING, str(ahead)]
    await proxy.start()
    try:
        with small_disk(tmp_path / "disk", 256) as disk:
            async with watching(own_server, tmp_path, proxy.url, disk / "archive", trainer) as watch:
                await asyncio.sleep(QUIET_S)
                assert await watch.firing() == set()

                ahead.write_text("60")
                await watch.raises("FoldinClock")
                ahead.write_text("0")
                await watch.clears("FoldinClock")

                # The disk of the archive, all but a few megabytes.
                leave_free(disk, 4)
                await watch.raises("FoldinRefusing")
                (disk / "filler").unlink()
                await watch.clears("FoldinRefusing")

                # Connections that are cut again and again, and a store that cannot be reached at all.
                cutting = asyncio.create_task(cut_again_and_again(proxy))
                try:
                    await watch.raises("FoldinStoreUnsteady")
                finally:
                    cutting.cancel()
                proxy.open.clear()
                proxy.cut()
                await watch.raises("FoldinStoreDown", "FoldinNoLeader|FoldinArchiveBehind")
                proxy.open.set()
                await watch.clears("FoldinStoreDown", "FoldinNoLeader", "FoldinArchiveBehind")

                # A connection that is delayed, as users meet it.
                proxy.delay_s = 0.1
                asking = asyncio.create_task(predict(watch))
                try:
                    await watch.raises("FoldinStoreSlow")
                finally:
                    asking.cancel()
                    proxy.delay_s = 0.0
    finally:
        await proxy.close()


# A trainer that has a process of its own write the records of a few users, too, not of 20,000 and more alone.
APART = """
import functools, runpy
from trainer.publication.publish import Publisher
Publisher.__init__ = functools.partialmethod(Publisher.__init__, apart_from=1)
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


# Twice the fault and its alert.
@pytest.mark.fit_process
@pytest.mark.timeout(600)
async def test_a_publication_that_is_frozen_or_killed_raises_its_alert(
    own_server: StoreServer, tmp_path: Path
) -> None:
    at = own_server.url, tmp_path / "archive", [sys.executable, "-c", APART]
    async with watching(own_server, tmp_path, *at) as watch:
        ended = 'foldin_trainer_events_total{event="records_process_ended"}'
        # Of a fit on busy cores there may have been one: it is waited for for seconds alone.
        (before,) = await watch.asked(ended) or [0.0]
        if not before:
            assert "FoldinRecordsProcess" not in await watch.firing()
        for count, how in enumerate((signal.SIGSTOP, signal.SIGKILL), 1):
            command = await watch.opened.commands.ask("refit", epoch=1)
            found = partial(running_fits, watch.trainer.pid, "trainer.publication.recording")
            (pid, *_) = await asyncio.to_thread(wait_until, found, "a publication")
            os.kill(pid, how)
            # Of the second one the first one's still fires: its count below tells.
            await watch.raises("FoldinRecordsProcess")
            outcome = await watch.opened.commands.wait(command, 100)
            # The trainer has written the records itself.
            assert outcome is not None
            assert outcome.state == "done", outcome

            async def counted(count: int = count) -> bool:
                return await watch.asked(ended) == [before + count]

            await wait_until_async(counted, "each of them is counted")


# Four times the fault, the alert and its end.
@pytest.mark.timeout(600)
async def test_a_full_disk_of_the_store_raises_its_alerts(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        (disk / "store").mkdir()
        with running_server(KIND, disk / "store") as server:
            at = server.url, tmp_path / "archive"
            async with watching(server, tmp_path, *at, store_folder=disk / "store") as watch:
                await asyncio.sleep(QUIET_S)
                assert await watch.firing() == set()

                # All but a few megabytes: ratings are refused while the store goes on.
                leave_free(disk, 4)
                await watch.raises("FoldinRefusing")
                assert await watch.asked("max by (reason) (foldin_refusing) == 1") == [1.0]
                (disk / "filler").unlink()
                await watch.clears("FoldinRefusing")

                # All of it, at once: what must be synced cannot be written, and the store ends.
                leave_free(disk, 0)
                await watch.raises("FoldinStoreDown")
                (disk / "filler").unlink()
                server.kill()
                server.start()
                await watch.raises("FoldinStoreRestarted")
                await watch.clears("FoldinStoreDown", "FoldinRefusing")


async def cut_again_and_again(proxy: Proxy) -> None:
    for _ in range(100):
        proxy.cut()
        await asyncio.sleep(2.0)


async def guess(watch: Watch) -> None:
    for _ in range(2_000):
        await watch.ask("GET", "/predict?user_id=u1&item_id=i1", new_secret())
        await asyncio.sleep(0.05)


async def predict(watch: Watch) -> None:
    for number in range(2_000):
        await watch.ask("GET", f"/predict?user_id=u{number % 30}&item_id=i1", watch.key)
        await asyncio.sleep(0.02)


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
    found = await asyncio.to_thread(wait_until, lambda: running_fits(watch.trainer.pid), "a fit")
    os.kill(found[0], signal.SIGKILL)
    outcome = await watch.opened.commands.wait(command, 20)
    assert outcome is not None
    assert outcome.state == "failed"


async def samples(watch: Watch) -> set[str]:
    """The names of all series of the trainer."""
    async with watch.session.get(f"{watch.url}/api/v1/label/__name__/values") as answer:
        return set((await answer.json())["data"])


async def last_fit_s(watch: Watch) -> float:
    """What the last published fit took, whichever leader published it."""
    (found,) = await watch.asked("max(last_over_time(foldin_trainer_fit_seconds[1h]))")
    return found


def watched_of_the_trainer() -> set[str]:
    text = (FILES / "alerts.yml").read_text("utf-8")
    # There only while a fit runs, while a file cannot be read, and where the store is a cluster.
    seldom = {
        *("foldin_trainer_fit_running_seconds", "foldin_trainer_unread_seconds"),
        "foldin_trainer_store_replicas",
    }
    return set(re.findall(r"\bfoldin_trainer_\w+", text)) - seldom
