"""Fixtures for all tests. Stores are real ones: each pytest worker starts its own, each test has a namespace
of its own in it.
"""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

# As services and fits have it, before a library reads it: where each test worker has BLAS threads for all
# cores, they wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.torture.cluster_set import ClusterSet
from tests.support.servers import KINDS, ServerKind, StoreServer, running_server

CLUSTER = "-cluster"
# All that share a store may have a cluster besides, which takes half as long again.
SHARED_KINDS = (
    *KINDS,
    *(f"{kind}{CLUSTER}" for kind in KINDS if os.environ.get("FOLDIN_TEST_CLUSTERS") == "1"),
)
# Each of these starts whole stacks: one worker runs them, one after the other, so that none starves another.
WHOLE_STACKS = (
    "tests/browser/test_first_run.py",
    "tests/containers/",
    "tests/fault/test_alerts_of_restarts.py",
    "tests/fault/test_campaigns.py",
    "tests/fault/test_torture.py",
    "tests/fault/test_failover.py",
    "tests/integration/foldin/test_foldin_up.py",
    "tests/integration/foldin/test_progress_bars.py",
    "tests/integration/test_readme_examples.py",
    "tests/upgrade/test_rolling.py",
)


# Not by `--dist loadgroup`: it marks a test by writing an attribute that pytest 9.2 does not read.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests one by one to whichever worker is free, but all of `WHOLE_STACKS` to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "whole stacks" if nodeid.startswith(WHOLE_STACKS) else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Servers"]:
    servers = Servers(tmp_path_factory)
    yield servers
    servers.stop()


def _kind(name: str) -> ServerKind:
    return "redis" if name.startswith("redis") else "valkey"


class Servers:
    """The servers of a session, each started when it is first wanted."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._running: dict[str, StoreServer | ClusterSet] = {}

    def get(self, kind: str) -> StoreServer | ClusterSet:
        """The running server of a kind, or a cluster of servers of it."""
        if kind not in self._running:
            folder = self._folders.mktemp(kind)
            server: StoreServer | ClusterSet
            if kind.endswith(CLUSTER):
                server = ClusterSet(_kind(kind), folder, 3, replicas=False)
            else:
                server = StoreServer(_kind(kind), folder)
            server.start()
            self._running[kind] = server
        return self._running[kind]

    def stop(self) -> None:
        """Stop all."""
        for server in self._running.values():
            server.kill()


@pytest.fixture(params=SHARED_KINDS)
def store_server(request: pytest.FixtureRequest, _servers: Servers) -> StoreServer | ClusterSet:
    """A running store, once Redis and once Valkey, shared by the tests of this worker: do not stop or flush
    it.
    """
    return _servers.get(request.param)


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreServer]:
    """A running store, once Redis and once Valkey, of this test alone: stop, kill and flush it at will."""
    with running_server(request.param, tmp_path) as server:
        yield server


@pytest.fixture
def store_settings(store_server: StoreServer | ClusterSet) -> StoreSettings:
    """Settings with a namespace that no other test uses."""
    return StoreSettings(
        url=store_server.url,
        namespace=f"t-{uuid.uuid4().hex[:12]}",
        partitions=4,
        # Decided, as that of a store that has been in use.
        scale="1:5",
        timeout_s=5.0,
    )


@pytest.fixture
async def store(store_settings: StoreSettings) -> AsyncIterator[Store]:
    """An open store in a namespace of its own."""
    opened = await Store.open(store_settings)
    yield opened
    await opened.close()
