"""Rating events as the trainer reads them. Invariant: an event that was not `done` comes again to the next
leader, and one leader at a time gets any.

Each term of leadership has a consumer group of its own on every partition, named by the fence. Attaching
destroys the groups of earlier terms in the same step, so that a leader that was replaced gets `LeaseLost` in
place of events, and its `done` is refused. Nothing is acknowledged one by one: events stay in the stream
until `done` trims them, and after any error the group is set back to where this reader was.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factors import Float64s, Int32s, Int64s
from featurestore.errors import EpochGone, LeaseLost
from featurestore.keys import Keys
from featurestore.leases import Lease
from featurestore.ratings.batches import unpack
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many, commands, encode_call
from featurestore.wire.resp import ReplyError, encode, error_code

START = "0-0"
# An entry holds one event or thousands: how many are asked for follows from those that came.
FIRST_ENTRIES = 16


@dataclass(frozen=True, slots=True)
class Events:
    """Rating events as columns, in stream order within a partition.

    `partition` int32 (m,); `stream_ms`, `stream_seq` int64 (m,): where the event is in its stream; `users`:
    ids; `user` int64 (m,): position in `users`; `n` int64 (m,); `item_row` int64 (m,), `codecs.FORGOTTEN_ROW`
    where the user was forgotten; `rating` (NaN deletes), `time` float64 (m,). `more`: a partition gave as
    many entries as it was asked for, so others may wait.
    """

    partition: Int32s
    stream_ms: Int64s
    stream_seq: Int64s
    users: list[bytes]
    user: Int64s
    n: Int64s
    item_row: Int64s
    rating: Float64s
    time: Float64s
    more: bool = False

    def __len__(self) -> int:
        return len(self.user)

    @property
    def user_id(self) -> list[bytes]:
        """The user of each event."""
        return [self.users[k] for k in self.user.tolist()]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream is: where its `last` event is (ms, number), and the number of the last `done` one."""

    last: tuple[int, int] = (0, 0)
    done: int = 0

    @property
    def waiting(self) -> int:
        """Events that are not done."""
        return max(0, self.last[1] - self.done)


def parse_progress(last: bytes | None, done: bytes | None) -> Progress:
    """Progress from the fields of a stream's counts."""
    ms, _, number = (last or b"0-0").partition(b"-")
    return Progress((int(ms), int(number)), int(done or 0))


async def progress(keys: Keys, connection: Connection, epoch: int) -> dict[int, Progress]:
    """The progress of each stream of an epoch, in one round trip."""
    calls = [(b"HMGET", keys.counts(epoch, p), b"last", b"done") for p in range(keys.partitions)]
    replies = await commands(connection, calls)
    return {p: parse_progress(*reply) for p, reply in enumerate(replies)}


@dataclass(slots=True)
class _Term:
    """Where this reader is in the streams of an epoch, as the holder of one lease."""

    fence: int
    positions: dict[int, str]
    attached: bool = False
    damaged: int = field(default=0)
    # Entries to ask for, of each partition.
    ask: int = FIRST_ENTRIES


class RatingsStream:
    """Reads and trims the streams. `blocking`: a connection of its own, on which the store may block."""

    def __init__(self, keys: Keys, connection: Connection, blocking: Connection) -> None:
        self._keys = keys
        self._connection = connection
        self._blocking = blocking
        self._opened = False
        self._terms: dict[int, _Term] = {}
        self._lock = asyncio.Lock()

    async def read(self, epoch: int, lease: Lease, count: int, block_ms: int) -> Events:
        """Events after those read before under this lease, about `count` a partition; none after `block_ms`.

        Entries come whole: one a partition at least, and as many as `count` allows were all as large as the
        largest that came last, but at most twice as many as then. The first read of a lease begins at the
        oldest entry that was not `done` as a whole. Raises `LeaseLost`, `EpochGone`, `StoreUnavailable`
        (nothing is lost, read again).
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
            events = self._decode(epoch, term, reply or [], count)
            term.attached = True
            return events

    async def close(self) -> None:
        """Close the connection on which the store may block."""
        await self._blocking.close()

    def restart(self, epoch: int) -> None:
        """Read again from the oldest event that is not `done`: the reader has lost what it read."""
        term = self._terms.get(epoch)
        if term is not None:
            term.positions, term.attached = dict.fromkeys(term.positions, START), False

    async def done(self, epoch: int, lease: Lease, last: Mapping[int, str]) -> None:
        """Trim each partition up to and including its stream id: these events are archived. Safe to repeat.
        An entry goes with its last event.

        Raises `LeaseLost` when a later leader has attached.
        """
        calls = []
        for partition, stream_id in last.items():
            ms, _, seq = stream_id.partition("-")
            names = [self._keys.ratings(epoch, partition), self._keys.counts(epoch, partition)]
            number = int(seq or 0)
            first = f"{ms}-{number + 1}".encode()
            calls.append(encode_call("trim", names, [b"%d" % lease.fence, first, b"%d" % number]))
        for reply in await call_many(self._connection, calls):
            if reply[0] != b"OK":
                raise LeaseLost("another trainer reads the stream")

    async def lag(self, epoch: int) -> dict[int, int]:
        """Events that are not `done`, by partition."""
        found = await progress(self._keys, self._connection, epoch)
        return {partition: each.waiting for partition, each in found.items()}

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
            b"%d" % min(term.ask, count),
            *block,
            b"NOACK",
            b"STREAMS",
            *streams,
            *([b">"] * len(streams)),
        )
        if not self._opened:
            # Only a trainer reads the stream: a service has no such connection.
            await self._blocking.open()
            self._opened = True
        (reply,) = await self._blocking.execute(payload, 1, wait_s=block_ms / 1000)
        if isinstance(reply, ReplyError):
            if error_code(reply) in {"NOGROUP", "UNBLOCKED"}:
                raise LeaseLost("another trainer reads the stream")
            raise self._blocking.failure(reply)
        return reply

    def _decode(self, epoch: int, term: _Term, reply: list[Any], count: int) -> Events:
        partition_of = {self._keys.ratings(epoch, partition): partition for partition in term.positions}
        partitions: list[int] = []
        ids: list[bytes] = []
        fields: list[list[bytes]] = []
        positions = dict(term.positions)
        more = False
        for stream, entries in reply:
            if not entries:
                continue
            partition = partition_of[stream]
            positions[partition] = entries[-1][0].decode()
            partitions += [partition] * len(entries)
            ids += [entry[0] for entry in entries]
            fields += [entry[1] for entry in entries]
            more |= len(entries) >= min(term.ask, count)
        term.positions = positions
        parts = [stream_id.split(b"-") for stream_id in ids]
        last = np.array([int(number) for _, number in parts], dtype=np.int64)
        found, damaged = unpack(fields, last)
        term.damaged += len(damaged)
        if len(found.entry):
            largest = int(np.bincount(found.entry).max())
            term.ask = max(1, min(2 * term.ask, count // largest))
        return Events(
            partition=np.array(partitions, dtype=np.int32)[found.entry],
            stream_ms=np.array([int(ms) for ms, _ in parts], dtype=np.int64)[found.entry],
            stream_seq=found.number,
            users=found.users,
            user=found.user,
            n=found.n,
            item_row=found.table["item_row"].astype(np.int64),
            rating=found.table["rating"].astype(np.float64),
            time=found.table["time"].astype(np.float64),
            more=more,
        )
