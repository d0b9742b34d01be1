"""How the processes of a deployment and the servers of its store are: a point of each process every few
seconds, so that a page shows all replicas, and what was before it was opened.

Invariant: bounded; no rating rests on it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from featurestore.client import Client
from featurestore.cluster.slots import SLOTS
from featurestore.keys import Keys

# Often enough for a picture of a quarter of an hour; a point costs the store 0.1 ms.
EVERY_S = 10.0
# A week of one worker, a day of seven: some 20 MB.
MOST_POINTS = 60_480
# What one step reads: a few milliseconds of the store.
READ_AT_ONCE = 2_000
_FIELD = b"p"
# Of the configuration of the store.
_BACKED_UP = b"backed_up"


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


class Point(msgspec.Struct, omit_defaults=True):
    """What a process did since its point before. Unknown fields of a later version are left out on reading.

    `at`: seconds since 1970. `failures`, `turned_away`: answers of 5xx, and of 401, 403 and 429; `mistakes`:
    unexpected exceptions. `latency`: answers by upper bound (`service.metrics.LATENCY_BOUNDS`).
    `squared_error`, `baseline`: sums over `errors` ratings that arrived, of the model and of what everybody
    would be told. From `generation` on: what the process is at that moment. `lag`, `store_bytes`: of the
    store, told by one process of a host; -1 by the others. `busy`: what a trainer is at; `failed`: why its
    last fit did not go live, `failed_at` (seconds since 1970), "" where it did. `wrong`: a sentence for each
    alert whose condition it finds in itself. `servers`: of the store, as a trainer has found them.
    """

    process: str
    host: str
    at: float
    seconds: float
    requests: int = 0
    failures: int = 0
    latency: list[int] = []
    predictions: int = 0
    ratings: int = 0
    errors: int = 0
    squared_error: float = 0.0
    baseline: float = 0.0
    generation: int = 0
    in_flight: int = 0
    resident_bytes: int = 0
    lag: int = -1
    store_bytes: int = -1
    busy: str = ""
    failed: str = ""
    failed_at: float = 0.0
    wrong: dict[str, str] = {}
    servers: list[StoreServer] = []
    turned_away: int = 0
    mistakes: int = 0


class Backup(msgspec.Struct):
    """What a backup has: `events` ratings and other events. `at`: when it ended, in seconds since 1970."""

    at: float
    events: int


class Telemetry:
    """Adds points and reads them, and notes backups. Every method may raise `StoreUnavailable`. A point that
    is added twice counts twice.
    """

    def __init__(self, keys: Keys, client: Client) -> None:
        self._key = keys.telemetry
        self._config = keys.config
        self._client = client

    async def add(self, point: Point) -> None:
        """Add a point; the oldest make room."""
        packed = msgspec.msgpack.encode(point)
        await self._client.xadd(self._key, {_FIELD: packed}, maxlen=MOST_POINTS, approximate=False)

    async def read(self, seconds: float) -> list[Point]:
        """Return the points of the last `seconds`, by the store's clock, in the order in which they came."""
        decode = msgspec.msgpack.Decoder(Point).decode
        now_s, _ = await self._client.time()
        found: list[Point] = []
        start = f"{int(1000 * max(0.0, now_s - seconds))}"
        while True:
            # redis-py does not know that without `decode_responses` all of it is bytes.
            entries: Any = await self._client.xrange(self._key, min=start, count=READ_AT_ONCE)
            for _, fields in entries:
                try:
                    found.append(decode(fields[_FIELD]))
                except (KeyError, msgspec.MsgspecError):
                    # What cannot be read is a gap in a picture.
                    continue
            if len(entries) < READ_AT_ONCE:
                return found
            start = f"({entries[-1][0].decode()}"

    async def note_backup(self, backup: Backup) -> None:
        """Take note of a backup that is whole."""
        await self._client.hset(self._config, mapping={_BACKED_UP: msgspec.json.encode(backup)})

    async def last_backup(self) -> Backup | None:
        """Return the last one that was noted, None for none."""
        text: Any = await self._client.hget(self._config, _BACKED_UP)
        # For people to read: what cannot be read is as good as none.
        with contextlib.suppress(msgspec.MsgspecError):
            return None if text is None else msgspec.json.decode(text, type=Backup)
        return None


async def look_at_servers(client: Client) -> list[StoreServer]:
    """Ask each server once: less than a millisecond of it, however much it holds. One that is away keeps
    nothing from being told of the others. Raises `StoreUnavailable` where the store is one server, which is
    away.
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
