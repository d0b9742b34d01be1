"""Writing one generation beside the live one. Invariant: nothing that is live is touched before `flip`, and
`flip` takes only what `finish` has read back whole.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from zlib import crc32

import msgspec
import numpy as np

from factors import Float32s, Int64s, Model, all_finite_items
from featurestore import codecs
from featurestore.client import Client
from featurestore.errors import GenerationBroken, GenerationUnknown, StoreError
from featurestore.generations.manifest import (
    CHUNK_BYTES,
    Blob,
    GenerationMeta,
    GenerationSummary,
    Kept,
    encode_meta,
)
from featurestore.keys import Keys, digest_of, partitions_of, record_field, shown_key
from featurestore.leases import Lease
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many, encode_packed_call
from featurestore.wire.resp import bulk, encode

# A quarter of a megabyte a step, each awaited: lookups wait for at most one of them.
CHUNKS_AT_ONCE = 4
# One call of so many records keeps the store for about 0.1 ms (6 us each): a lookup waits for one at most
# where the store is near, since each write is awaited and followed by a pause.
RECORDS_AT_ONCE = 16
# A store that is far, behind busy cores, or that syncs each write takes long to answer, whatever is asked: a
# call for each so many seconds of the answer before goes into one write, so that they keep the store for a
# third of that time.
CALL_EACH_S = 0.0003
# However far: a lookup then waits for 0.8 ms of the store's work at most.
CALLS_AT_ONCE = 8
# At least half of the time is left to lookups, on a machine that is shared with them too. A longer wait than
# this was not for the store's work.
MOST_PAUSE_S = 0.002
# A generation that was dropped since records were last written is likely one of so many before this one.
LIKELY_DROPPED = 3


class RecordWriter:
    """Writes records of the users of one generation. `kept`: the numbers of all that are kept, this one too.

    A record never takes the place of a newer one, no forgotten user is brought back, and a user keeps at most
    one record of each generation that is kept.
    """

    def __init__(
        self, keys: Keys, connection: Connection, *, epoch: int, number: int, kept: Iterable[int]
    ) -> None:
        self._keys = keys
        self._connection = connection
        self._epoch = epoch
        self._number = number
        self._kept = Kept(frozenset({*kept, number}))
        self._with_digests: set[int] = set()

    async def write(
        self, user_ids: Sequence[bytes], n: Int64s, vectors: Float32s, read_ms: int | None = None
    ) -> int:
        """Write records of users: the `n` (u,) that the fit has seen of each, its row (u, user_width).
        `read_ms`: when the attributes that they rest on were read, by the store's clock; None for none.

        Packs them in one turn of the event loop (2 us each): some thousands at a time. Returns how many are
        there now. Not there are users who were forgotten meanwhile, whose attributes were changed, or whose
        record of this generation is newer. May be repeated. Raises `StoreError`.
        """
        partition = partitions_of(user_ids, self._keys.partitions)
        # Partition by partition: a call has the keys of one.
        order = np.argsort(partition, kind="stable")
        ordered = [user_ids[position] for position in order.tolist()]
        ends = np.cumsum(np.bincount(partition, minlength=self._keys.partitions)).tolist()
        # What all calls begin with, and the records one after the other, all of one length: as RESP.
        before = range(max(1, self._number - LIKELY_DROPPED), self._number)
        likely = b",".join([record_field(number) for number in before if number not in self._kept.numbers])
        kept = self._kept
        since = b"" if read_ms is None else b"%d" % read_ms
        fixed = (record_field(self._number), b"%d" % kept.upto, kept.fields, likely, since)
        head = b"".join(map(bulk, fixed))
        records = codecs.record_table(n[order], vectors[order])
        row, length = f"V{records.itemsize}", b"$%d\r\n" % records.itemsize
        table = np.empty(len(n), dtype=[("length", f"S{len(length)}"), ("record", row), ("end", "S2")])
        table["length"], table["record"], table["end"] = length, records.view(row), b"\r\n"
        starts = [0, *ends]
        parts = [
            (each, slice(start, min(start + RECORDS_AT_ONCE, end)))
            for each, end in enumerate(ends)
            for start in range(starts[each], end, RECORDS_AT_ONCE)
        ]
        taken = first = 0
        waited_s = 0.0
        while first < len(parts):
            some = parts[first : first + max(1, min(int(waited_s / CALL_EACH_S), CALLS_AT_ONCE))]
            began = time.monotonic()
            taken += await self._put(
                head, [(each, ordered[part], table[part].tobytes()) for each, part in some]
            )
            waited_s = time.monotonic() - began
            await asyncio.sleep(min(waited_s, MOST_PAUSE_S))
            first += len(some)
        return taken

    async def _put(self, head: bytes, parts: Sequence[tuple[int, Sequence[bytes], bytes]]) -> int:
        """One write: for each part a call with its partition, its users, and their records as RESP."""
        replies = await call_many(self._connection, [self._call(head, *part) for part in parts])
        again = []
        taken = 0
        for part, reply in zip(parts, replies, strict=True):
            if reply[0] == b"DIGESTS":
                self._with_digests.add(part[0])
                again.append(part)
            else:
                taken += int(reply[1])
        return taken + (await self._put(head, again) if again else 0)

    def _call(self, head: bytes, partition: int, user_ids: Sequence[bytes], records: bytes) -> bytes:
        prefix = self._keys.user_prefixes(self._epoch)[partition]
        a = len(prefix)
        names = [bulk(self._keys.forgotten(self._epoch, partition))]
        names += [b"$%d\r\n%b%b\r\n" % (a + len(user_id), prefix, user_id) for user_id in user_ids]
        # Digests are of use only where a user was forgotten: then the store asks for them.
        digests = b"".join(map(digest_of, user_ids)) if partition in self._with_digests else b""
        args = [head, bulk(digests), records]
        return encode_packed_call("put_records", len(names), names, 6 + len(user_ids), args)


class GenerationWriter:
    """One generation being written by the leader. Every method may raise `LeaseLost` or `StoreUnavailable`.

    `number`: the generation; `kept`: the numbers of all that are kept, this one too. `write_items` once,
    then `write_index` and `write_blob`, `write_users` as often as needed, `finish`, `flip`. Each may be
    repeated.
    """

    def __init__(
        self,
        keys: Keys,
        connection: Connection,
        client: Client,
        lease: Lease,
        *,
        summary: GenerationSummary,
        positions: dict[int, str],
        kept: Iterable[int],
    ) -> None:
        self._keys = keys
        self._connection = connection
        self._client = client
        self._lease = lease
        self._summary = summary
        self._positions = positions
        self._epoch, self.number = summary.epoch, summary.generation
        self.kept = frozenset({*kept, self.number})
        self._records = RecordWriter(keys, connection, epoch=self._epoch, number=self.number, kept=self.kept)
        self._meta: GenerationMeta | None = None

    async def register(self) -> None:
        """Say that this generation is being written, so that after a crash the next leader can remove it."""
        await self._put_summary()
        # A stream without entries: later pushes go only to a stream that is there, so none outlives its
        # generation.
        deltas = self._keys.deltas(self._epoch, self.number)
        await self._client.xadd(deltas, {b"r": b"", b"v": b""}, maxlen=0, approximate=False)

    async def write_items(self, items: Float32s, model: Model) -> None:
        """Write the item table (n_items, item_width), rows as they are stored.

        Raises `GenerationBroken` where it does not fit the model.
        """
        if items.ndim != 2 or items.shape[1] != model.item_width:
            raise GenerationBroken(f"an item table of shape {items.shape} for rows of {model.item_width}")
        table = np.ascontiguousarray(items, dtype="<f4")
        if not all_finite_items(model, table):
            raise GenerationBroken("an item table that is not finite")
        # Whole rows, one at least.
        step = max(1, CHUNK_BYTES // (4 * model.item_width))
        starts = range(0, len(table), step)
        self._summary = replace(self._summary, chunks=len(starts))
        await self._put_summary()
        await self._send(
            (self._keys.chunk(self._epoch, self.number, k), table[start : start + step].tobytes())
            for k, start in enumerate(starts)
        )
        checksum = await asyncio.to_thread(crc32, table.data)
        self._meta = GenerationMeta(self._summary, self._positions, len(table), step, checksum, model)

    async def write_index(self, index: bytes) -> None:
        """Write the index of the items, after the items and before any `write_blob`; once."""
        if self._meta is not None and self._meta.blobs:
            raise StoreError("the index is written before what else lies beside the items")
        blob = await self._write_beside(index)
        self._meta = replace(
            self._written(),
            summary=replace(self._written().summary, index_chunks=len(blob.chunk_bytes)),
            index_bytes=blob.size,
            index_crc32=blob.crc32,
        )

    async def write_blob(self, name: str, data: bytes | memoryview) -> None:
        """Write bytes that lie beside the items under a name, after the items; each name once."""
        blob = await self._write_beside(data)
        self._meta = replace(self._written(), blobs={**self._written().blobs, name: blob})

    def _written(self) -> GenerationMeta:
        if self._meta is None:
            raise StoreError("what lies beside the items is written after them")
        return self._meta

    async def _write_beside(self, data: bytes | memoryview) -> Blob:
        """Write chunks behind those that are there. The list counts them first, so that a trainer that
        removes this generation finds them all.
        """
        meta = self._written()
        before = sum(len(blob.chunk_bytes) for blob in (meta.index, *meta.blobs.values()))
        # In a thread: a third of a millisecond a megabyte, and the head of a large catalogue has hundreds.
        blob = Blob(before, len(data), await asyncio.to_thread(crc32, data))
        chunks = len(blob.chunk_bytes)
        self._summary = replace(self._summary, index_chunks=before + chunks)
        await self._put_summary()
        await self._send(
            (
                self._keys.index_chunk(self._epoch, self.number, before + k),
                bytes(data[k * CHUNK_BYTES : (k + 1) * CHUNK_BYTES]),
            )
            for k in range(chunks)
        )
        return blob

    async def _send(self, chunks: Iterable[tuple[bytes, bytes]]) -> None:
        """Write chunks under their keys, some at a time."""
        left = iter(chunks)
        while some := list(islice(left, CHUNKS_AT_ONCE)):
            await call_many(self._connection, [encode(b"SET", *each) for each in some])
            await asyncio.sleep(0)

    async def write_users(
        self, user_ids: Sequence[bytes], n: Int64s, vectors: Float32s, read_ms: int | None = None
    ) -> int:
        """Write records of users; see `RecordWriter.write`.

        Returns how many were taken; one that is not there is folded in by its first reader.
        """
        if self._meta is None:
            raise StoreError("users are written after the items")
        if vectors.shape != (len(user_ids), self._meta.model.user_width) or len(n) != len(user_ids):
            raise GenerationBroken(f"user rows of shape {vectors.shape} for {len(user_ids)} users")
        if not np.isfinite(vectors).all():
            raise GenerationBroken("user rows that are not finite")
        return await self._records.write(user_ids, n, vectors, read_ms)

    async def finish(self) -> GenerationMeta:
        """Read all that was written back and declare the generation whole. Raises `GenerationBroken`."""
        meta = self._meta
        if meta is None:
            raise StoreError("a generation without an item table cannot go live")
        table = Blob(0, 4 * meta.item_rows * meta.model.item_width, meta.crc32)
        await self._require("item table", self._keys.chunk, table, meta.summary.chunks)
        for name, blob in {"index": meta.index, **meta.blobs}.items():
            await self._require(name, self._keys.index_chunk, blob, len(blob.chunk_bytes))
        meta = replace(meta, summary=replace(meta.summary, state="ready"))
        self._summary = replace(self._summary, state="ready")
        self._meta = meta
        await self._client.set(self._keys.meta(self._epoch, self.number), encode_meta(meta))
        await self._put_summary()
        return meta

    async def _require(
        self, what: str, key: Callable[[int, int, int], bytes], blob: Blob, chunks: int
    ) -> None:
        """Read so many `chunks` back. Raises `GenerationBroken` where they are not what was written."""
        checksum = size = 0
        for first in range(blob.first, blob.first + chunks, CHUNKS_AT_ONCE):
            some = range(first, min(first + CHUNKS_AT_ONCE, blob.first + chunks))
            gets = [encode(b"GET", key(self._epoch, self.number, chunk)) for chunk in some]
            for data in await call_many(self._connection, gets):
                checksum = crc32(data or b"", checksum)
                size += len(data or b"")
            await asyncio.sleep(0)
        if size != blob.size or checksum != blob.crc32:
            where = shown_key(key(self._epoch, self.number, blob.first))
            raise GenerationBroken(f"the {what} that begins there is not what was written", where)

    async def flip(self, *, automatic: bool = True) -> bool:
        """Go live. False: `automatic`, and held after a roll-back; the generation stays ready.

        Not `automatic` (this refit was asked for) lifts the hold. Raises `GenerationUnknown` when it was
        not finished, or its epoch was abandoned.
        """
        args = [b"%d" % self.number, b"%d" % self._lease.fence, b"1" if automatic else b"0", b"0"]
        (reply,) = await self._client.call("flip", (self._keys.switched, args))
        return flipped(reply, self.number)

    async def _put_summary(self) -> None:
        args = [b"%d" % self._lease.fence, b"%d" % self.number, msgspec.json.encode(self._summary)]
        await self._client.call("put_generation", ([self._keys.live, self._keys.generations], args))


def flipped(reply: list[bytes], number: int) -> bool:
    """What the store said to a flip: True when live, False when held.

    Raises `GenerationUnknown`.
    """
    if reply[0] == b"UNKNOWN":
        raise GenerationUnknown(number, reply[1].decode())
    return reply[0] == b"OK"
