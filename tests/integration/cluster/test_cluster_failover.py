"""A replica that has not copied its primary yet does not take its place, and one that has does: of servers as
`foldin up --cluster` and the containers start them.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from featurestore.cluster.slots import slot_of
from foldin.cluster import embedded
from foldin.cluster.embedded import MAY, MAY_NOT, EmbeddedCluster, failover_file
from foldin.cluster.failover import allow_failover
from foldin.cluster.forming import form, myself, until, view_of
from processes.blocking import BlockingChild

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NAME = "cluster-replica-no-failover"
KEYS = 40


class Embedded:
    """The servers of a folder, while they run. `servers`: a client of each."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        cluster = EmbeddedCluster(folder, 3, {})
        ports = json.loads((folder / "cluster.json").read_text())["ports"]
        password = (folder / "password").read_text()
        self.servers = [Redis(port=port, password=password, decode_responses=True) for port in ports]
        self._specs, self._folder, self._running = cluster.specs, folder, running
        self.children: dict[int, BlockingChild] = {}
        for number in range(6):
            self.start(number)

    def start(self, number: int) -> None:
        spec = self._specs[number]
        child = BlockingChild(spec.command, self._folder / f"{number}.log", environment=spec.environment)
        self.children[number] = self._running.enter_context(child)
        assert spec.probe is not None
        child.wait_ready(spec.probe, 60)

    def kill(self, number: int) -> None:
        self.children[number].end()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Embedded]:
    with ExitStack() as running:
        yield Embedded(folder, running)


def is_given_up(by: Redis, name: str) -> bool:
    return "fail" in view_of(by)[name].flags


def is_primary(server: Redis) -> bool:
    return bool(myself(server).slots)


def copied(server: Redis) -> bool:
    return bool(server.info("replication").get("master_link_status") == "up")


def test_a_replica_takes_over_as_soon_as_it_has_once_had_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "NODE_TIMEOUT_MS", 1_500)
    # The server takes names of its configuration for patterns.
    (folder := tmp_path / "a[b] c").mkdir()
    with started(folder) as first:
        form(first.servers, 3)
        allow_failover(folder, first.servers)
        assert {failover_file(folder, number).read_text() for number in range(6)} == {MAY}
        name = myself(first.servers[0]).name
        replica = next(number for number in range(3, 6) if myself(first.servers[number]).primary == name)
        owned = [key for key in map(str, range(1_000)) if slot_of(key.encode()) < 16_384 // 3][:KEYS]
        for key in owned:
            first.servers[0].set(key, "x")
    shutil.rmtree(folder / f"server-{replica + 1}")
    with started(folder) as again:
        primary, empty = again.servers[0], again.servers[replica]
        assert [failover_file(folder, number).read_text() for number in (0, replica)] == [MAY, MAY_NOT]
        assert primary.config_get(NAME)[NAME] == "no"
        # So many microseconds for each key of the copy.
        primary.config_set("rdb-key-save-delay", 10_000_000)
        form(again.servers, 3)
        until(lambda: primary.info("replication")["connected_slaves"] == 1, "the copy has begun")
        again.kill(0)
        until(lambda: is_given_up(empty, name), "the primary is given up")
        # Half a second, and a random one, it would wait.
        with pytest.raises(TimeoutError):
            until(lambda: is_primary(empty), "it takes over", 3.0)
        again.start(0)
        until(lambda: copied(empty), "it has all that its primary has")
        assert primary.dbsize() == empty.dbsize() == KEYS

        allow_failover(folder, again.servers)
        # As a start by the supervisor finds it.
        again.kill(replica)
        again.start(replica)
        until(lambda: copied(empty), "it has all again")
        again.kill(0)
        until(lambda: is_primary(empty), "it takes over")
        assert empty.dbsize() == KEYS
