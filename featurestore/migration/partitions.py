"""What a partition has beside its users goes to partitions of another number. Invariant: the target goes on
where the streams of the source end, so that the archive, which knows these ends, is the target's as it was
the source's.

Nothing waits in a stream by then: it was archived before. A partition of the target that the source had too
goes on counting where that ended, and so does one that the namespace had in a store before; the others
begin. Whichever partition a user comes from, no event that follows has a time before those that there were.
"""

import asyncio
from math import gcd
from typing import Any

from featurestore.keys import partition_of
from featurestore.migration.errors import MigrationStopped
from featurestore.migration.placing import Filling, Placing, flat
from featurestore.ratings.stream import Progress
from featurestore.store import Store

# How often it is asked how far the trainer is.
_LOOK_S = 0.02
# Of partitions that a store does not have: where they ended in the one before. Among the counts of the first.
_ENDED = b"ended:%d"
# Members of one write: Lua's stack takes 8,000 values.
_PARTS = 2_000


async def until_archived(store: Store, epoch: int, within_s: float) -> int:
    """Return when nothing waits in the streams, and how many events they have had in all. Raises
    `MigrationStopped` where that takes longer.
    """
    end = asyncio.get_running_loop().time() + within_s
    while waiting := await waits(store, epoch):
        if asyncio.get_running_loop().time() > end:
            raise MigrationStopped(
                f"{waiting:,} events wait in the streams: no trainer archived them within {within_s:.0f} s"
            )
        await asyncio.sleep(_LOOK_S)
    return sum(each.last[1] for each in (await store.stream.progress(epoch)).values())


async def waits(store: Store, epoch: int) -> int:
    """Return how many events wait in the streams."""
    return sum(each.waiting for each in (await store.stream.progress(epoch)).values())


async def copy_partitions(source: Store, target: Store, placing: Placing, epoch: int) -> None:
    """Copy what there is beside users. Once nothing changes any more."""
    here, there = source.keys, target.keys
    counts, forgotten, active = await _read(source, epoch)
    progress = await source.stream.progress(epoch)
    fillings = counts_of(counts, progress, there.partitions, target.identity)
    common = gcd(here.partitions, there.partitions)
    calls = []
    for partition in range(there.partitions):
        # A digest does not tell the user, and so not which of these has that user: each that may has it.
        digests: dict[bytes, bytes] = {}
        for before in range(partition % common, here.partitions, common):
            digests.update(forgotten[before])
        given = any(
            counts[before].get(b"contexts") for before in range(partition % common, here.partitions, common)
        )
        fields = fillings[partition] | ({b"contexts": b"1"} if given else {})
        calls.append(
            [
                Filling(there.counts(epoch, partition), "hash", flat(fields.items())),
                *_in_pieces(there.forgotten(epoch, partition), "hash", flat(digests.items())),
                # The list has all who have any: each was put there with the attributes.
                Filling(there.attributes_list(partition), "zset", [b""], fresh=False),
                *_in_pieces(
                    there.active(epoch, partition),
                    "set",
                    [each for each in active if partition_of(each, there.partitions) == partition],
                ),
                # Last: what says that the partition takes ratings.
                Filling(there.epochs(partition), "string", [b"%d" % epoch]),
            ]
        )
    await placing.place(calls)


async def _read(store: Store, epoch: int) -> tuple[list[Any], list[Any], list[bytes]]:
    keys, pipe = store.keys, store.redis.pipeline()
    for partition in range(keys.partitions):
        pipe.hgetall(keys.counts(epoch, partition))
        pipe.hgetall(keys.forgotten(epoch, partition))
        pipe.smembers(keys.active(epoch, partition))
    replies = await pipe.execute()
    return replies[::3], replies[1::3], sorted(set().union(*replies[2::3]))


def counts_of(
    counts: list[Any], progress: dict[int, Progress], partitions: int, identity: str
) -> list[dict[bytes, bytes]]:
    """Return the counts of each partition of the target."""
    ended = {name: text for name, text in counts[0].items() if name.startswith(_ENDED.partition(b"%")[0])}
    ended |= {_ENDED % k: each[b"last"] for k, each in enumerate(counts) if b"last" in each}
    floor = max(int(each.get(b"floor", 0)) for each in counts)
    floor = max(floor, *(each.last[0] for each in progress.values()))
    found: list[dict[bytes, bytes]] = []
    for partition in range(partitions):
        fields = {b"floor": b"%d" % floor}
        if any(b"identity" in each for each in counts):
            fields[b"identity"] = identity.encode()
        if partition < len(counts):
            had = counts[partition]
            fields |= {name: had[name] for name in (b"last", b"done", b"loose") if name in had}
        elif end := ended.get(_ENDED % partition):
            fields |= {b"last": end, b"done": end.partition(b"-")[2]}
        ended.pop(_ENDED % partition, None)
        found.append(fields)
    found[0] |= ended
    # Of fewer partitions: how many ratings came in live is counted over all.
    live = sum(int(each.get(b"loose", 0)) for each in counts[partitions:])
    if live:
        found[0][b"loose"] = b"%d" % (live + int(found[0].get(b"loose", 0)))
    return found


def _in_pieces(key: bytes, kind: Any, parts: list[bytes]) -> list[Filling]:
    starts = range(0, max(len(parts), 1), _PARTS)
    return [Filling(key, kind, parts[start : start + _PARTS], fresh=start == 0) for start in starts]
