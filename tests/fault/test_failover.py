"""A replica is promoted: nothing acknowledged is lost under `replicated`."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.confirmation import Durability
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.settings import StoreSettings
from tests.support.factories import opened, rating
from tests.support.servers import ServerKind
from tests.support.waiting import wait_until_async
from torture.replica_set import ReplicaSet, replica_set

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(240)]


@pytest.fixture
def servers(store_kind: ServerKind, tmp_path: Path) -> Iterator[ReplicaSet]:
    with replica_set(store_kind, tmp_path) as running:
        yield running


@pytest.mark.parametrize("durability", ["replicated", "store"])
async def test_a_primary_that_is_cut_off_from_its_replicas_acknowledges_nothing(
    servers: ReplicaSet, durability: Durability
) -> None:
    """The control is `store`: by the same steps it loses what it has acknowledged."""
    primary, replicas = servers.primary(), servers.replicas()
    settings = StoreSettings(url=servers.url, partitions=4, timeout_s=10.0, durability=durability)
    async with opened(settings) as store:
        await store.ratings.append([rating("ann", "before")])
        for replica in replicas:
            replica.signal(signal.SIGSTOP)
        # Without this the system would hand on to them what the primary has sent before its end.
        primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]  # redis-py
        acknowledged = 0
        for n in range(2):
            with contextlib.suppress(StoreUnavailable):
                await store.ratings.append([rating("ann", f"cut-off-{n}")])
                acknowledged += 1
        primary.kill()
        for replica in replicas:
            replica.signal(signal.SIGCONT)

        async def reads() -> list[str]:
            await store.items(1).refresh()
            _, history = await store.users.history(1, b"ann")
            return [store.items(1).id(row) for row in history.item_row]

        items = await wait_until_async(reads, "a replica answers", unless=(StoreError,))
        assert items == ["before"]
        assert acknowledged == (2 if durability == "store" else 0)
