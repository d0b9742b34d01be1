"""A store on a cluster of real servers does what it does on one; slots move, and servers go and come."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.exceptions import ResponseError

from featurestore.cluster.servers import ClusterConfirmation
from featurestore.cluster.slots import even_tags, slot_of, slot_of_tag
from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.keys import partition_of
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.points import look_at_servers, uncovered
from foldin.cluster.__main__ import servers_of
from foldin.cluster.forming import command, form, myself, share, view_of
from processes.errors import CannotStartError
from tests.integration.featurestore.test_store_open import every_call
from tests.support.factories import as_live, lead, publish, rating
from tests.support.recovering import opened
from tests.support.servers import ServerKind
from tests.support.waiting import retried, wait_until, wait_until_async
from torture.cluster_set import ClusterSet, cluster_set, frozen

PARTITIONS = 8


def settings_of(url: str, **more: object) -> StoreSettings:
    return StoreSettings(url=url, namespace="t", partitions=PARTITIONS, scale="1:5", timeout_s=30.0, **more)  # type: ignore[arg-type]


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All servers answer, however long a busy machine takes: none is given up."""
    for module in ("cluster.topology", "wire.primary"):
        monkeypatch.setattr(f"featurestore.{module}.ANSWER_S", 30.0)


@pytest.fixture
def cluster(store_kind: ServerKind, tmp_path: Path) -> Iterator[ClusterSet]:
    with cluster_set(store_kind, tmp_path / "servers", 3) as running:
        yield running


@pytest.fixture
def replicated(store_kind: ServerKind, tmp_path: Path) -> Iterator[ClusterSet]:
    with cluster_set(store_kind, tmp_path / "servers", 3, replicas=1) as running:
        yield running


def slot_of_user(user: bytes) -> int:
    return slot_of_tag(even_tags(PARTITIONS)[partition_of(user, PARTITIONS)])


def taken_from(clients: Sequence[Any]) -> bool:
    """Take slots 7 and 8 from all; say whether none knows of one that has them: it is told by others, too."""
    for client in clients:
        with contextlib.suppress(ResponseError):
            command(client, "CLUSTER", "DELSLOTSRANGE", 7, 8)
    held = [slots for client in clients for each in view_of(client).values() for slots in each.slots]
    return not any(first <= 8 and last >= 7 for first, last in held)


@pytest.mark.usefixtures("_patient")
async def test_a_half_formed_cluster_is_formed_a_lost_one_not(store_kind: ServerKind, tmp_path: Path) -> None:
    servers = ClusterSet(store_kind, tmp_path, 2, replicas=False)
    try:
        for server in servers.servers:
            server.start()
        settings = settings_of(servers.url)
        clients = servers_of(settings)
        # An attempt that was killed: some slots are given.
        command(clients[1], "CLUSTER", "ADDSLOTSRANGE", *share(1, 2))
        for _ in range(2):
            assert await asyncio.to_thread(form, clients, 2) == []
            await asyncio.to_thread(servers.until_whole)
            assert [each.slots for each in map(myself, clients)] == [(share(0, 2),), (share(1, 2),)]
            # Slots that no server has are named, and given again.
            wait_until(lambda: taken_from(clients), "no server has the slots 7 and 8")
            with pytest.raises(StoreRefused, match=r"2 slots .* have no server \(the first is 7\)"):
                await Store.open(settings)
        # What a lost one had must not seem to be there.
        assert clients[1].set("a", "1")
        servers.lose(servers.servers[0])
        with pytest.raises(CannotStartError, match=r"slots [\d, -]+ of the cluster have no server.*restore"):
            await asyncio.to_thread(form, servers_of(settings_of(servers.url)), 2)
    finally:
        servers.kill()


@pytest.mark.usefixtures("_patient")
async def test_what_one_server_does_a_cluster_does(store_kind: ServerKind, tmp_path: Path) -> None:
    with cluster_set(store_kind, tmp_path, 2) as cluster:
        settings = settings_of(cluster.url, durability="fsync")
        async with opened(settings) as store, opened(settings) as other:
            await every_call(store)
            users = [b"u%d" % k for k in range(40)]
            await store.ratings.append([rating(user.decode(), f"i{k % 8}") for k, user in enumerate(users)])
            lease = await lead(store)
            live = as_live(await publish(store, lease, users=users))
            current = await other.users.current(live, [*users, b"unknown"])
            assert current.n.tolist() == [1] * 40 + [0]
            assert not current.folded.any()
            await other.ratings.append([rating("u0", "i1", 5.0)])
            assert (await store.users.current(live, users)).folded.tolist() == [True] + [False] * 39
            epoch = await store.epochs.begin()
            await store.ratings.append([rating("u2", "new", 2.0)])
            await publish(store, lease, epoch=epoch)
            await store.epochs.finish(epoch)
            await store.generations.remove_epoch(1)
            n, history = await other.users.history(epoch, b"u2")
            assert (n, history.rating.tolist()) == (1, [2.0])
            found = await look_at_servers(store.redis)
            assert (len(found), uncovered(found)) == (2, 0)
            assert np.ptp([each.slots for each in found]) <= 1


