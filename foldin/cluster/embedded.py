"""The embedded cluster of a local stack: servers with slots, a replica of each, all on this machine.

Invariant: a server that was there before has its data, whichever port it has today; one that has lost its
folder begins empty, and `forming` gives it what it is to have.
"""

import glob
import json
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from foldin.store import EmbeddedServer
from processes.child import ChildSpec
from processes.errors import CannotStartError
from processes.probes import is_unused_cluster_port, redis_pong, unused_port

# Of `cluster.json`, which says how many servers there are, and what their ports were.
CLUSTER_FORMAT = 1
# As long as a server that is gone is waited for: one that was killed is back before, with all that it had.
NODE_TIMEOUT_MS = 5_000
# The line of `failover_file`.
MAY, MAY_NOT = "cluster-replica-no-failover no\n", "cluster-replica-no-failover yes\n"

LISTENS = """\
port {port}
bind 127.0.0.1
requirepass {password}
masterauth {password}
cluster-enabled yes
cluster-node-timeout {timeout_ms}
# A server alone serves its slots, whatever becomes of the others.
cluster-require-full-coverage no
# After all have been away, too, a replica may take over that was whole once: by `replicated` it has whatever
# was answered. One that was not has nothing, and its primary would come back to copy that.
cluster-replica-validity-factor 0
include "{failover}"
repl-diskless-sync-delay 0
"""


class EmbeddedCluster:
    """One start of a cluster in a folder. `specs`: its servers; `settings`: how they are reached;
    `environment`: of the process that makes them one when they answer (`python -m foldin.cluster`).
    """

    def __init__(self, directory: Path, primaries: int, inherited: Mapping[str, str]) -> None:
        password_file = directory / "password"
        if not password_file.exists():
            password_file.touch(mode=0o600)
        # Other users of this machine reach the ports.
        password = password_file.read_text("utf-8") or secrets.token_hex(32)
        password_file.write_text(password, "utf-8")
        count = 2 * primaries
        ports = _ports(directory, count)
        _write(directory, primaries, ports)
        self.specs = [self._server(directory, number, ports, password, inherited) for number in range(count)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.settings = {
            "FOLDIN_REDIS_URL": f"redis+cluster://default@{hosts}",
            "FOLDIN_REDIS_PASSWORD_FILE": str(password_file),
            # A replica takes over with what it has.
            "FOLDIN_DURABILITY": inherited.get("FOLDIN_DURABILITY") or "replicated",
        }
        self.environment = {**inherited, **self.settings}

    @staticmethod
    def _server(
        directory: Path, number: int, ports: list[int], password: str, environment: Mapping[str, str]
    ) -> ChildSpec:
        (folder := _folder(directory, number)).mkdir(mode=0o700, exist_ok=True)
        port, failover = ports[number], failover_file(directory, number)
        # It goes with the data that it was written for.
        has_data = (folder / "nodes.conf").exists() and (folder / "appendonlydir").is_dir()
        if not (has_data and failover.exists() and failover.read_text("utf-8") == MAY):
            failover.write_text(MAY_NOT, "utf-8")
        # A pattern that matches nothing is passed over, without a word.
        included = glob.escape(str(failover)).replace("\\", "\\\\").replace('"', '\\"')
        listens = LISTENS.format(port=port, password=password, timeout_ms=NODE_TIMEOUT_MS, failover=included)
        probe = partial(redis_pong, ("127.0.0.1", port), password)
        return EmbeddedServer(f"store-{number + 1}", folder, environment, listens, probe).spec


def failover_file(directory: Path, number: int) -> Path:
    """Return the file that says whether a server may take its primary's place: its configuration has it."""
    return _folder(directory, number) / "failover.conf"


def _ports(directory: Path, count: int) -> list[int]:
    """Return a port for each server: that of the last start, unless another program has it by now.

    A server that has lost its data gets one that none had: its replica, which looks for it at the last one,
    would copy that it has nothing.
    """
    before = _stored(directory).get("ports", [0] * count)
    ports: list[int] = []
    for number, last in enumerate(before):
        has_data = (_folder(directory, number) / "nodes.conf").exists()
        port = last if has_data and last not in ports and is_unused_cluster_port(last) else 0
        try:
            while port == 0 or port in ports:
                port = unused_port()
                port = 0 if port in before else port
        except OSError as exc:
            raise CannotStartError(
                f"no ports of 127.0.0.1 are free for the {count} servers of the cluster: stop what has them"
            ) from exc
        ports.append(port)
    return ports


def _folder(directory: Path, number: int) -> Path:
    return directory / f"server-{number + 1}"


def refuse_other(data: Path, primaries: int | None, namespace: str) -> None:
    """Raise CannotStartError where the store of a data directory is not one server, for None, or a cluster of
    so many primaries.
    """
    there = _stored(data / "store").get("primaries")
    if there is None and not (data / "store" / "appendonlydir").is_dir():
        return
    if there != primaries:
        held, wanted = _told(there), _told(primaries)
        option = "without --cluster" if there is None else f"with --cluster {there}"
        flag = "" if primaries is None else f" --cluster {primaries}"
        raise CannotStartError(
            f"{data} holds {held}, not {wanted}: start it {option}, or move to {wanted} by `foldin up{flag} "
            f"--no-play --data NEW` and then `foldin restore {data / 'archive' / namespace} --data NEW`"
        )


def _told(primaries: int | None) -> str:
    return "one server" if primaries is None else f"a cluster of {primaries}"


def _stored(directory: Path) -> dict[str, Any]:
    path = directory / "cluster.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        other = content["format"] != CLUSTER_FORMAT
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CannotStartError(
            f"{path} cannot be read ({exc}): write format, primaries and ports of the servers into it again"
        ) from exc
    if other:
        raise CannotStartError(
            f"{path} has format {content['format']}, this version reads {CLUSTER_FORMAT}: use the "
            "version that wrote it"
        )
    return content


def _write(directory: Path, primaries: int, ports: list[int]) -> None:
    content = {"format": CLUSTER_FORMAT, "primaries": primaries, "ports": ports}
    beside = directory / "cluster.new"
    beside.write_text(json.dumps(content) + "\n", "utf-8")
    beside.replace(directory / "cluster.json")
