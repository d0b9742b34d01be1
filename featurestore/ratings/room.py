"""What the leader says about room: while it says that there is none, services and imports take no ratings.

Invariant: what it said ends by itself soon after the leader does.
"""

from dataclasses import dataclass, replace
from math import inf

from featurestore.client import Client
from featurestore.errors import FullReason
from featurestore.generations.manifest import read_pointer
from featurestore.keys import Keys
from featurestore.leases import Lease

# The leader says it each second; one that pauses for a fit of the system's does not let ratings in.
SAID_FOR_S = 15.0


@dataclass(frozen=True, slots=True)
class Load:
    """The memory that the store uses, its limit (0: none), and its clock in seconds since 1970; of a cluster
    those of its fullest server. `run`: the name that each server has from its start to its end, 40
    hexadecimal digits.
    """

    used_bytes: int
    limit_bytes: int
    time: float
    run: str


class Room:
    """Both ends of what is said. Every method may raise `StoreUnavailable`."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def load(self) -> Load:
        """Return how full the store's memory is."""
        time, loads = await self._client.time(), list[Load]()
        seconds = time[0] + time[1] / 1e6
        for memory, server in await self._client.each(["INFO", "memory"], ["INFO", "server"]):
            # `maxmemory` is compared with what is left without buffers that the store does not count.
            used = int(memory["used_memory"]) - int(memory.get("mem_not_counted_for_evict", 0))
            loads.append(Load(used, int(memory["maxmemory"]), seconds, str(server["run_id"])))
        # The fullest of several: one without room refuses what it is given.
        fullest = max(loads, key=lambda load: (load.used_bytes / (load.limit_bytes or inf), load.used_bytes))
        return replace(fullest, run=" ".join(sorted(load.run for load in loads)))

    async def say(self, lease: Lease, reason: FullReason | None, now: float) -> None:
        """Say that ratings are to be refused for this reason from `now` on, by the store's clock, or not.

        Raises `LeaseLost`.
        """
        text = "" if reason is None else f"{reason}:{now + SAID_FOR_S:.0f}"
        args = [b"%d" % lease.fence, text.encode()]
        await self._client.call("say_full", ([self._keys.live], args))

    async def lacking(self) -> FullReason | None:
        """Return for which reason ratings are refused now."""
        pipe = self._client.pipeline()
        pipe.time()
        pipe.hgetall(self._keys.live)
        (seconds, microseconds), fields = await pipe.execute()
        return read_pointer(fields, self._keys.live).full_at(seconds + microseconds / 1e6)
