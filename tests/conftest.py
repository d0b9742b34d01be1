"""Fixtures for all tests. Stores are real ones: each pytest worker starts its own, each test has a namespace
of its own in it. `--store` says which kind it is; `slow` tests are run by `make test-all` alone.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

# As services and fits have it, before a library reads it: where each test worker has BLAS threads for all
# cores, they wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

from featurestore.settings import StoreSettings
from featurestore.store import Store
from featurestore.users.compiled import load_fold_in
from tests.support.factories import opened
from tests.support.fits import fit_in_thread
from tests.support.servers import KIND, KINDS, ServerKind, StoreServer, own_namespace, running_server
from torture.cluster_set import ClusterSet

CLUSTER = "valkey-cluster"
# What `--store both` runs on both kinds: the commands and server-side functions of the store themselves.
ON_BOTH = ("tests/integration/featurestore/", "tests/integration/cluster/", "tests/fault/test_failover.py")
# A store syncs each write, which takes no time in memory. Below 4 GB of room the tests stay on the disk.
MEMORY_FOLDER = Path("/dev/shm")
LEAST_ROOM_BYTES = 4 << 30
# Each of these starts whole stacks: one worker runs them, one after the other, so that none starves another.
WHOLE_STACKS = (
    "tests/containers/",
    "tests/fault/test_torture.py",
    "tests/fault/test_failover.py",
    "tests/integration/foldin/test_foldin_commands.py",
    "tests/integration/foldin/test_foldin_up.py",
    "tests/integration/test_documents.py",
)


ServerOf = Callable[[str], StoreServer | ClusterSet]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        choices=(*KINDS, "both", CLUSTER),
        default=KIND,
        help="the store of the tests; both: Valkey, and Redis too where the store itself is tested",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Put files into memory where there is room; have Hypothesis draw the same in every run, but `wide`."""
    hypothesis.settings.register_profile("gate", derandomize=True, deadline=None, max_examples=30)
    hypothesis.settings.register_profile("wide", deadline=None, max_examples=1_000)
    hypothesis.settings.load_profile(config.getoption("--hypothesis-profile", default=None) or "gate")
    if MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > LEAST_ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_FOLDER))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `store_kind`, and with it every store, the kinds that `--store` asks for."""
    if "store_kind" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("store")
        if chosen == "both":
            kinds = KINDS if metafunc.definition.nodeid.startswith(ON_BOTH) else (KIND,)
        else:
            kinds = (chosen,)
        metafunc.parametrize("store_kind", kinds)


# Not by `--dist loadgroup`: it marks a test by writing an attribute that pytest 9.2 does not read.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests one by one to whichever worker is free, but all of `WHOLE_STACKS` to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return "whole stacks" if nodeid.startswith(WHOLE_STACKS) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _fits_in_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers of this process fit in it, but for tests of the marker `fit_process`."""
    if request.node.get_closest_marker("fit_process") is None:
        monkeypatch.setattr("trainer.fit_job.process.helper", fit_in_thread)


@pytest.fixture(autouse=True, scope="session")
def _heard_of_late() -> Iterator[None]:
    """Let no answer be marked for what a busy machine keeps waiting, in services of this process."""
    names = ["featurestore.users.records.FOLLOWED_S", "service.neighbours.FOLLOWED_S"]
    waiting = ("training", "routes.generations", "routes.experiments", "routes.administration")
    names += [f"service.{module}.SERVED_WITHIN_S" for module in waiting]
    names.append("service.routes.status._PROBE_TIMEOUT_S")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(name, 600.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _folds_in_one_way(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have the compiled fold-in before any service of this process: numpy's rows have other last digits."""
    asyncio.run(load_fold_in(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerOf]:
    """The running store of a kind."""
    running: dict[str, StoreServer | ClusterSet] = {}

    def get(kind: str) -> StoreServer | ClusterSet:
        if kind not in running:
            folder = tmp_path_factory.mktemp(kind)
            if kind == CLUSTER:
                running[kind] = ClusterSet(KIND, folder, 3, replicas=False)
            else:
                running[kind] = StoreServer("redis" if kind == "redis" else "valkey", folder)
            running[kind].start()
        return running[kind]

    yield get
    for server in running.values():
        server.kill()


@pytest.fixture
def store_server(store_kind: str, server_of: ServerOf) -> StoreServer | ClusterSet:
    """A running store, shared by the tests of this worker: do not stop or flush it."""
    return server_of(store_kind)


@pytest.fixture
def own_server(store_kind: ServerKind, tmp_path: Path) -> Iterator[StoreServer]:
    """A running store of this test alone: stop, kill and flush it at will."""
    with running_server(KIND if store_kind == CLUSTER else store_kind, tmp_path) as server:
        yield server


@pytest.fixture
def store_settings(store_server: StoreServer | ClusterSet) -> StoreSettings:
    return own_namespace(store_server.url)


@pytest.fixture
async def store(store_settings: StoreSettings) -> AsyncIterator[Store]:
    async with opened(store_settings) as store:
        yield store
