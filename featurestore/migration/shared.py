"""What is of no user goes from one store to another: registries, generations, the catalogue, the pointer.
Invariant: what may still change is copied once more when nothing does; of the rest, which only grows or never
changes, no more than what is missing.
"""

from collections.abc import AsyncIterator, Callable
from operator import attrgetter, methodcaller
from typing import Any, cast

from featurestore.experiments.definition import read_experiments
from featurestore.generations.manifest import GenerationSummary, decode_summary
from featurestore.keys import Keys
from featurestore.migration.placing import Filling, Kind, Placing, flat
from featurestore.migration.target import config_of
from featurestore.store import Store

# Parts of one write: Lua's stack takes 8,000 values.
_PARTS = 2_000
# Chunks of a generation, of 64 KB each.
_CHUNKS = 100

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
        scan = {"hash": redis.hscan, "set": redis.sscan, "zset": redis.zscan}[kind]
        cursor, more = 0, True
        while more:
            cursor, found = await scan(key, cursor, count=_PARTS // 2)
            more = cursor != 0
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
