"""What is of no user goes from one store to another: registries, generations, the catalogue, the pointer,
streams and counts of partitions.

Invariant: what may still change is copied once more when nothing does; of the rest, which only grows or never
changes, no more than what is missing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from math import gcd
from operator import attrgetter, methodcaller
from typing import Any, cast

from featurestore.experiments import read_experiments
from featurestore.generations.manifest import GenerationSummary, decode_summary
from featurestore.keys import Keys, partition_of
from featurestore.migration.stages import Filling, Kind, MigrationStopped, Placing, flat
from featurestore.migration.target import config_of
from featurestore.ratings.stream import Progress
from featurestore.store import Store

# Parts of one write: Lua's stack takes 8,000 values.
_PARTS = 2_000
# Chunks of a generation, of 64 KB each.
_CHUNKS = 100
# How often it is asked how far the trainer is.
_LOOK_S = 0.02
# Of partitions that a store does not have: where they ended in the one before. Among the counts of the first.
_ENDED = b"ended:%d"

Name = Callable[[Keys], bytes]
"""The name of a key, in either store."""

# What a migration leaves behind: who leads and who beats, marks that are of this store, and where traces
# found ratings in its streams.
LEFT_BEHIND = {"lease", "ended", "workers", "synced", "migrator", "traces"}
# As they were when no service took anything any more.
FEW = (
    *("generations", "commands", "erasing", "experiments", "showings", "telemetry", "reports"),
    *("access", "event_types", "contexts", "schema", "scenarios"),
)
# Of the catalogue, which has a version. That comes last: before it nothing of this is believed.
CATALOGUE = (
    *("catalogue_items", "catalogue_ids", "catalogue_titles", "catalogue_deleted", "catalogue_changes"),
    "catalogue",
)


class SharedCopies:
    """The keys of no user, of one epoch, from `source` to `target`."""

    def __init__(self, source: Store, target: Store, placing: Placing, epoch: int) -> None:
        self._source = source
        self._target = target
        self._placing = placing
        self._epoch = epoch
        self._generations: dict[int, GenerationSummary] = {}
        self._commands: set[bytes] = set()
        self._catalogue = b"none"

    async def grow(self) -> None:
        """Copy what only grows, or never changes, as far as it is there: items, whole generations, the
        catalogue. Again only what is new is copied.
        """
        await self._copy_items()
        for summary in await self._listed():
            # One that is being written is looked at again.
            if summary.generation not in self._generations and summary.state == "ready":
                await self._copy_generation(summary)
                self._generations[summary.generation] = summary
        await self._copy_catalogue()

    async def finish(self) -> None:
        """Copy the rest, when nothing changes any more."""
        await self.grow()
        await self._copy_config()
        kept = {summary.generation for summary in await self._listed()}
        for number in self._generations.keys() - kept:
            summary = self._generations.pop(number)
            await self._target.redis.unlink(*_chunks(self._target.keys, summary))
        for name in FEW:
            await self._copy(attrgetter(name))
        await self._copy_pointer()
        await self._placing.place([[Filling(self._target.keys.stored, "set", [b"%d" % self._epoch])]])
        for number in kept:
            await self._copy(methodcaller("deltas", self._epoch, number))
        await self._copy_figures()
        await self._copy_outcomes()

    async def find_outcomes(self) -> None:
        """Take note of the outcomes of commands that there are; the source remembers those that follow."""
        async for names in self._source.redis.pages(self._source.keys.command_pattern, 1000):
            self._commands |= {name.rpartition(b":")[2] for name in names}

    async def _listed(self) -> list[GenerationSummary]:
        key = self._source.keys.generations
        found: Any = await self._source.redis.hgetall(key)
        return [decode_summary(text, key) for text in found.values()]

    async def _copy_items(self) -> None:
        """Copy the items that the target does not have: rows are given in order, once."""
        here, there = self._source.keys, self._target.keys
        registry, order = there.items(self._epoch), there.order(self._epoch)
        await self._placing.place([[Filling(registry, "hash", [b"", b""], fresh=False)]])
        row = await self._target.redis.llen(order)
        while True:
            stop = row + _PARTS // 2 - 1
            ids: Any = await self._source.redis.lrange(here.order(self._epoch), row, stop)
            if not ids:
                return
            rows = [part for k, item_id in enumerate(ids) for part in (item_id, b"%d" % (row + k))]
            # The list last: it says how far this is.
            await self._placing.place([[Filling(registry, "hash", rows, fresh=False)]])
            await self._placing.place([[Filling(order, "list", ids, fresh=False)]])
            row += len(ids)

    async def _copy_generation(self, summary: GenerationSummary) -> None:
        """Copy a generation's tables. Not guarded: whatever command copies them, they are the same."""
        here, there = _chunks(self._source.keys, summary), _chunks(self._target.keys, summary)
        for start in range(0, len(here), _CHUNKS):
            part = slice(start, start + _CHUNKS)
            reading, writing = self._source.redis.pipeline(), self._target.redis.pipeline()
            for key in here[part]:
                reading.get(key)
            for key, value in zip(there[part], await reading.execute(), strict=True):
                # It may be removed just now; then it is not listed in the end.
                if value is not None:
                    writing.set(key, value)
            await writing.execute()

    async def _copy_catalogue(self) -> None:
        version: Any = await self._source.redis.get(self._source.keys.catalogue) or b""
        if version != self._catalogue:
            for name in CATALOGUE:
                await self._copy(attrgetter(name))
            self._catalogue = version

    async def _copy_config(self) -> None:
        """Copy the configuration once more: the scale may have been decided meanwhile."""
        config: Any = await self._source.redis.hgetall(self._source.keys.config)
        fields = config_of(self._target.settings, config, self._placing.token)
        await self._placing.place([[Filling(self._target.keys.config, "hash", flat(fields.items()))]])

    async def _copy_pointer(self) -> None:
        fields: Any = await self._source.redis.hgetall(self._source.keys.live)
        parts = flat((name, value) for name, value in fields.items() if name != b"migration")
        await self._placing.place([[Filling(self._target.keys.live, "hash", parts)]])

    async def _copy_figures(self) -> None:
        """Copy what experiments and generations have come to."""
        source = self._source
        fields: Any = await source.redis.hgetall(source.keys.experiments)
        for experiment in read_experiments(fields).running:
            name = experiment.name
            await self._copy(methodcaller("experiment_sums", name))
            for arm in range(max(1, len(experiment.arms))):
                await self._copy(methodcaller("experiment_users", name, arm))
        for number in await source.redis.hkeys(source.keys.showings):
            await self._copy(methodcaller("shown_items", int(number)))

    async def _copy_outcomes(self) -> None:
        redis, keys = cast("Any", self._source.redis), self._source.keys
        while ids := await redis.spop(keys.changed(keys.live, self._placing.token), 1000):
            self._commands |= set(ids)
        for command_id in sorted(self._commands):
            await self._copy(methodcaller("command", command_id.decode()))

    async def _copy(self, name: Name) -> None:
        """Copy a key as it is; one that is not there goes."""
        here, there = name(self._source.keys), name(self._target.keys)
        pipe = self._source.redis.pipeline()
        pipe.execute_command("TYPE", here)
        pipe.pttl(here)
        kind, left_ms = await pipe.execute()
        kind = cast("Kind", kind.decode())
        stays_ms = b"%d" % left_ms if left_ms > 0 else b""
        fresh = True
        async for parts in _parts_of(self._source, here, kind):
            filling = Filling(there, kind, parts, fresh=fresh, stays_ms=stays_ms)
            await self._placing.place([[filling]])
            fresh = False
        if fresh:
            await self._placing.place([[Filling(there, "string", [])]])


