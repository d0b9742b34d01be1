"""The folder of an embedded cluster: what it is refused for, and which ports its servers get."""

import socket
import stat
from pathlib import Path

import pytest

from foldin.cluster.embedded import EmbeddedCluster, refuse_other
from processes.errors import CannotStartError


def started(directory: Path) -> list[int]:
    """Prepare a start of three servers with a replica each; the ports."""
    directory.mkdir(exist_ok=True)
    cluster = EmbeddedCluster(directory, 3, {})
    hosts = cluster.settings["FOLDIN_REDIS_URL"].partition("@")[2].split(",")
    assert len(cluster.specs) == len(hosts) == 6
    return [int(host.partition(":")[2]) for host in hosts]


def test_a_folder_stays_what_it_is(tmp_path: Path) -> None:
    refuse_other(tmp_path, None, "foldin")
    refuse_other(tmp_path, 3, "foldin")
    (tmp_path / "store/appendonlydir").mkdir(parents=True)
    refuse_other(tmp_path, None, "foldin")
    with pytest.raises(
        CannotStartError, match=r"holds one server, not a cluster of 3: start it without"
    ) as exc:
        refuse_other(tmp_path, 3, "other")
    # What to do, as it is typed.
    assert "`foldin up --cluster 3 --no-play --data NEW`" in str(exc.value)
    assert f"`foldin restore {tmp_path}/archive/other --data NEW`" in str(exc.value)


def test_a_description_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    started(tmp_path / "store")
    refuse_other(tmp_path, 3, "foldin")
    path = tmp_path / "store/cluster.json"
    path.write_text("{")
    with pytest.raises(CannotStartError, match="cannot be read"):
        refuse_other(tmp_path, 3, "foldin")


def test_servers_keep_their_ports_but_for_one_that_is_taken_or_whose_server_has_lost_its_data(
    tmp_path: Path,
) -> None:
    first = started(tmp_path)
    for number in range(6):
        (tmp_path / f"server-{number + 1}/nodes.conf").touch()
    assert started(tmp_path) == first
    (tmp_path / "server-2/nodes.conf").unlink()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The second port of the fifth.
        other.bind(("127.0.0.1", first[4] + 10_000))
        other.listen()
        again = started(tmp_path)
    assert [a == b for a, b in zip(first, again, strict=True)] == [True, False, True, True, False, True]
    # The replica of the second would find it there, and copy that it has nothing.
    assert not {again[1], again[4]} & set(first)
    assert all(port + 10_000 < 32_768 for port in again)


def test_the_password_stays_and_only_this_user_reads_it(tmp_path: Path) -> None:
    started(tmp_path)
    password = (tmp_path / "password").read_text()
    started(tmp_path)
    assert (tmp_path / "password").read_text() == password
    config = tmp_path / "server-1/valkey.conf"
    assert f"requirepass {password}\n" in config.read_text()
    for path in (tmp_path / "password", config):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
