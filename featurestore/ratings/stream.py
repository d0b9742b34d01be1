"""Rating events as the trainer reads them. Invariant: an event that was not `done` comes again to the next
leader, and one leader at a time gets any.

Each term of leadership has a consumer group of its own on every partition, named by the fence. Attaching
destroys the groups of earlier terms in the same step, so that a leader that was replaced gets `LeaseLost` in
place of events, and its `done` is refused. Nothing is acknowledged one by one: events stay in the stream
until `done` trims them, and after any error the group is set back to where this reader was.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float32s, Float64s, Int32s, Int64s, UInt8s
from featurestore.client import Client
from featurestore.codecs import ENTRY_BYTES, ENTRY_DTYPE, FORGOTTEN_ROW, impossible, rated_items
from featurestore.contexts import codec as contexts
from featurestore.errors import EpochGone, StoreChanged, StoreDamaged, StoreError
from featurestore.keys import Keys, shown_key, whole
from featurestore.leases import Lease
from featurestore.namespace import StoredScale
from featurestore.ratings.batches import CONTEXT_LENGTH_DTYPE, LENGTH_DTYPE, NUMBER_DTYPE
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many
from featurestore.wire.resp import encode

START = b"0-0"
# An entry holds one event or thousands: how many are asked for follows from those that came.
FIRST_ENTRIES = 16


@dataclass(frozen=True, slots=True)
class Events:
    """Rating events as columns, in stream order within a partition.

    `partition` int32 (m,); `stream_ms`, `stream_seq` int64 (m,): where the event is in its stream; `users`:
    ids; `user` int64 (m,): position in `users`; `n` int64 (m,); `item_row` int64 (m,), that of the
    item, `codecs.FORGOTTEN_ROW` where the user was forgotten; `type_code` uint8 (m,), 0 for a rating;
    `rating` (NaN deletes), `time` float64 (m,). `more`: a partition gave as many entries as it was asked for,
    so others may wait. `context` float32 (m, k): what was told with each, NaN what was not; None where with
    none was anything.
    """

    partition: Int32s
    stream_ms: Int64s
    stream_seq: Int64s
    users: list[bytes]
    user: Int64s
    n: Int64s
    item_row: Int64s
    type_code: UInt8s
    rating: Float64s
    time: Float64s
    more: bool = False
    context: Float32s | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_items(self) -> int:
        """One more than the highest item row; 0 without any."""
        return int(self.item_row.max(initial=-1, where=self.item_row != FORGOTTEN_ROW)) + 1

    @property
    def last(self) -> dict[int, tuple[int, int]]:
        """Where the last event of each partition is (ms, number)."""
        # Events of a partition stand together.
        ends = np.flatnonzero(np.diff(self.partition, append=-1)).tolist()
        return {int(self.partition[k]): (int(self.stream_ms[k]), int(self.stream_seq[k])) for k in ends}

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


@dataclass(slots=True)
class _Reading:
    """Where this reader is in the streams of an epoch, as the holder of one lease."""

    fence: int
    positions: dict[int, bytes]
    attached: bool = False
    # Entries to ask for, of each partition.
    ask: int = FIRST_ENTRIES


class RatingsStream:
    """Reads and trims the streams, for one task an epoch."""

    def __init__(self, keys: Keys, connection: Connection, client: Client, scale: StoredScale) -> None:
        self._keys = keys
        self._connection = connection
        self._client = client
        self._scale = scale
        self._readings: dict[int, _Reading] = {}

    async def read(self, epoch: int, lease: Lease, count: int, block_ms: int) -> Events:
        """Events after those read before under this lease, about `count` a partition; none after `block_ms`.

        Entries come whole: one a partition at least, and as many as `count` allows were all as large as the
        largest that came last, but at most twice as many as then. The first read of a lease begins at the
        oldest entry that was not `done` as a whole. Raises `LeaseLost`, `EpochGone`, `StoreUnavailable`
        (nothing is lost, read again).
        """
        reading = await self.attach(epoch, lease)
        # Until the reply is here it is not known how far the store believes this reader is.
        reading.attached = False
        ask = min(reading.ask, count)
        names = [self._keys.ratings(epoch, partition) for partition in reading.positions]
        # Without NOACK the store would keep a list of all that is not acknowledged, which is never done here.
        block = ("BLOCK", block_ms) if block_ms > 0 else ()
        group = ("GROUP", b"trainer-%d" % reading.fence, "trainer", "COUNT", ask, *block, "NOACK")
        try:
            # The name as bytes, which redis-py does not know: it would make a dictionary of each entry.
            reply = await self._client.execute_command(
                b"XREADGROUP", *group, "STREAMS", *names, *([">"] * len(names))
            )
        except StoreError as exc:
            if "NOGROUP" not in str(exc) and "UNBLOCKED" not in str(exc):
                raise
            # While this read waited or before, the next leader has destroyed the group, or the epoch was
            # removed with it: attaching again tells which.
            await self.attach(epoch, lease)
            return self._decode(epoch, [], ask)[0]
        partition_of = dict(zip(names, reading.positions, strict=True))
        streams = [(partition_of[name], entries) for name, entries in reply or () if entries]
        # Before anything is marked as read: what is damaged comes again.
        events, largest = self._decode(epoch, streams, ask)
        reading.positions |= {partition: entries[-1][0] for partition, entries in streams}
        reading.attached = True
        if largest:
            reading.ask = max(1, min(2 * reading.ask, count // largest))
        return events

    async def rest(
        self, epoch: int, after: Mapping[int, tuple[int, int]], count: int
    ) -> AsyncIterator[Events]:
        """Yield the events of an epoch that takes no more, after the positions `after` (ms, number); of up to
        `count` entries a partition at a time. Nothing is marked as read.
        """
        places = {p: b"%d-%d" % after.get(p, (0, 0)) for p in range(self._keys.partitions)}
        while True:
            pipe = self._client.pipeline()
            for partition, place in places.items():
                pipe.xrange(self._keys.ratings(epoch, partition), b"(" + place, b"+", count)
            replies = zip(places, await pipe.execute(), strict=True)
            # redis-py makes a dictionary of the fields; here they are as the wire has them.
            streams = [
                (partition, [(entry, list(chain.from_iterable(fields.items()))) for entry, fields in entries])
                for partition, entries in replies
                if entries
            ]
            if not streams:
                return
            places |= {partition: entries[-1][0] for partition, entries in streams}
            yield self._decode(epoch, streams, count)[0]

    async def entries_at(
        self, epoch: int, positions: Mapping[int, tuple[int, int]]
    ) -> dict[int, tuple[int, int]]:
        """Where the first entry at or after each position (ms, number) ends; a partition without one is left
        out.
        """
        pipe = self._client.pipeline()
        for partition, (ms, number) in positions.items():
            pipe.xrange(self._keys.ratings(epoch, partition), b"%d-%d" % (ms, number), b"+", 1)
        found = zip(positions, await pipe.execute(), strict=True)
        ids = {partition: entries[0][0].split(b"-") for partition, entries in found if entries}
        return {partition: (int(ms), int(number)) for partition, (ms, number) in ids.items()}

    def restart(self, epoch: int) -> None:
        """Read again from the oldest event that is not `done`: the reader has lost what it read."""
        reading = self._readings.get(epoch)
        if reading is not None:
            # The group in the store goes on behind what it gave last: attaching sets it back.
            reading.positions, reading.attached = dict.fromkeys(reading.positions, START), False

    async def done(self, epoch: int, lease: Lease, last: Mapping[int, tuple[int, int]]) -> None:
        """Trim each partition up to and including its event at `last` (ms, number): these are archived. Safe
        to repeat. An entry goes with its last event.

        Raises `LeaseLost` when a later leader has attached, `StoreChanged` when the store does not know these
        events.
        """
        calls = [
            (
                [self._keys.ratings(epoch, partition), self._keys.counts(epoch, partition)],
                [b"%d" % lease.fence, b"%d-%d" % (ms, number + 1), b"%d" % number],
            )
            for partition, (ms, number) in last.items()
        ]
        # A call for each partition: on a cluster each has a slot of its own.
        if [b"AHEAD"] in await self._client.call("trim", *calls):
            raise StoreChanged("the store has lost events that were archived")

    async def progress(self, epoch: int, partitions: Iterable[int] | None = None) -> dict[int, Progress]:
        """How far the stream of each partition is, or of these alone, in one round trip."""
        # By the wire: POST /ratings of several partitions asks for it before it writes.
        asked = range(self._keys.partitions) if partitions is None else partitions
        keys = {partition: self._keys.counts(epoch, partition) for partition in asked}
        calls = [encode(b"HMGET", key, b"last", b"done") for key in keys.values()]
        found: dict[int, Progress] = {}
        for (partition, key), (last, done) in zip(
            keys.items(), await call_many(self._connection, calls), strict=True
        ):
            ms, _, number = (START if last is None else last).partition(b"-")
            found[partition] = Progress(
                (whole(ms, key), whole(number, key)), 0 if done is None else whole(done, key)
            )
        return found

    async def lag(self, epoch: int) -> dict[int, int]:
        """Events that are not `done`, by partition."""
        return {partition: each.waiting for partition, each in (await self.progress(epoch)).items()}

    async def attach(self, epoch: int, lease: Lease) -> _Reading:
        """Take the streams of an epoch: reads and `done` of the leader before are refused from now on.

        Raises `LeaseLost`, `EpochGone`.
        """
        reading = self._readings.get(epoch)
        if reading is None or reading.fence != lease.fence:
            positions = dict.fromkeys(range(self._keys.partitions), START)
            reading = self._readings[epoch] = _Reading(lease.fence, positions)
        if not reading.attached:
            await self._attach(epoch, reading)
            reading.attached = True
        return reading

    async def _attach(self, epoch: int, reading: _Reading) -> None:
        calls = [
            (
                [self._keys.ratings(epoch, partition), self._keys.epochs(partition)],
                [b"%d" % epoch, b"%d" % reading.fence, position],
            )
            for partition, position in reading.positions.items()
        ]
        if [b"GONE"] in await self._client.call("attach", *calls):
            raise EpochGone(epoch)

    def _decode(
        self, epoch: int, streams: Sequence[tuple[int, Sequence[tuple[bytes, Sequence[bytes]]]]], ask: int
    ) -> tuple[Events, int]:
        """Return the events of entries (id, fields) by partition, of which `ask` each were asked for, and how
        many the largest entry had. Raises `StoreDamaged`.
        """
        entries = [(partition, *entry) for partition, some in streams for entry in some]
        ids = [stream_id.split(b"-") for _, stream_id, _ in entries]
        numbers = np.array([int(number) for _, number in ids], dtype=np.int64)
        found, damaged = unpack([fields for _, _, fields in entries], numbers)
        marks = found.table["item_row"] == FORGOTTEN_ROW
        bad = found.entry[impossible(found.table, self._scale.stored) & ~marks]
        for k in [*damaged, *bad.tolist()]:
            # Left out here it would be trimmed with those after it.
            number, stream_id, _ = entries[k]
            key = shown_key(self._keys.ratings(epoch, number))
            raise StoreDamaged(key, f"entry {stream_id.decode()} is not what was written")
        partition = np.array([number for number, _, _ in entries], dtype=np.int32)
        events = Events(
            partition=partition[found.entry],
            stream_ms=np.array([int(ms) for ms, _ in ids], dtype=np.int64)[found.entry],
            stream_seq=found.number,
            users=found.users,
            user=found.user,
            n=found.n,
            item_row=found.table["item_row"].astype(np.int64),
            type_code=np.ascontiguousarray(found.table["type_code"]),
            rating=found.table["rating"].astype(np.float64),
            time=found.table["time"].astype(np.float64),
            more=any(len(some) >= ask for _, some in streams),
            context=found.context,
        )
        return events, int(np.bincount(found.entry).max(initial=0))


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Events of several entries, in order.

    `entry`, `number`: int64 (m,), the position of an event's entry and the event's own number in the stream;
    `users`: ids; `user` int64 (m,): position in `users`; `n` int64 (m,); `table`: history entries (m,);
    `context` float32 (m, k): what was told with each, None where nothing was.
    """

    entry: Int64s
    number: Int64s
    users: list[bytes]
    user: Int64s
    n: Int64s
    table: npt.NDArray[Any]
    context: Float32s | None = None


