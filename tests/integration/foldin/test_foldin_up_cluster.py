"""`foldin up --cluster` for real: its servers end, are frozen, and lose what they had; nothing that was
acknowledged is gone.
"""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from foldin.cluster.forming import myself
from tests.support.stacks import Stack, foldin, processes, stack
from tests.support.waiting import wait_until

# A whole stack of a dozen processes, on busy cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PRIMARIES = 3


def servers(data: Path) -> list[Redis]:
    password = (data / "store/password").read_text()
    ports = json.loads((data / "store/cluster.json").read_text())["ports"]
    return [
        Redis("127.0.0.1", port, password=password, decode_responses=True, socket_timeout=1) for port in ports
    ]


def soon(condition: Callable[[], bool], what: str) -> None:
    # The trainer may still be starting.
    wait_until(condition, what, unless=(RedisError, OSError))


def rate(running: Stack, user: str) -> None:
    rating = {"user_id": user, "item_id": "12", "rating": 5}
    soon(lambda: running.call("POST", "/ratings", rating)["accepted"] == 1, f"a rating of {user} is taken")


def test_a_cluster_goes_on_and_comes_back_whatever_its_servers_meet(tmp_path: Path) -> None:
    data = tmp_path / "data"
    users = [f"u{number}" for number in range(30)]
    options = ("--cluster", str(PRIMARIES), "--no-play")
    with stack(data, *options) as running:
        for user in users:
            rate(running, user)
        nodes = servers(data)
        old, taker = nodes[0], next(each for each in nodes if myself(each).primary == myself(nodes[0]).name)
        pid = int(old.info("server")["process_id"])
        # Silent, it is replaced; killed, it is started again, and follows.
        os.kill(pid, signal.SIGSTOP)
        soon(lambda: bool(myself(taker).slots), "its replica takes over")
        os.kill(pid, signal.SIGKILL)
        soon(lambda: myself(old).primary == myself(taker).name, "it comes back as a replica")
        rate(running, "later")
        soon(lambda: old.info("replication")["master_link_status"] == "up", "it has what the other one has")
        # Of this one nothing will be left, and of another one the port has another program.
        lost = nodes.index(taker)
        running.process.end(how=signal.SIGKILL)
    wait_until(lambda: not processes(data), "the parts have ended with their supervisor")
    shutil.rmtree(data / f"store/server-{lost + 1}")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", json.loads((data / "store/cluster.json").read_text())["ports"][1]))
        other.listen()
        with stack(data, *options) as again:
            for user in (*users, "later"):
                assert len(again.call("GET", f"/users/{user}/ratings")["ratings"]) == 1, user
            rate(again, "last")
            owners = [myself(each) for each in servers(data)]
            assert sorted(bool(each.slots) for each in owners) == [False] * PRIMARIES + [True] * PRIMARIES
            assert not owners[lost].slots
            assert {each.primary for each in owners if not each.slots} == {
                each.name for each in owners if each.slots
            }
            found = wait_until(
                lambda: again.call("GET", "/history")["servers"],
                "the servers are told",
                lambda told: [len(each["replicas"]) for each in told] == [1] * PRIMARIES,
                unless=(OSError,),
            )
            assert sum(each["slots"] for each in found) == 16_384
            assert again.interrupt() == 0
    for other_options, words in (
        ((), "holds a cluster of 3, not one server: start it with --cluster 3, or move to one server by"),
        (("--cluster", "4"), "holds a cluster of 3, not a cluster of 4: start it with --cluster 3"),
    ):
        refused = foldin("up", "--data", data, *other_options)
        assert refused.returncode == 2
        assert words in refused.stderr
