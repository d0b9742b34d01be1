"""A service and a trainer on a store that is a cluster: all that they do on one server, and what is special
there.
"""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.cluster.slots import slot_of
from featurestore.settings import StoreSettings
from foldin.recovery.verifying import verify
from tests.support.factories import rating
from tests.support.recovering import archive_ratings, now_held, opened, restored
from tests.support.servers import ServerKind, StoreServer
from tests.support.serving import Client, serving
from tests.support.trainers import ChildTrainer, fitted, running_trainer, trainer_settings, until_drained
from tests.support.waiting import wait_until_async
from torture.cluster_set import ClusterSet, cluster_set
from trainer.settings import TrainerSettings

SECRET = "one-who-is-to-be-forgotten"
# A whole stack on busy cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(store_kind: ServerKind, tmp_path: Path) -> Iterator[ClusterSet]:
    with cluster_set(store_kind, tmp_path / "servers", 3, replicas=True, sync="always") as running:
        yield running


@pytest.fixture
def on_cluster(cluster: ClusterSet, tmp_path: Path) -> TrainerSettings:
    at = StoreSettings(url=cluster.url, namespace="t", partitions=16, timeout_s=5.0)
    return trainer_settings(at, tmp_path / "archive", lease_ttl_s=5.0)


def ratings(users: int, low: float = 1.0) -> list[dict[str, object]]:
    pairs = [(user, item) for user in range(users) for item in range(24) if (user + item) % 3]
    return [
        {"user_id": f"u{user}", "item_id": f"i{item}", "rating": low + (user * item) % 4}
        for user, item in pairs
    ]


async def test_everything_that_a_stack_does(
    cluster: ClusterSet, on_cluster: TrainerSettings, tmp_path: Path
) -> None:
    async with (
        serving(on_cluster.store) as (client, _),
        running_trainer(on_cluster),
        opened(on_cluster.store) as store,
    ):
        rows = [*ratings(60), {"user_id": SECRET, "item_id": "i1", "rating": 5}]
        assert (await client.post("/ratings", rows)).status == 200
        trained = await client.post("/train")
        assert trained.status == 200, trained.json
        first = trained.json["generation"]

        # The rating after it counts at once, in every answer.
        before = (await client.get("/predict?user_id=u1&item_id=i20")).json
        assert (before["basis"], before["generation"]) == ("user+item", first)
        assert (
            await client.post("/ratings", [{"user_id": "u1", "item_id": "i3", "rating": 5}])
        ).status == 200
        assert (await client.get("/predict?user_id=u1&item_id=i20")).json["rating"] != before["rating"]
        pairs = [[f"u{k}", f"i{k % 24}"] for k in range(60)]
        several = (await client.post("/predict", {"pairs": pairs})).json["predictions"]
        single = [
            (await client.get(f"/predict?user_id={u}&item_id={i}")).json["rating"] for u, i in pairs[:5]
        ]
        assert [each["rating"] for each in several[:5]] == pytest.approx(single)
        seen = {row["item_id"] for row in (await client.get("/users/u2/ratings")).json["ratings"]}
        listed = (await client.get("/recommend/u2?n=8")).json["items"]
        assert len(listed) == 8
        assert not seen & {each["item_id"] for each in listed}

        # What was forgotten is in no file of any server.
        receipt = (await client.ask("DELETE", f"/users/{SECRET}")).json["receipt"]

        async def erased() -> bool:
            return bool((await client.get(f"/receipts/{receipt}")).json["archive"] == "erased")

        await wait_until_async(erased, "the receipt says erased")
        for server in cluster.primaries:
            for path in server.folder.rglob("*"):
                if path.is_file() and path.name != "server.log":
                    assert SECRET.encode() not in path.read_bytes(), path

        # A new history, with what comes in meanwhile; then back, and forward again.
        history = {
            "nb_users": 30,
            "nb_items": 10,
            "user_history": [k % 30 for k in range(240)],
            "item_history": [(k * 7) % 10 for k in range(240)],
            "rating_history": [1 + k % 5 for k in range(240)],
            "replace": True,
        }
        replaced = await client.post("/train", history)
        assert replaced.status == 200, replaced.json
        assert (await client.get("/predict?user_id=1&item_id=3")).json["basis"] == "user+item"
        await fitted(store, epoch=replaced.json["epoch"])
        assert (await client.post(f"/generations/{replaced.json['generation']}/activate")).status == 200
        await until_drained(store, replaced.json["epoch"])
        found = await verify(store, on_cluster, lambda _line: None)
        assert found.count == 0, found.differences


