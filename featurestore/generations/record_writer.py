"""Writing the records of a generation's users. Invariant: a record never takes the place of a newer one, no
forgotten user is brought back, and a user keeps at most one record of each generation that is kept.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence

import numpy as np

from factors import Float32s, Int64s
from featurestore import codecs
from featurestore.generations.manifest import Kept
from featurestore.keys import Keys, digest_of, partitions_of, record_field
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many, encode_packed_call
from featurestore.wire.resp import bulk

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
    """Writes records of one generation. `kept`: the numbers of all that are kept, this one too."""

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
