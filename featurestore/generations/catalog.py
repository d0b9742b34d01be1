"""The generations of a namespace: which there are, which is live, reading one, removing old ones.

Invariant: what is live is never removed, and a removal that stopped half way is finished by the next one.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np

from factors import Float32s, Int32s
from featurestore.client import Client
from featurestore.errors import GenerationBroken, GenerationUnknown, LeaseLost, StoreDamaged, StoreError
from featurestore.generations.deltas import Deltas, decode_deltas, encode_delta
from featurestore.generations.manifest import (
    Blob,
    GenerationMeta,
    GenerationSummary,
    Pointer,
    Worker,
    decode_beat,
    decode_meta,
    decode_summary,
    read_pointer,
)
from featurestore.generations.writer import GenerationWriter, flipped
from featurestore.keys import Keys, shown_key, whole
from featurestore.leases import Lease, fence_of
from featurestore.wire.chunk_reader import read_chunks
from featurestore.wire.connection import Connection

# Keys that one step of a removal unlinks: lookups wait for one step at most.
KEYS_AT_ONCE = 64
# Keys that one step looks at: 0.2 ms of the store.
SCAN_COUNT = 500
# Rows of an entry at most: 160 KB at 20 numbers a row.
ROWS_PER_DELTA = 2_000
# Entries of one read, which bounds the reply; two reads take all that a stream keeps.
DELTAS_AT_ONCE = 256
# So many pushes are merged into one: a loading service reads at most this many, and the stream stays small.
DELTAS_MERGED = 512
# A worker that ended without taking its beat back is shown for an hour, then forgotten.
BEAT_KEPT_S = 3_600.0

Summaries = list[GenerationSummary]
Workers = list[Worker]


class Generations:
    """Reads and changes the generations. Every method may raise `StoreUnavailable` and may be repeated."""

    def __init__(self, keys: Keys, connection: Connection, client: Client) -> None:
        self._keys = keys
        self._connection = connection
        self._client = client

    async def live(self) -> Pointer:
        """Return what is live now."""
        return read_pointer(await self._client.hgetall(self._keys.live), self._keys.live)

    async def list(self) -> Summaries:
        """Return all generations, oldest first, whole or not. Raises `GenerationBroken`."""
        key = self._keys.generations
        summaries = [decode_summary(text, key) for text in await self._client.hvals(key)]
        return sorted(summaries, key=lambda summary: summary.generation)

    async def meta(self, epoch: int, generation: int) -> GenerationMeta:
        """Return what a finished generation is. Raises `GenerationUnknown`, `GenerationBroken`."""
        key = self._keys.meta(epoch, generation)
        text = await self._client.get(key)
        if text is None:
            raise GenerationUnknown(generation)
        return decode_meta(text, key)

    async def begin(
        self, lease: Lease, draft: GenerationSummary, positions: Mapping[int, str]
    ) -> GenerationWriter:
        """Begin to write a generation, after removing all but the live one and the one to roll back to.

        `draft`: what is known of it, all but its number. Metrics that are not finite are left out, JSON has
        no such numbers. `positions`: partition -> last stream id that the fit has seen. Raises `LeaseLost`.
        """
        ((_, number),) = await self._client.call(
            "allot_generation", ([self._keys.live], [b"%d" % lease.fence])
        )
        kept = await self.prune(lease)
        metrics = {name: float(value) for name, value in draft.metrics.items() if math.isfinite(value)}
        writer = GenerationWriter(
            self._keys,
            self._connection,
            self._client,
            lease,
            summary=replace(draft, generation=int(number), metrics=metrics),
            positions=dict(positions),
            kept=kept,
        )
        await writer.register()
        return writer

    async def prune(self, lease: Lease, pause_s: float = 0.0) -> set[int]:
        """Remove all but the live generation and the one to roll back to; return the numbers that stay.

        Raises `LeaseLost`.
        """
        pointer = await self.live()
        kept = {pointer.generation, pointer.previous} - {0}
        summaries = await self.list()
        self._require_named(pointer, summaries)
        for summary in summaries:
            if summary.generation not in kept:
                await self.remove(summary.epoch, summary.generation, pause_s, lease=lease)
        return kept

    def _require_named(self, pointer: Pointer, summaries: Sequence[GenerationSummary]) -> None:
        """Raise `StoreDamaged` where the pointer names what there is not: then nothing is removed by it."""
        named = {(each.epoch, each.generation) for each in summaries} | {(pointer.epoch, 0)}
        if (pointer.epoch, pointer.generation) not in named:
            why = f"it names generation {pointer.generation} of epoch {pointer.epoch}, which is not there"
            raise StoreDamaged(shown_key(self._keys.live), why)

    async def activate(self, generation: int, *, hold: bool) -> None:
        """Make a whole generation of the live epoch the live one. `hold`: automatic refits then do not go
        live.

        Raises `GenerationUnknown`.
        """
        args = [b"%d" % generation, b"", b"0", b"1" if hold else b"0"]
        (reply,) = await self._client.call("flip", (self._keys.switched, args))
        flipped(reply, generation)

    def load_items(self, meta: GenerationMeta) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes of the item table, piece by piece. Raises `GenerationBroken` where one has gone."""
        epoch, number = meta.summary.epoch, meta.summary.generation
        step = meta.rows_per_chunk
        rows = [min(step, meta.item_rows - start) for start in range(0, meta.item_rows, step)]
        sizes = [4 * count * meta.model.item_width for count in rows]
        return read_chunks(self._connection, partial(self._keys.chunk, epoch, number), sizes)

    def load_blob(self, meta: GenerationMeta, blob: Blob) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes of `meta.index` or of one of `meta.blobs`, piece by piece. Raises
        `GenerationBroken` where one has gone.
        """
        epoch, number = meta.summary.epoch, meta.summary.generation

        def name(chunk: int) -> bytes:
            return self._keys.index_chunk(epoch, number, blob.first + chunk)

        return read_chunks(self._connection, name, blob.chunk_bytes)

    async def load_index(self, meta: GenerationMeta) -> bytes:
        """Return the bytes of the index of the items, if there is one. Raises `GenerationBroken`."""
        index = b"".join([piece async for piece in self.load_blob(meta, meta.index)])
        if len(index) != meta.index_bytes or crc32(index) != meta.index_crc32:
            key = shown_key(self._keys.index_chunk(meta.summary.epoch, meta.summary.generation, 0))
            raise GenerationBroken("the index that begins there is not what was written", key)
        return index

    async def claim_deltas(self, lease: Lease, epoch: int, generation: int) -> None:
        """Let this leader alone push deltas of a generation from now on.

        Raises `GenerationUnknown`, `LeaseLost`.
        """
        args = [b"%d" % lease.fence]
        (reply,) = await self._client.call("claim_deltas", ([self._keys.deltas(epoch, generation)], args))
        if reply[0] != b"OK":
            raise GenerationUnknown(generation)

    async def push_delta(
        self,
        lease: Lease,
        epoch: int,
        generation: int,
        rows: Int32s,
        vectors: Float32s,
        *,
        levels: Float32s | None = None,
        factors: Float32s | None = None,
        positives: Float32s | None = None,
    ) -> None:
        """Hand item rows (m,) with their vectors (m, item_width) to the services, after `claim_deltas`.
        `levels` (m,): see `Activity`; `factors` (m, r): those in the ranking head, NaN for a row without;
        with them `positives` (m, 3): see `Positives`.

        Raises `GenerationUnknown`, `LeaseLost`.
        """
        of_time = np.full((len(rows), 1), np.nan, np.float32) if levels is None else levels[:, None]
        tables = [table for table in (vectors, of_time, factors, positives) if table is not None]
        _, entries = await self._add_deltas(lease, epoch, generation, rows, *tables)
        if entries > DELTAS_MERGED:
            rank = 0 if factors is None else factors.shape[1]
            await self._merge_deltas(lease, epoch, generation, vectors.shape[1], rank)

    async def _add_deltas(
        self, lease: Lease, epoch: int, generation: int, rows: Int32s, *tables: Float32s
    ) -> tuple[bytes | None, int]:
        """Return the stream id of the first entry, and how many there are."""
        name, fence = self._keys.deltas(epoch, generation), b"%d" % lease.fence
        first, entries = None, 0
        for start in range(0, len(rows), ROWS_PER_DELTA):
            part = slice(start, start + ROWS_PER_DELTA)
            args = [fence, *encode_delta(rows[part], *[table[part] for table in tables])]
            (reply,) = await self._client.call("push_delta", ([name], args))
            if reply[0] != b"OK":
                raise GenerationUnknown(generation)
            first, entries = first or reply[1], reply[2]
        return first, entries

    async def read_deltas(
        self, epoch: int, generation: int, width: int, after: str = "0", *, rank: int = 0
    ) -> Deltas:
        """Return what came after a stream id. `width`: of an item row; `rank`: of the ranking head, 0 where
        its factors are not wanted. Raises `GenerationBroken`.
        """
        name, start = self._keys.deltas(epoch, generation), after
        entries: list[Any] = []
        while True:
            some: Any = await self._client.xrange(name, f"({start}", "+", DELTAS_AT_ONCE)
            entries += some
            if len(some) < DELTAS_AT_ONCE:
                return decode_deltas(entries, width, after, name, rank)
            start = some[-1][0].decode()

    async def workers(self) -> Workers:
        """Return the service processes that have beaten within the last hour; older ones are dropped."""
        pipe = self._client.pipeline()
        pipe.time()
        pipe.hgetall(self._keys.workers)
        (seconds, microseconds), beats = await pipe.execute()
        now = seconds + microseconds / 1e6
        found: Workers = []
        dead: list[bytes] = []
        for worker_id, text in beats.items():
            worker = decode_beat(worker_id, text, now)
            if worker is None or worker.age_s > BEAT_KEPT_S:
                dead.append(worker_id)
            else:
                found.append(worker)
        if dead:
            await self._client.hdel(self._keys.workers, *dead)
        return found

    async def remove(
        self, epoch: int, generation: int, pause_s: float = 0.0, *, lease: Lease | None = None
    ) -> None:
        """Remove a generation in small steps; the records go with the next ones written. `lease`: of a
        leader; None where its epoch is given up.

        Raises `StoreError` if live, `LeaseLost`.
        """
        args = [b"%d" % generation, fence_of(lease)]
        (reply,) = await self._client.call("retire_generation", (self._keys.switched, args))
        if reply[0] == b"LIVE":
            raise StoreError(f"generation {generation} is live and is not removed")
        if reply[0] == b"GONE":
            return
        summary = decode_summary(reply[1], self._keys.generations)
        chunks = [self._keys.chunk(epoch, generation, chunk) for chunk in range(summary.chunks)]
        chunks += [self._keys.index_chunk(epoch, generation, chunk) for chunk in range(summary.index_chunks)]
        await self._unlink(chunks, pause_s)
        # The entry goes last: as long as it is there, the next caller can finish this.
        await self._client.unlink(self._keys.meta(epoch, generation), self._keys.deltas(epoch, generation))
        await self._client.hdel(self._keys.generations, str(generation))

    async def remove_epoch(self, epoch: int, pause_s: float = 0.0, *, lease: Lease | None = None) -> None:
        """Remove all that belongs to an epoch, in small steps. `lease`: of a leader that has archived it
        to its end; None where it is given up.

        Raises `StoreError` if it is live or being prepared, `LeaseLost`.
        """
        fields = "epoch", "pending", "abandoned", "fence"
        live, pending, abandoned, fence = await self._client.hmget(self._keys.live, *fields)
        if lease is not None and fence != fence_of(lease):
            raise LeaseLost("another trainer leads")
        self._require_named(await self.live(), await self.list())
        name = b"%d" % epoch
        if name == live or (name == pending and name != abandoned):
            raise StoreError(f"epoch {epoch} is in use and is not removed")
        for summary in await self.list():
            if summary.epoch == epoch:
                await self.remove(epoch, summary.generation, pause_s)
        # The registry first: without it no late caller can add to what is going.
        await self._client.unlink(self._keys.items(epoch), self._keys.order(epoch))
        async for found in self._client.pages(self._keys.epoch_pattern(epoch), SCAN_COUNT):
            await self._unlink(found, pause_s)
        await self._client.srem(self._keys.stored, name)

    async def _unlink(self, keys: Sequence[bytes], pause_s: float) -> None:
        for start in range(0, len(keys), KEYS_AT_ONCE):
            await self._client.unlink(*keys[start : start + KEYS_AT_ONCE])
            await asyncio.sleep(pause_s)

    async def epochs(self) -> set[int]:
        """Return the epochs of which something is stored."""
        key = self._keys.stored
        return {whole(number, key) for number in await self._client.smembers(key)}

    async def _merge_deltas(self, lease: Lease, epoch: int, generation: int, width: int, rank: int) -> None:
        """Put the latest of all rows at the end of the stream, then drop what was before.

        A reader between the two steps gets the same vectors twice, which changes nothing.
        """
        merged = await self.read_deltas(epoch, generation, width, rank=rank)
        rows, tables = merged.rows, [merged.vectors, merged.levels_of(merged.rows)]
        if rank:
            tables.append(merged.factors_of(rows))
        if rank and len(merged.counted):
            tables.append(merged.positives_of(rows))
        first, _ = await self._add_deltas(lease, epoch, generation, rows, *tables)
        if first is not None:
            # However late this comes: all that was before the first of these is in them.
            name = self._keys.deltas(epoch, generation)
            await self._client.xtrim(name, minid=first.decode(), approximate=False)
