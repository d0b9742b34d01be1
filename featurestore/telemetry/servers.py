"""How the servers of the store are, for those who watch it. Invariant: one that is away keeps nothing from
being told of the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from featurestore.client import Client
from featurestore.cluster.slots import SLOTS


class StoreReplica(msgspec.Struct):
    """A replica, as its primary sees it. `behind_bytes`: of what the primary wrote; `silent_s`: since when it
    has said nothing.
    """

    address: str
    online: bool
    behind_bytes: int
    silent_s: int = 0


class StoreServer(msgspec.Struct):
    """A server that takes writes. `slots`: how many it has, 0 where the store is no cluster; `limit_bytes`:
    of its memory, 0 for none. Of one that is away, which does not `answer`, the rest is not known.
    """

    address: str
    slots: int = 0
    answers: bool = True
    used_bytes: int = 0
    limit_bytes: int = 0
    replicas: list[StoreReplica] = []


async def look_at_servers(client: Client) -> list[StoreServer]:
    """Ask each server once: less than a millisecond of it, however much it holds. Raises `StoreUnavailable`
    where the store is one server, which is away.
    """
    told = await client.told_by_each(["INFO", "memory"], ["INFO", "replication"])
    return [
        StoreServer(address, slots, answers=False) if replies is None else _read(address, slots, *replies)
        for address, slots, replies in told
    ]


def uncovered(servers: Sequence[StoreServer]) -> int:
    """Return how many slots of a cluster no server answers for; 0 where the store is none."""
    if not any(each.slots for each in servers):
        return 0
    return SLOTS - sum(each.slots for each in servers if each.answers)


def skew(servers: Sequence[StoreServer]) -> float:
    """Return the memory of the fullest server over the mean, of those that answer; 1 for none."""
    used = [each.used_bytes for each in servers if each.answers]
    return max(used) * len(used) / sum(used) if any(used) else 1.0


def _read(address: str, slots: int, memory: Mapping[str, Any], replication: Mapping[str, Any]) -> StoreServer:
    written = int(replication.get("master_repl_offset", 0))
    return StoreServer(
        address,
        slots,
        used_bytes=int(memory["used_memory"]),
        limit_bytes=int(memory.get("maxmemory", 0)),
        replicas=[
            StoreReplica(
                f"{each['ip']}:{each['port']}",
                each.get("state") == "online",
                max(0, written - int(each.get("offset", 0))),
                int(each.get("lag", 0)),
            )
            for name, each in sorted(replication.items())
            if name.startswith("slave") and isinstance(each, Mapping)
        ],
    )