@pytest.mark.slow
async def test_moving_slots_and_a_joining_server_fail_no_call_and_lose_nothing(cluster: ClusterSet) -> None:
    counts, stop = Counter[int](), asyncio.Event()
    async with opened(settings_of(cluster.url)) as store:

        async def rate(number: int) -> None:
            while not stop.is_set():
                await store.ratings.append([rating(f"u{number}", f"i{counts[number]}")])
                counts[number] += 1
                assert (await store.users.history(1, b"u%d" % number))[0] == counts[number]

        async def all_rate_on() -> None:
            before = counts.copy()
            await wait_until_async(lambda: all(counts[k] > before[k] for k in range(12)), "all rate on")

        await store.ratings.append([rating(f"more{k}", f"i{k % 20}") for k in range(300)])
        raters, moved = [asyncio.create_task(rate(number)) for number in range(12)], 0
        await all_rate_on()
        slots = [slot_of_tag(tag) for tag in even_tags(PARTITIONS)]
        # Those of the pointer, with the item registry and the configuration, and of the catalogue.
        for slot in (*slots, slot_of_tag(store.keys.live), slot_of_tag(store.keys.catalogue)):
            source = await asyncio.to_thread(cluster.owner, slot)
            target = next(each for each in cluster.primaries if each is not source)
            moved += await asyncio.to_thread(cluster.move, slot, target, pause_s=0.002)
        target = await asyncio.to_thread(cluster.join)
        await asyncio.to_thread(cluster.move, slot_of_user(b"u0"), target, pause_s=0.002)
        await all_rate_on()
        stop.set()
        await asyncio.gather(*raters)
        assert moved > 600
        assert cluster.command(target, "DBSIZE") > 0


@pytest.mark.slow
async def test_no_server_confirms_for_another(replicated: ClusterSet) -> None:
    async with opened(settings_of(replicated.url, durability="replicated")) as store:
        found = await look_at_servers(store.redis)
        assert {each.address for each in found} == {f"127.0.0.1:{each.port}" for each in replicated.primaries}
        assert (sum(each.slots for each in found), uncovered(found)) == (16_384, 0)
        await store.ratings.append([rating("u0", "a")])
        # The key by which a server was asked whether its replica has all may move to another server.
        owner, confirmation = replicated.owner(slot_of_user(b"u0")), store.confirmation
        assert isinstance(confirmation, ClusterConfirmation)
        nodes = [node for node in confirmation._of_nodes if node.address[1] == owner.port]
        (mark,) = [confirmation._of_nodes[node].key for node in nodes]
        target = next(each for each in replicated.primaries if each is not owner)
        await asyncio.to_thread(replicated.move, slot_of(mark), target)
        again = partial(store.ratings.append, [rating("u0", "b")])
        await retried(again, "it is acknowledged", StoreUnavailable)
        (port,) = [int(each[1]) for each in replicated.command(owner, "ROLE")[2]]
        replica = next(each for each in replicated.servers if each.port == port)
        with frozen(replica), pytest.raises(StoreUnavailable):
            await store.ratings.append([rating("u0", "c")])
        await retried(again, "it is acknowledged", StoreUnavailable)


@pytest.mark.slow
async def test_a_server_that_is_away_keeps_no_user_of_another_one_waiting(replicated: ClusterSet) -> None:
    """Not even the one that gives items their rows, where the items are known."""
    for each in replicated.replicas:
        # None takes over: it is away as long as this takes.
        each.client.config_set("cluster-replica-no-failover", "yes")
    async with opened(settings_of(replicated.url, durability="replicated")) as store:
        users = [f"u{number}" for number in range(60)]
        await store.ratings.append([rating(user, "a") for user in users])
        away = replicated.owner(slot_of_tag(store.keys.live))
        others = [user for user in users if replicated.owner(slot_of_user(user.encode())) is not away]
        with frozen(away):
            for user in others:
                await store.ratings.append([rating(user, "a", 4.0)])
            # Of several partitions in one call, too.
            await store.ratings.append([rating(user, "a", 5.0) for user in others])
        for user in others:
            assert (await store.users.history(1, user.encode()))[0] == 3


@pytest.mark.slow
async def test_a_row_of_an_item_that_may_be_lost_is_not_rated_with(replicated: ClusterSet) -> None:
    """Another process has registered the item, and its server has not confirmed that yet."""
    async with (
        opened(settings_of(replicated.url, durability="replicated")) as store,
        opened(settings_of(replicated.url)) as other,
    ):
        home = replicated.owner(slot_of_tag(store.keys.live))
        users = (f"u{number}" for number in range(60))
        user = next(user for user in users if replicated.owner(slot_of_user(user.encode())) is not home)
        await store.ratings.append([rating(user, "a")])
        (port,) = [int(each[1]) for each in replicated.command(home, "ROLE")[2]]
        with frozen(next(each for each in replicated.servers if each.port == port)):
            await other.ratings.append([rating(user, "b")])
            with pytest.raises(StoreUnavailable):
                await store.ratings.append([rating(user, "b")])
        again = partial(store.ratings.append, [rating(user, "b")])
        await retried(again, "it is acknowledged", StoreUnavailable)