async def test_a_server_that_dies_amid_ratings_and_fits_takes_nothing_along(
    cluster: ClusterSet, on_cluster: TrainerSettings
) -> None:
    from dataclasses import replace

    store_settings = replace(on_cluster.store, durability="replicated")
    async with serving(store_settings) as (client, _), opened(store_settings) as store:
        trainers = [ChildTrainer(on_cluster), ChildTrainer(on_cluster)]
        try:
            assert (await client.post("/ratings", ratings(60))).status == 200
            await fitted(store)
            acknowledged: set[tuple[str, str]] = set()
            rating_on = asyncio.create_task(rate_on(client, acknowledged))
            try:
                for primary in cluster.primaries[:2]:
                    await asyncio.sleep(1.0)
                    primary.kill()
                    await asyncio.sleep(5.0)
                    primary.start()
                    await asyncio.to_thread(cluster.until_whole)
            finally:
                rating_on.cancel()
                await asyncio.gather(rating_on, return_exceptions=True)
            # None while a primary has no replica that could confirm it.
            assert len(acknowledged) > 20

            async def trained() -> bool:
                return (await client.post("/train")).status == 200

            await wait_until_async(trained, "a fit after all that", timeout_s=120)
            await until_drained(store)
            assert (await verify(store, on_cluster, lambda _line: None)).count == 0
            for user in {user for user, _ in acknowledged}:
                body = (await client.get(f"/users/{user}/ratings")).json
                found = {row["item_id"] for row in body["ratings"]}
                assert {item for of, item in acknowledged if of == user} <= found
        finally:
            for child in trainers:
                child.end(signal.SIGTERM)


async def test_while_a_server_is_away_the_users_of_the_others_are_rated_as_ever(
    cluster: ClusterSet, on_cluster: TrainerSettings
) -> None:
    async with serving(on_cluster.store) as (client, _), opened(on_cluster.store) as store:
        async with running_trainer(on_cluster):
            assert (await client.post("/ratings", ratings(60))).status == 200
            number = await fitted(store)

        async def served() -> bool:
            return bool((await client.get("/predict?user_id=u0&item_id=i1")).json["generation"] == number)

        await wait_until_async(served, "the worker serves the fit")
        home = cluster.owner(slot_of(store.keys.live))
        owner_of = {f"u{k}": cluster.owner(slot_of(store.keys.user(1, b"u%d" % k))) for k in range(60)}
        away = next(each for each in cluster.primaries if each is not home)
        paths = {user: f"/predict?user_id={user}&item_id=i1" for user in owner_of}
        before = {user: (await client.get(path)).json for user, path in paths.items()}
        away.kill()
        try:
            # All at once: those of one turn of the event loop are looked up together.
            for _ in range(5):
                await asyncio.sleep(0.3)
                replies = await asyncio.gather(*[client.get(path) for path in paths.values()])
                for user, reply in zip(paths, replies, strict=True):
                    if owner_of[user] is not away:
                        assert reply.json == before[user], user
                    else:
                        assert reply.status == 503 or reply.json.get("degraded") or reply.json == before[user]
        finally:
            away.start()
            await asyncio.to_thread(cluster.until_whole)


async def test_the_archive_of_one_server_is_restored_to_a_cluster(
    cluster: ClusterSet, on_cluster: TrainerSettings, own_server: StoreServer, tmp_path: Path
) -> None:
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=5.0)
    before = await archive_ratings(trainer_settings(at, tmp_path / "old", lease_ttl_s=2.0))
    async with running_trainer(on_cluster):
        await restored(on_cluster, tmp_path / "old")
    assert await now_held(on_cluster) == before


async def rate_on(client: Client, acknowledged: set[tuple[str, str]]) -> None:
    """Rate without a pause, whatever is answered."""
    count = 0
    while True:
        count += 1
        user, item = f"more{count % 20}", f"i{count // 20 % 24}"
        row = {"user_id": user, "item_id": item, "rating": 1 + count % 5}
        if (await client.post("/ratings", row)).status == 200:
            acknowledged.add((user, item))
        await asyncio.sleep(0.01)


async def test_another_process_sees_at_once_what_one_has_written(
    cluster: ClusterSet, on_cluster: TrainerSettings
) -> None:
    async with opened(on_cluster.store) as one, opened(on_cluster.store) as other:
        for k in range(50):
            await one.ratings.append([rating(f"u{k}", f"i{k}", 2.0)])
            assert (await other.users.history(1, f"u{k}".encode()))[0] == 1
