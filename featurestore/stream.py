"""Rating events as the trainer reads them. Invariant: an event that was not `done` comes again to the next
leader, and one leader at a time gets any.

Each term of leadership has a consumer group of its own on every partition, named by the fence. Attaching
destroys the groups of earlier terms in the same step, so that a leader that was replaced gets `LeaseLost` in
place of events, and its `done` is refused. Nothing is acknowledged one by one: events stay in the stream
until `done` trims them, and after any error the group is set back to where this reader was.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factors.tables import Float64s, Int32s, Int64s
from featurestore.codecs import EVENT_BYTES, EVENT_DTYPE
from featurestore.connection import Connection, ReplyError, encode, error_code
from featurestore.errors import EpochGone, LeaseLost
from featurestore.functions import call_many, commands, encode_call
from featurestore.keys import Keys
from featurestore.lease import Lease

START = "0-0"


@dataclass(frozen=True, slots=True)
class Events:
    """Rating events as columns, in stream order within a partition.

    `partition` int32 (m,); `stream_ms`, `stream_seq` int64 (m,): the stream id; `user_id`: m ids; `n` int64
    (m,); `item_row` int64 (m,), `codecs.FORGOTTEN_ROW` where the user was forgotten; `rating` (NaN deletes),
    `time` float64 (m,).
    """

    partition: Int32s
    stream_ms: Int64s
    stream_seq: Int64s
    user_id: list[bytes]
    n: Int64s
    item_row: Int64s
    rating: Float64s
    time: Float64s

    def __len__(self) -> int:
        return len(self.user_id)


@dataclass(slots=True)
class _Term:
    """Where this reader is in the streams of an epoch, as the holder of one lease."""

    fence: int
    positions: dict[int, str]
    attached: bool = False
    damaged: int = field(default=0)


class RatingsStream:
    """Reads and trims the streams. `blocking` gives a connection on which the store may block."""

    def __init__(
        self, keys: Keys, connection: Connection, blocking: Callable[[], Awaitable[Connection]]
    ) -> None:
        self._keys = keys
        self._connection = connection
        self._blocking = blocking
        self._terms: dict[int, _Term] = {}
        self._lock = asyncio.Lock()

    async def read(self, epoch: int, lease: Lease, count: int, block_ms: int) -> Events:
        """Events after those read before under this lease, at most `count` a partition; none after
        `block_ms`.

        The first read of a lease begins at the oldest event that was not `done`. Raises `LeaseLost`,
        `EpochGone`, `StoreUnavailable` (nothing is lost, read again).
        """
        async with self._lock:
            term = self._terms.get(epoch)
            if term is None or term.fence != lease.fence:
                term = self._terms[epoch] = _Term(
                    lease.fence, dict.fromkeys(range(self._keys.partitions), START)
                )
            if not term.attached:
                await self._attach(epoch, term)
            # Until the reply is here it is not known how far the store believes this reader is.
            term.attached = False
            reply = await self._read_group(epoch, term, count, block_ms)
            events = self._decode(epoch, term, reply or [])
            term.attached = True
            return events

    async def done(self, epoch: int, lease: Lease, last: Mapping[int, str]) -> None:
        """Trim each partition up to and including its stream id: these events are archived. Safe to repeat.

        Raises `LeaseLost` when a later leader has attached.
        """
        calls = []
        for partition, stream_id in last.items():
            ms, _, seq = stream_id.partition("-")
            first = f"{ms}-{int(seq or 0) + 1}".encode()
            calls.append(
                encode_call("trim", [self._keys.ratings(epoch, partition)], [b"%d" % lease.fence, first])
            )
        for reply in await call_many(self._connection, calls):
            if reply[0] != b"OK":
                raise LeaseLost("another trainer reads the stream")

    async def lag(self, epoch: int) -> dict[int, int]:
        """Events that are not `done`, by partition."""
        partitions = range(self._keys.partitions)
        lengths = await commands(
            self._connection, [(b"XLEN", self._keys.ratings(epoch, p)) for p in partitions]
        )
        return dict(zip(partitions, lengths, strict=True))

    async def _attach(self, epoch: int, term: _Term) -> None:
        calls = [
            encode_call(
                "attach",
                [self._keys.ratings(epoch, partition), self._keys.epochs(partition)],
                [b"%d" % epoch, b"%d" % term.fence, position.encode()],
            )
            for partition, position in term.positions.items()
        ]
        for reply in await call_many(self._connection, calls):
            if reply[0] == b"GONE":
                raise EpochGone(epoch)
            if reply[0] != b"OK":
                raise LeaseLost("another trainer reads the stream")

    async def _read_group(self, epoch: int, term: _Term, count: int, block_ms: int) -> Any:
        streams = [self._keys.ratings(epoch, partition) for partition in term.positions]
        block = [b"BLOCK", b"%d" % block_ms] if block_ms > 0 else []
        payload = encode(
            b"XREADGROUP",
            b"GROUP",
            b"trainer-%d" % term.fence,
            b"trainer",
            b"COUNT",
            b"%d" % count,
            *block,
            b"NOACK",
            b"STREAMS",
            *streams,
            *([b">"] * len(streams)),
        )
        connection = await self._blocking()
        (reply,) = await connection.execute(payload, 1, wait_s=block_ms / 1000)
        if isinstance(reply, ReplyError):
            if error_code(reply) in {"NOGROUP", "UNBLOCKED"}:
                raise LeaseLost("another trainer reads the stream")
            raise connection.failure(reply)
        return reply

    def _decode(self, epoch: int, term: _Term, reply: list[Any]) -> Events:
        partition_of = {self._keys.ratings(epoch, partition): partition for partition in term.positions}
        partitions: list[int] = []
        ids: list[bytes] = []
        users: list[bytes] = []
        payloads: list[bytes] = []
        positions = dict(term.positions)
        for stream, entries in reply:
            if not entries:
                continue
            partition = partition_of[stream]
            positions[partition] = entries[-1][0].decode()
            whole = [entry for entry in entries if len(entry[1]) == 4 and len(entry[1][3]) == EVENT_BYTES]
            term.damaged += len(entries) - len(whole)
            partitions += [partition] * len(whole)
            ids += [entry[0] for entry in whole]
            users += [entry[1][1] for entry in whole]
            payloads += [entry[1][3] for entry in whole]
        term.positions = positions
        table = np.frombuffer(b"".join(payloads), dtype=EVENT_DTYPE)
        parts = [stream_id.split(b"-") for stream_id in ids]
        return Events(
            partition=np.array(partitions, dtype=np.int32),
            stream_ms=np.array([int(ms) for ms, _ in parts], dtype=np.int64),
            stream_seq=np.array([int(seq) for _, seq in parts], dtype=np.int64),
            user_id=users,
            n=table["n"].astype(np.int64),
            item_row=table["item_row"].astype(np.int64),
            rating=table["rating"].astype(np.float64),
            time=table["time"].astype(np.float64),
        )