def _chunks(keys: Keys, summary: GenerationSummary) -> list[bytes]:
    epoch, number = summary.epoch, summary.generation
    return [
        *(keys.chunk(epoch, number, chunk) for chunk in range(summary.chunks)),
        *(keys.index_chunk(epoch, number, chunk) for chunk in range(summary.index_chunks)),
        keys.meta(epoch, number),
    ]


async def _parts_of(store: Store, key: bytes, kind: str) -> AsyncIterator[list[bytes]]:
    """Yield what a key has, in pieces that one write takes."""
    redis: Any = store.redis
    if kind == "string":
        if (value := await redis.get(key)) is not None:
            yield [value]
    elif kind in {"hash", "set", "zset"}:
        # In steps: a catalogue has hundreds of megabytes.
        scan = {"hash": "HSCAN", "set": "SSCAN", "zset": "ZSCAN"}[kind]
        async for found in store.redis.pages(None, _PARTS // 2, scan, key):
            parts = _members(found, kind)
            for start in range(0, len(parts), _PARTS):
                yield parts[start : start + _PARTS]
    elif kind == "list":
        start = 0
        while parts := await redis.lrange(key, start, start + _PARTS - 1):
            yield parts
            start += len(parts)
    elif kind == "stream":
        last, after = (await redis.xinfo_stream(key))["last-generated-id"], b"-"
        entries: list[Any] | None = None
        while entries is None or entries:
            entries = await redis.xrange(key, after, "+", 100)
            parts = [last]
            for entry, fields in entries:
                parts += [entry, b"%d" % (2 * len(fields)), *flat(fields.items())]
            if entries or after == b"-":
                yield parts
            after = b"(" + entries[-1][0] if entries else after


def _members(found: Any, kind: str) -> list[bytes]:
    if kind == "hash":
        return flat(found.items())
    # Of a sorted set the members: all scores are 0.
    return [member for member, _ in found] if kind == "zset" else list(found)


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
    """Copy what partitions have beside users, to partitions of another number. Once nothing changes any more.

    The target goes on where the streams of the source end, so that the archive, which knows these ends, is
    the target's as it was the source's. Nothing waits in a stream by then: it was archived before. A
    partition of the target that the source had too goes on counting where that ended, and so does one that
    the namespace had in a store before; the others begin. Whichever partition a user comes from, no event
    that follows has a time before those that there were.
    """
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
