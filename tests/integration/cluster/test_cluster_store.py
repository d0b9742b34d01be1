"""A store on a cluster of real servers: slots that move under load, servers that go and come, and clusters
that a person must mend first.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.cluster.confirmation import ClusterConfirmation
from featurestore.cluster.slots import even_tags, slot_of, slot_of_tag
from featurestore.errors import StoreChanged, StoreRefused, StoreUnavailable
from featurestore.keys import partition_of
from featurestore.ratings.log import NewRating
from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.telemetry.servers import look_at_servers, skew, uncovered
from foldin.cluster.forming import until
from tests.support.factories import rating
from tests.support.recovering import opened
from tests.support.servers import ServerKind, StoreServer
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
        # Of each user, since when ratings are refused, and the longest time.
        self.longest_s = 0.0
        self._stop = asyncio.Event()

    async def _rate(self, number: int) -> None:
        loop, user, count = asyncio.get_running_loop(), f"u{number}", 0
        last = loop.time()
        while not self._stop.is_set():
            count += 1
            item = f"i{count % 30}"
            try:
                await self._store.ratings.append([rating(user, item, 1.0 + count % 5)])
                n, history = await self._store.users.history(1, user.encode())
            except StoreUnavailable as exc:
                self.failed.append(exc)
                await asyncio.sleep(0.05)
                continue
            self.longest_s, last = max(self.longest_s, loop.time() - last), loop.time()
            items = self.acknowledged.setdefault(user.encode(), set())
            items.add(item.encode())
            # What was not acknowledged may be there too.
            assert len(history.rating) >= len(items), "what was written is read"
            assert n >= len(items)
            await asyncio.sleep(0)

    @asynccontextmanager
    async def at_work(self, count: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._rate(number)) for number in range(count)]
        try:
            await asyncio.sleep(0.2)
            yield
            await asyncio.sleep(0.2)
        finally:
            self._stop.set()
            await asyncio.gather(*tasks)

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


async def test_slots_that_move_key_by_key_fail_no_call_and_lose_nothing(cluster: ClusterSet) -> None:
    async with opened(settings_of(cluster.url)) as store:
        await store.ratings.append([rating(f"more{k}", f"i{k % 20}") for k in range(300)])
        raters, moved = Raters(store), 0
        async with raters.at_work(12):
            for tag in even_tags(PARTITIONS):
                slot = slot_of_tag(tag)
                source = await asyncio.to_thread(cluster.owner, slot)
                target = next(each for each in cluster.primaries if each is not source)
                moved += await asyncio.to_thread(cluster.move, slot, target, pause_s=0.002)
            # Those of the pointer, with the item registry and the configuration, and of the catalogue.
            for key in (store.keys.live, store.keys.catalogue):
                slot = slot_of_tag(key)
                source = await asyncio.to_thread(cluster.owner, slot)
                target = next(each for each in cluster.primaries if each is not source)
                moved += await asyncio.to_thread(cluster.move, slot, target)
        assert raters.failed == []
        assert await raters.lost() == []
        assert moved > 600
        assert len(raters.acknowledged) == 12


@pytest.mark.parametrize("cluster", ["valkey"], indirect=True)
async def test_a_slot_that_moves_as_a_whole_fails_no_call(cluster: ClusterSet) -> None:
    async with opened(settings_of(cluster.url)) as store:
        raters = Raters(store)
        async with raters.at_work(12):
            for tag in even_tags(PARTITIONS):
                source = await asyncio.to_thread(cluster.owner, slot := slot_of_tag(tag))
                target = next(each for each in cluster.primaries if each is not source)
                await asyncio.to_thread(cluster.migrate, slot, target)
        assert raters.failed == []
        assert await raters.lost() == []


async def test_a_server_that_joins_gets_slots_and_is_used(cluster: ClusterSet) -> None:
    async with opened(settings_of(cluster.url)) as store:
        raters, slot = Raters(store), slot_of_user(b"u0")
        async with raters.at_work(4):
            target = await asyncio.to_thread(cluster.join)
            await asyncio.to_thread(cluster.move, slot, target, pause_s=0.002)
        assert raters.failed == []
        assert await raters.lost() == []
        assert cluster.command(target, "DBSIZE") > 0
        assert "LIBRARYNAME" in str(cluster.command(target, "FUNCTION LIST")).upper().replace("_", "")


async def all_users(store: Store, partition: int) -> set[bytes]:
    found, cursor, more = set[bytes](), 0, True
    while more:
        cursor, users = await store.users.scan(1, partition, cursor)
        found |= {user.user_id for user in users}
        more = cursor != 0
    return found


async def test_a_list_of_all_users_is_whole_or_says_that_slots_have_moved(cluster: ClusterSet) -> None:
    async with opened(settings_of(cluster.url)) as store:
        # So many that a server does not name all of a partition at once.
        names = [f"u{k}" for k in range(16_000)]
        for start in range(0, len(names), 500):
            await store.ratings.append([rating(name, "i1") for name in names[start : start + 500]])
        partition = 3
        users = {name.encode() for name in names if partition_of(name.encode(), PARTITIONS) == partition}
        assert await all_users(store, partition) == users
        slot = slot_of_tag(even_tags(PARTITIONS)[partition])
        source = cluster.owner(slot)
        target = next(each for each in cluster.primaries if each is not source)

        # Begun before the slot went to another server, which knows no cursor of the first.
        cursor, _ = await store.users.scan(1, partition, 0)
        assert cursor
        assert cursor < 2**63
        await asyncio.to_thread(cluster.move, slot, target)
        await store.ratings.append([rating(names[0], "i2")])
        for user in sorted(users)[:3]:
            await store.users.history(1, user)
        with pytest.raises(StoreChanged, match="begin again"):
            await store.users.scan(1, partition, cursor)
        assert await all_users(store, partition) == users

        # While it is on its way, half of it here and half of it there.
        cluster.command(source, "CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.name(target))
        cluster.command(target, "CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.name(source))
        with pytest.raises(StoreUnavailable, match="moving"):
            await all_users(store, partition)
        with pytest.raises(StoreUnavailable, match="moving"):
            await anext(store.user_search.all(1))
        cluster.command(target, "CLUSTER", "SETSLOT", slot, "STABLE")
        cluster.command(source, "CLUSTER", "SETSLOT", slot, "STABLE")
        everyone = {user async for some in store.user_search.all(1) for user in some}
        assert everyone == {name.encode() for name in names}


async def test_a_replica_takes_over_and_nothing_acknowledged_is_lost(replicated: ClusterSet) -> None:
    async with opened(settings_of(replicated.url, durability="replicated")) as store:
        raters, slot = Raters(store), slot_of_user(b"u0")
        async with raters.at_work(6):
            owner = replicated.owner(slot)
            owner.kill()
            await asyncio.to_thread(until, lambda: replicated.owner(slot) is not owner, "a replica took over")
            await asyncio.sleep(2.0)
            seen = {user: len(items) for user, items in raters.acknowledged.items()}
            owner.start()
            await asyncio.to_thread(replicated.until_whole)
            await asyncio.sleep(1.0)
        assert raters.failed, "a server was gone"
        assert await raters.lost() == []
        assert set(seen) == set(raters.acknowledged)


async def test_no_other_server_confirms_what_one_was_given(replicated: ClusterSet) -> None:
    """Also after the slot moved by which a server was asked before."""
    settings = settings_of(replicated.url, durability="replicated")
    async with opened(replace(settings, timeout_s=2.0)) as store:
        user, slot = "u0", slot_of_user(b"u0")
        await store.ratings.append([rating(user, "i1")])
        owner = replicated.owner(slot)
        confirmation = store.confirmation
        assert isinstance(confirmation, ClusterConfirmation)
        (mark,) = [
            confirmation._key_on(node) for node in confirmation._of_nodes if node.address[1] == owner.port
        ]
        target = next(each for each in replicated.primaries if each is not owner)
        await asyncio.to_thread(replicated.move, slot_of(mark), target)
        assert replicated.owner(slot) is owner
        # This process has heard of the move.
        await until_acknowledged(store, rating(user, "i2"))
        (port,) = [int(each[1]) for each in replicated.command(owner, "ROLE")[2]]
        replica = next(each for each in replicated.servers if each.port == port)
        with frozen(replica), pytest.raises(StoreUnavailable):
            await store.ratings.append([rating(user, "i3")])
        await until_acknowledged(store, rating(user, "i4"))


async def until_acknowledged(store: Store, given: NewRating) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await store.ratings.append([given])
            except StoreUnavailable:
                await asyncio.sleep(0.2)


async def test_a_server_that_is_told_to_hand_over_fails_no_call(replicated: ClusterSet) -> None:
    async with opened(settings_of(replicated.url)) as store:
        raters = Raters(store)
        async with raters.at_work(6):
            await asyncio.to_thread(replicated.hand_over, replicated.replicas[0])
            await asyncio.sleep(1.0)
        assert raters.failed == []
        assert await raters.lost() == []


async def test_while_one_server_is_away_the_users_of_the_others_are_served(cluster: ClusterSet) -> None:
    async with opened(settings_of(cluster.url)) as store:
        users = [f"u{k}".encode() for k in range(40)]
        await store.ratings.append([rating(user.decode(), "i1") for user in users])
        owners = {user: cluster.owner(slot_of_user(user)) for user in users}
        away = owners[users[0]]
        with frozen(away):
            for user in [user for user in users if owners[user] is not away][:5]:
                n, _ = await store.users.history(1, user)
                assert n == 1
            with pytest.raises(StoreUnavailable):
                await store.users.history(1, users[0])


async def test_a_cluster_with_slots_that_no_server_has_is_refused(cluster: ClusterSet) -> None:
    for server in cluster.servers:
        cluster.command(server, "CLUSTER", "DELSLOTSRANGE", 7, 8)
    with pytest.raises(StoreRefused, match=r"2 slots of the cluster .* have no server \(the first is 7\)"):
        await Store.open(settings_of(cluster.url))


async def test_the_address_says_whether_it_is_a_cluster(cluster: ClusterSet, own_server: StoreServer) -> None:
    port = cluster.servers[0].port
    with pytest.raises(StoreRefused, match=r"redis\+cluster://HOST:PORT,HOST:PORT"):
        await Store.open(settings_of(f"redis://127.0.0.1:{port}"))
    with pytest.raises(StoreRefused, match=f"is in no cluster: use redis://127.0.0.1:{own_server.port}"):
        await Store.open(settings_of(f"redis+cluster://127.0.0.1:{own_server.port}"))


async def test_a_server_that_cannot_be_reached_from_here_is_named(cluster: ClusterSet) -> None:
    first, last = cluster.servers[0], cluster.servers[-1]
    cluster.command(last, "CONFIG SET", "cluster-announce-port", 1)
    until(lambda: "127.0.0.1:1'" in str(cluster.command(first, "CLUSTER NODES")), "it is told")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1\b"):
        await Store.open(settings_of(f"redis+cluster://127.0.0.1:{first.port}"))


async def test_its_servers_are_told_and_one_that_is_away_keeps_none_from_it(replicated: ClusterSet) -> None:
    async with opened(settings_of(replicated.url)) as store:
        found = await look_at_servers(store.redis)
        assert {each.address for each in found} == {f"127.0.0.1:{each.port}" for each in replicated.primaries}
        assert sum(each.slots for each in found) == 16_384
        assert uncovered(found) == 0
        assert all(each.used_bytes > 0 and each.answers for each in found)
        assert 1.0 <= skew(found) < 1.5
        assert [[replica.online for replica in each.replicas] for each in found] == [[True]] * 3
        # Nothing is left that could take over.
        for server in (replicated.replicas[0], replicated.primaries[0]):
            server.kill()
        found = await look_at_servers(store.redis)
        (away,) = [each for each in found if not each.answers]
        assert away.address == f"127.0.0.1:{replicated.primaries[0].port}"
        assert uncovered(found) == away.slots > 5_000
