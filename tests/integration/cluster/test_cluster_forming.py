"""Forming a cluster of real servers, from whatever an attempt before has left, or a loss."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from featurestore.cluster.slots import slot_of
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.cluster.__main__ import servers_of
from foldin.cluster.forming import command, form, meet, myself, share, until
from processes.errors import CannotStartError
from processes.probes import unused_cluster_port
from tests.support.factories import publish_for_ann
from tests.support.secrets import make_secrets
from tests.support.servers import KIND, ServerKind, StoreServer
from torture.cluster_set import ClusterSet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PRIMARIES = 3


@pytest.fixture
def servers(store_kind: ServerKind, tmp_path: Path) -> Iterator[ClusterSet]:
    """Six that answer, and are no cluster yet."""
    made = ClusterSet(store_kind, tmp_path, PRIMARIES, replicas=True)
    try:
        for server in made.servers:
            server.start()
        yield made
    finally:
        made.kill()


def form_again(servers: ClusterSet) -> list[Redis]:
    clients = [server.client for server in servers.servers]
    form(clients, PRIMARIES)
    return clients


def test_a_cluster_is_formed_from_a_half_formed_one_and_survives_what_can_be_survived(
    servers: ClusterSet,
) -> None:
    clients = [server.client for server in servers.servers]
    # An attempt that was killed: some slots are given, some servers have met.
    command(clients[1], "CLUSTER", "ADDSLOTSRANGE", *share(1, PRIMARIES))
    meet(clients[4], clients[0])
    form(clients, PRIMARIES)
    servers.until_whole()
    names = {myself(each).name for each in clients[:PRIMARIES]}
    assert {myself(each).primary for each in clients[PRIMARIES:]} == names
    # One of each primary among them.
    for key in "abcdefgh":
        owner = servers.owner(slot_of(key.encode()))
        owner.client.set(key, "1")
        assert owner.client.wait(1, 10_000) == 1
    owner = servers.owner(slot_of(b"a"))

    # One that is down, and has no slots, keeps it from nothing.
    down = next(each for each in servers.servers if not myself(each.client).slots)
    down.kill()
    at = StoreSettings(url=servers.url, timeout_s=0.5)
    assert form(servers_of(at), PRIMARIES, 0.5) == [f"127.0.0.1:{down.port}"]
    servers.primaries[0].signal(signal.SIGSTOP)
    with pytest.raises(
        TimeoutError, match=f"not 127.0.0.1:{servers.primaries[0].port}, 127.0.0.1:{down.port}"
    ):
        form(servers_of(at), PRIMARIES, 0.5)
    servers.primaries[0].signal(signal.SIGCONT)
    down.start()
    servers.until_whole()

    # Most of the primaries lose all, that one among them: no vote is possible.
    for server in [owner, next(each for each in servers.primaries if each is not owner)]:
        servers.lose(server)
    clients = form_again(servers)
    servers.until_whole()
    taker = servers.owner(slot_of(b"a"))
    assert taker.client.get("a") == "1"
    # Again it changes nothing.
    before = [(each.name, each.slots, each.primary) for each in map(myself, clients)]
    form_again(servers)
    assert [(each.name, each.slots, each.primary) for each in map(myself, clients)] == before

    # A pair is gone: what it had must not seem to be there.
    name = myself(taker.client).name
    for server in [taker, *(each for each in servers.servers if myself(each.client).primary == name)]:
        servers.lose(server)
    with pytest.raises(CannotStartError, match=r"slots [\d, -]+ of the cluster have no server.*restore"):
        form_again(servers)


def test_two_clusters_are_not_made_one(servers: ClusterSet) -> None:
    clients = [server.client for server in servers.servers]
    for part in (clients[:3], clients[3:]):
        form(part, PRIMARIES)
    with pytest.raises(CannotStartError, match="servers of two clusters"):
        form(clients, PRIMARIES)


async def test_users_of_least_rights_are_enough_and_the_one_that_forms_reads_nothing(tmp_path: Path) -> None:
    acl, password = make_secrets(tmp_path, "acl", cluster=True)
    assert (acl / "replica").read_text() in (acl / "replication.conf").read_text()
    options = (
        *("--cluster-enabled", "yes", "--aclfile", str(acl / "users.acl")),
        *("--include", str(acl / "replication.conf"), "--repl-diskless-sync-delay", "0"),
    )

    def logged_in(port: int, user: str, file: Path) -> Any:
        return Redis(port=port, username=user, password=file.read_text(), protocol=2)

    with ExitStack() as running:
        ports = []
        for number in range(4):
            (folder := tmp_path / f"s{number}").mkdir()
            server = StoreServer(KIND, folder, *options)
            server.port = unused_cluster_port()
            running.callback(server.kill)
            server.start()
            ports.append(server.port)
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        at = StoreSettings(url=f"redis+cluster://cluster@{hosts}", password_file=tmp_path / "cluster/redis")
        await asyncio.to_thread(form, servers_of(at), PRIMARIES)
        admins = [logged_in(port, "admin", acl / "admin") for port in ports]
        # As node.sh does where a server has data; none gets in before.
        assert all(admin.info("replication")["connected_slaves"] == 0 for admin in admins)
        for admin in admins:
            admin.execute_command("ACL", "SETUSER", "replica", "on")
        follows = lambda: any(admin.info("replication")["connected_slaves"] for admin in admins)  # noqa: E731
        await asyncio.to_thread(until, follows, "the replica has logged in")
        for admin in admins:
            admin.acl_log_reset()
        url = f"redis+cluster://foldin@{hosts}"
        settings = StoreSettings(url=url, password_file=password / "redis", namespace="acl", partitions=8)
        store = await Store.open(settings)
        await publish_for_ann(store, {"item-0": 5.0})
        await store.epochs.begin()
        assert (await store.ratings.forget(b"ann")).ratings == 1
        await store.close()
        assert [admin.acl_log() for admin in admins] == [[]] * 4
        forming = logged_in(ports[0], "cluster", tmp_path / "cluster/redis")
        for command in ("GET acl:config", "ACL LIST", "CONFIG GET *", "CLUSTER RESET", "FLUSHALL"):
            with pytest.raises(NoPermissionError):
                forming.execute_command(*command.split())
