"""A primary of a cluster is away under load: users of other servers notice nothing, its own rate on when a
replica has taken its place.
"""

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from featurestore.cluster.slots import even_tags, slot_of_tag
from featurestore.keys import partition_of
from featurestore.settings import StoreSettings
from tests.support.serving import Service
from tests.support.waiting import wait_until_async
from torture.cluster_set import ClusterSet, cluster_set

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(300)]

PARTITIONS, USERS = 16, [f"u{number}" for number in range(24)]
TAGS = even_tags(PARTITIONS)


def owner(cluster: ClusterSet, user: str) -> int:
    return cluster.owner(slot_of_tag(TAGS[partition_of(user.encode(), PARTITIONS)])).port


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_ratings_of_users_of_other_servers_go_on(how: str, tmp_path: Path) -> None:
    with cluster_set("valkey", tmp_path / "servers", 3, replicas=2) as cluster:
        store = StoreSettings(cluster.url, namespace="t", partitions=PARTITIONS, scale="1:5", timeout_s=1.0)
        service = Service(store, tmp_path, environment={"FOLDIN_DURABILITY": "replicated"})
        service.wait_for("/livez")
        owners = {user: owner(cluster, user) for user in USERS}
        refused, taken, stop = dict.fromkeys(USERS, 0), dict.fromkeys(USERS, 0), asyncio.Event()
        async with aiohttp.ClientSession(service.url) as session:

            async def rate(user: str) -> None:
                while not stop.is_set():
                    rating = {"user_id": user, "item_id": "a", "rating": 4}
                    async with session.post("/ratings", json=rating) as answer:
                        (taken if answer.ok else refused)[user] += 1

            async def all_rate_on() -> None:
                before = dict(taken)
                await wait_until_async(lambda: all(taken[u] > before[u] for u in USERS), "all rate on")

            raters = [asyncio.create_task(rate(user)) for user in USERS]
            await all_rate_on()
            refused = dict.fromkeys(USERS, 0)
            away = next(each for each in cluster.primaries if each.port == owners[USERS[0]])
            away.signal(signal.SIGSTOP) if how == "frozen" else away.kill()
            await wait_until_async(lambda: refused[USERS[0]] > 0, "it is away")
            await all_rate_on()
            stop.set()
            await asyncio.gather(*raters)
        service.end(signal.SIGKILL)
        others = [user for user in USERS if owners[user] != away.port]
        assert {user: refused[user] for user in others} == dict.fromkeys(others, 0)
