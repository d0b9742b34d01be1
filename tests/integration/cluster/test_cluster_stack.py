"""A service and a trainer on a store that is a cluster: all that they do on one server, and what is special
there.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from foldin.recovery.verifying import verify
from tests.support.recovering import opened
from tests.support.servers import ServerKind
from tests.support.serving import serving
from tests.support.trainers import running_trainer, trainer_settings, until_drained
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

        await until_drained(store)
        found = await verify(store, on_cluster, lambda _line: None)
        assert found.count == 0, found.differences
