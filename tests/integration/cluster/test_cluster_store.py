"""A store on a cluster of real servers: slots that move under load, servers that go and come, and clusters
that a person must mend first.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from featurestore.cluster.confirmation import ClusterConfirmation
from featurestore.cluster.slots import even_tags, slot_of, slot_of_tag
from featurestore.errors import StoreRefused, StoreUnavailable
from featurestore.keys import partition_of
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.servers import look_at_servers, uncovered
from foldin.cluster.forming import until
from tests.support.factories import rating
from tests.support.recovering import opened
from tests.support.servers import ServerKind
from tests.support.waiting import wait_until_async
from torture.cluster_set import ClusterSet, cluster_set, frozen

pytestmark = pytest.mark.slow

PARTITIONS = 8


def settings_of(url: str, **more: object) -> StoreSettings:
    return StoreSettings(url=url, namespace="t", partitions=PARTITIONS, scale="1:5", timeout_s=5.0, **more)  # type: ignore[arg-type]


@pytest.fixture
def cluster(store_kind: ServerKind, tmp_path: Path) -> Iterator[ClusterSet]:
    with cluster_set(store_kind, tmp_path / "servers", 3) as running:
        yield running


@pytest.fixture
def replicated(store_kind: ServerKind, tmp_path: Path) -> Iterator[ClusterSet]:
    with cluster_set(store_kind, tmp_path / "servers", 3, replicas=True) as running:
        yield running


class Raters:
    """Rate and read without a pause, and note what was acknowledged and what failed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.acknowledged: dict[bytes, set[bytes]] = {}
        self.failed: list[BaseException] = []
        self._counts: dict[int, int] = {}
        self._stop = asyncio.Event()

    async def _rate(self, number: int) -> None:
        user, count = f"u{number}", 0
        items = self.acknowledged.setdefault(user.encode(), set())
        while not self._stop.is_set():
            count += 1
            item = f"i{count % 30}"
            try:
                await self._store.ratings.append([rating(user, item, 1.0 + count % 5)])
                items.add(item.encode())
                _, history = await self._store.users.history(1, user.encode())
            except StoreUnavailable as exc:
                self.failed.append(exc)
                await asyncio.sleep(0.05)
                continue
            # What was not acknowledged may be there too.
            assert len(history.rating) >= len(items), "what was written is read"
            self._counts[number] = count
            await asyncio.sleep(0)

    @asynccontextmanager
    async def at_work(self, count: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._rate(number)) for number in range(count)]
        try:
            await self.go_on()
            yield
            await self.go_on()
        finally:
            self._stop.set()
            await asyncio.gather(*tasks)

    async def go_on(self) -> None:
        """Return when each has rated some more."""
        before = dict(self._counts)

        def rated() -> bool:
            return all(self._counts.get(k, 0) > before.get(k, 0) for k in range(len(self.acknowledged)))

        await wait_until_async(lambda: self.acknowledged and rated(), "all rate on")

    async def lost(self) -> list[bytes]:
        """Users of whom something acknowledged is gone."""
        found = []
        for user, items in self.acknowledged.items():
            _, history = await self._store.users.history(1, user)
            if len(history.rating) < len(items):
                found.append(user)
        return found


def slot_of_user(user: bytes) -> int:
    return slot_of_tag(even_tags(PARTITIONS)[partition_of(user, PARTITIONS)])


async def test_slots_that_move_and_a_server_that_joins_fail_no_call_and_lose_nothing(
    cluster: ClusterSet,
) -> None:
    async with opened(settings_of(cluster.url)) as store:
        await store.ratings.append([rating(f"more{k}", f"i{k % 20}") for k in range(300)])
        raters, moved = Raters(store), 0
        async with raters.at_work(12):
            slots = [slot_of_tag(tag) for tag in even_tags(PARTITIONS)]
            # Those of the pointer, with the item registry and the configuration, and of the catalogue.
            for slot in (*slots, slot_of_tag(store.keys.live), slot_of_tag(store.keys.catalogue)):
                source = await asyncio.to_thread(cluster.owner, slot)
                target = next(each for each in cluster.primaries if each is not source)
                moved += await asyncio.to_thread(cluster.move, slot, target, pause_s=0.002)
            target = await asyncio.to_thread(cluster.join)
            await asyncio.to_thread(cluster.move, slot_of_user(b"u0"), target, pause_s=0.002)
        assert raters.failed == []
        assert await raters.lost() == []
        assert moved > 600
        assert cluster.command(target, "DBSIZE") > 0


async def test_nothing_acknowledged_is_lost_with_a_server_and_none_confirms_for_another(
    replicated: ClusterSet,
) -> None:
    async with opened(settings_of(replicated.url, durability="replicated")) as store:
        found = await look_at_servers(store.redis)
        assert {each.address for each in found} == {f"127.0.0.1:{each.port}" for each in replicated.primaries}
        assert (sum(each.slots for each in found), uncovered(found)) == (16_384, 0)
        raters, slot = Raters(store), slot_of_user(b"u0")
        async with raters.at_work(6):
            # Told to hand over, and killed.
            await asyncio.to_thread(replicated.hand_over, replicated.replicas[0])
            await raters.go_on()
            owner = replicated.owner(slot)
            owner.kill()
            await asyncio.to_thread(until, lambda: replicated.owner(slot) is not owner, "a replica took over")
            owner.start()
            await asyncio.to_thread(replicated.until_whole)
        assert await raters.lost() == []
        # The key by which a server was asked whether its replica has all may move to another server.
        owner, confirmation = replicated.owner(slot), store.confirmation
        assert isinstance(confirmation, ClusterConfirmation)
        (mark,) = [
            confirmation._key_on(node) for node in confirmation._of_nodes if node.address[1] == owner.port
        ]
        primaries = [each for each in replicated.servers if replicated.is_primary(each)]
        target = next(each for each in primaries if each is not owner)
        await asyncio.to_thread(replicated.move, slot_of(mark), target)
        await until_acknowledged(store, rating("u0", "a"))
        (port,) = [int(each[1]) for each in replicated.command(owner, "ROLE")[2]]
        replica = next(each for each in replicated.servers if each.port == port)
        with frozen(replica), pytest.raises(StoreUnavailable):
            await store.ratings.append([rating("u0", "b")])
        await until_acknowledged(store, rating("u0", "c"))


async def until_acknowledged(store: Store, given: NewRating) -> None:
    async def acknowledged() -> bool:
        try:
            await store.ratings.append([given])
        except StoreUnavailable:
            return False
        return True

    await wait_until_async(acknowledged, "it is acknowledged")


async def test_while_a_server_is_away_others_serve_and_slots_without_a_server_are_named(
    cluster: ClusterSet,
) -> None:
    async with opened(settings_of(cluster.url)) as store:
        users = [f"u{k}".encode() for k in range(40)]
        await store.ratings.append([rating(user.decode(), "i1") for user in users])
        owners = {user: cluster.owner(slot_of_user(user)) for user in users}
        away = owners[users[0]]
        with frozen(away):
            for user in [user for user in users if owners[user] is not away][:5]:
                assert (await store.users.history(1, user))[0] == 1
            with pytest.raises(StoreUnavailable):
                await store.users.history(1, users[0])
    for server in cluster.servers:
        cluster.command(server, "CLUSTER", "DELSLOTSRANGE", 7, 8)
    with pytest.raises(StoreRefused, match=r"2 slots of the cluster .* have no server \(the first is 7\)"):
        await Store.open(settings_of(cluster.url))