def unpack(fields: Sequence[Sequence[bytes]], last: Int64s) -> tuple[Unpacked, list[int]]:
    """Events of entries with these `fields` and `last` numbers (k,); positions of entries that are damaged
    and were left out.
    """
    sound = [k for k, of in enumerate(fields) if _is_sound(of)]
    users: list[bytes] = []
    for k in sound:
        ids = fields[k][3]
        # Of one user, as in a rating that comes by itself, without the arrays.
        first = len(fields[k][1]) // NUMBER_DTYPE.itemsize * LENGTH_DTYPE.itemsize
        if first == LENGTH_DTYPE.itemsize:
            users.append(ids[first:])
        else:
            stops = first + np.cumsum(np.frombuffer(ids[:first], LENGTH_DTYPE), dtype=np.int64)
            users += [ids[start:stop] for start, stop in pairwise([first, *stops.tolist()])]
    numbers = np.frombuffer(b"".join([fields[k][1] for k in sound]), dtype=NUMBER_DTYPE)
    table = np.frombuffer(b"".join([fields[k][5] for k in sound]), dtype=ENTRY_DTYPE)
    of_user = numbers["events"].astype(np.int64)
    user = np.repeat(np.arange(len(users)), of_user)
    size = np.array([len(fields[k][5]) // ENTRY_BYTES for k in sound], dtype=np.int64)
    entry = np.repeat(np.array(sound, dtype=np.int64), size)
    position = np.arange(len(table))
    unpacked = Unpacked(
        entry=entry,
        # An entry has the number of its last event.
        number=last[entry] + 1 + position - np.repeat(np.cumsum(size), size),
        users=users,
        user=user,
        n=(numbers["before"].astype(np.int64) + 1 + of_user - np.cumsum(of_user))[user] + position,
        table=table,
        context=_contexts(fields, sound, table, user),
    )
    damaged = sorted(set(range(len(fields))) - set(sound))
    return unpacked, damaged


def _contexts(
    fields: Sequence[Sequence[bytes]], sound: Sequence[int], table: npt.NDArray[Any], user: Int64s
) -> Float32s | None:
    """Return the contexts of the events `table` (m,) of the `sound` entries, whose users are `user` (m,)."""
    if all(len(fields[k]) == 6 for k in sound):
        return None
    pieces, owner, first = list[bytes](), list[int](), 0
    for k in sound:
        count = len(fields[k][1]) // NUMBER_DTYPE.itemsize
        if len(fields[k]) > 6:
            pieces += _pieces(fields[k][7], count)
            owner += range(first, first + count)
        first += count
    every, of_entry = contexts.of_users(pieces, owner)
    return contexts.match(rated_items(table), table["time"].astype(np.float64), every, (user, of_entry))


def _pieces(field: bytes, count: int) -> list[bytes]:
    """The contexts of each of the `count` users of an entry."""
    first = count * CONTEXT_LENGTH_DTYPE.itemsize
    stops = first + np.cumsum(np.frombuffer(field[:first], CONTEXT_LENGTH_DTYPE), dtype=np.int64)
    return [field[start:stop] for start, stop in pairwise([first, *stops.tolist()])]


def _has_sound_contexts(field: bytes, count: int) -> bool:
    first = count * CONTEXT_LENGTH_DTYPE.itemsize
    if len(field) < first:
        return False
    length = int(np.frombuffer(field, CONTEXT_LENGTH_DTYPE, count).sum(dtype=np.int64))
    return length == len(field) - first and all(contexts.unpack(each).sound for each in _pieces(field, count))


def _is_sound(fields: Sequence[bytes]) -> bool:
    if len(fields) not in (6, 8) or fields[0] != b"n" or fields[2] != b"u" or fields[4] != b"e":
        return False
    numbers, ids, entries = fields[1], fields[3], fields[5]
    count, rest = divmod(len(numbers), NUMBER_DTYPE.itemsize)
    if rest or not count or len(ids) < count * LENGTH_DTYPE.itemsize:
        return False
    if count == 1:
        length, events = int.from_bytes(ids[:2], "little"), int.from_bytes(numbers[8:12], "little")
    else:
        length = int(np.frombuffer(ids, LENGTH_DTYPE, count).sum(dtype=np.int64))
        events = int(np.frombuffer(numbers, NUMBER_DTYPE)["events"].sum(dtype=np.int64))
    if len(fields) == 8 and not (fields[6] == b"x" and _has_sound_contexts(fields[7], count)):
        return False
    return length == len(ids) - count * LENGTH_DTYPE.itemsize and events * ENTRY_BYTES == len(entries)
