"""A real Prometheus watches the stack of the torture: what is killed and back at once, a supervisor that
stands still, a power cut and a promotion each raise an alert within a minute, though nothing is away for as
long as other alerts wait.
"""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from featurestore.store import Store
from tests.support.alerts import QUIET_S, WITHIN_S, Alerts, watching_ports
from tests.support.factories import low_rank_ratings
from tests.support.trainers import fitted
from tests.support.waiting import wait_until, wait_until_async
from torture.replica_set import WAYS, ReplicaSet, Server, Way
from torture.stack import Stack, running_stack

pytestmark = [pytest.mark.slow, pytest.mark.fault]

# Starts of all parts, on busy cores.
_UP_S = 120.0


async def until_learned(stack: Stack) -> None:
    """Wait until the stack serves what it has learned."""
    await asyncio.to_thread(wait_until, stack.answers, "the stack is ready")
    store = await Store.open(stack.settings.store)
    try:
        await store.ratings.append(low_rank_ratings(users=30, items=12))
        await fitted(store)
    finally:
        await store.close()


async def store_run(watch: Alerts) -> float:
    """The number of the server that is the store, once a trainer that leads says it."""

    async def said() -> list[float]:
        return await watch.asked("max(foldin_trainer_store_run)")

    found: list[float] = await wait_until_async(said, "a leader says which server is the store")
    return found[0]


async def promoted(servers: ReplicaSet, way: Way) -> Server:
    """Have a replica promoted; on busy cores sentinels may not agree at the first time."""
    for left in (2, 1, 0):
        try:
            return await asyncio.to_thread(servers.replace_primary, way)
        except TimeoutError:
            if not left or way == "kill":
                raise
    raise AssertionError


async def until_another_store(watch: Alerts, run: float) -> float:
    """Wait until a trainer says that another server is the store; return its number."""

    async def other() -> list[float]:
        return [found for found in await watch.asked("max(foldin_trainer_store_run)") if found != run]

    found: list[float] = await wait_until_async(other, "another server of the store")
    return found[0]


# Starts of the stack, four faults and their alerts.
@pytest.mark.timeout(900)
async def test_what_is_back_at_once_and_a_power_cut_raise_theirs(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with running_stack(tmp_path, os.environ) as stack:
        await until_learned(stack)
        services, trainers = list(stack.ports.values()), list(stack.trainer_ports.values())
        async with watching_ports(tmp_path, services, trainers, None) as watch:
            await asyncio.sleep(QUIET_S)
            assert await watch.firing() == set()
            run = await store_run(watch)

            # The supervisor of the replica that has one: its workers answer on.
            (supervisor,) = stack.pids("service")
            os.kill(supervisor, signal.SIGSTOP)
            try:
                await watch.raises("FoldinSupervisorSilent", at=[stack.ports["service-a"]])
            finally:
                os.kill(supervisor, signal.SIGCONT)
            await watch.clears("FoldinSupervisorSilent")
            assert stack.kill("service", rng)
            await watch.raises("FoldinRestarted", at=[stack.ports["service-a"]])
            assert stack.kill("trainer", rng)
            await watch.raises("FoldinRestarted", at=trainers)
            assert stack.kill("store", rng)
            await watch.raises("FoldinStoreRestarted")
            run = await until_another_store(watch, run)

            await stack.cut_power(rng)
            # One replica and one trainer of these had not been touched.
            for port in (*services, *trainers):
                await watch.raises("FoldinRestarted", at=[port])
            await until_another_store(watch, run)


# Starts of the stack, three promotions and their alerts.
@pytest.mark.timeout(900)
async def test_each_promotion_raises_its_alert(tmp_path: Path) -> None:
    async with running_stack(tmp_path, os.environ, kind="replicas") as stack:
        servers = stack.servers
        assert isinstance(servers, ReplicaSet)
        await until_learned(stack)
        services, trainers = list(stack.ports.values()), list(stack.trainer_ports.values())
        # So that the alert of one promotion is over before the next.
        async with watching_ports(tmp_path, services, trainers, None, looks_back="1m") as watch:
            await asyncio.sleep(QUIET_S)
            assert await watch.firing() == set()
            for way in WAYS:
                await watch.clears("FoldinStoreRestarted", within_s=3 * WITHIN_S)
                run = await store_run(watch)
                old = await promoted(servers, way)
                await until_another_store(watch, run)
                await watch.raises("FoldinStoreRestarted")
                await asyncio.to_thread(servers.bring_back, old, way)
