"""Forming a cluster of real servers, from whatever an attempt before has left, or a loss."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from featurestore.cluster.slots import slot_of
from featurestore.settings import StoreSettings
from foldin.cluster.__main__ import servers_of
from foldin.cluster.forming import command, form, meet, myself, share
from processes.errors import CannotStartError
from tests.support.servers import ServerKind
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
