"""A replica that has not copied its primary yet does not take its place, and one that has does: of servers as
`foldin up --cluster` and the containers start them.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
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
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[3]
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


CLI = """\
echo "$@" >>/etc/foldin/asked
case "$*" in
  "CLUSTER NODES") cat /etc/foldin/nodes ;;
  "INFO replication") cat /etc/foldin/link ;;
esac
"""


def node(folder: Path, nodes: str = "1 :0@0 myself,slave 2 0 0 0 connected") -> BlockingChild:
    """Run the script of a container, on folders of this machine, with servers that only say so. `nodes`: what
    one says of itself.
    """
    scripts = {
        "nodes": f"{nodes}\n",
        "cli.sh": CLI,
        "start.sh": 'echo "$@" >/etc/foldin/options; touch /data/nodes.conf; exec sleep 60',
        "node.sh": (ROOT / "deploy/redis/node.sh").read_text(),
    }
    for name, text in scripts.items():
        moved = re.sub("(?=/etc/foldin/|/data/)", str(folder), text)
        (folder / "etc/foldin" / name).write_text(moved)
    environment: Mapping[str, str] = {"PATH": os.environ["PATH"], "REDIS_PEERS": "a"}
    command = ["/bin/sh", str(folder / "etc/foldin/node.sh"), "redis-server"]
    return BlockingChild(command, folder / "log", environment=environment)


def test_a_container_says_so_for_as_long_as_there_is_the_data(tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    (scripts := tmp_path / "etc/foldin").mkdir(parents=True)
    (link := scripts / "link").write_text("master_link_status:down\n")
    said, asked = data / "failover.conf", scripts / "asked"
    with node(tmp_path):
        wait_until(lambda: asked.exists() and "INFO" in asked.read_text(), "it looks at the link")
        assert said.read_text() == MAY_NOT
        assert f"--include {said}" in (scripts / "options").read_text()
        link.write_text("master_link_status:up\n")
        wait_until(lambda: said.read_text() == MAY, "it may take over")
        assert f"CONFIG SET {MAY}" in asked.read_text()
    (data / "appendonlydir").mkdir()
    link.write_text("master_link_status:down\n")
    for gone, then in ((None, MAY), ("appendonlydir", MAY_NOT)):
        if gone:
            subprocess.run(["rm", "-r", data / gone], check=True)
        (scripts / "options").unlink()
        with node(tmp_path):
            wait_until((scripts / "options").exists, "it starts")
            assert said.read_text() == then


def test_a_container_whose_server_has_slots_lets_replicas_in(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (scripts := tmp_path / "etc/foldin").mkdir(parents=True)
    (scripts / "link").write_text("role:master\n")
    asked = scripts / "asked"
    # As a server says it that may not take over.
    with node(tmp_path, "1 10.0.0.1:6379@16379 myself,master,nofailover - 0 0 1 connected 0-5460"):
        wait_until(lambda: asked.exists() and "ACL SETUSER replica on" in asked.read_text(), "it does")
        wait_until(lambda: (tmp_path / "data/failover.conf").read_text() == MAY, "it may take over")
