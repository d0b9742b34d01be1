"""Users as of now: the hot path. Invariant, the counter rule: a record counts if and only if it has seen the
user's `n`.

Who finds a record behind folds the history in with the item table of that same generation, answers from that,
and hands it back. Nothing else is cached, so there is nothing to invalidate.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from factors import Float32s, Int64s, Model
from featurestore import codecs
from featurestore.codecs import ENTRY_BYTES, History
from featurestore.generations.follower import LiveGeneration
from featurestore.generations.manifest import Kept
from featurestore.id_columns import Ids, distinct
from featurestore.keys import Keys, digest_of, partition_of, record_field
from featurestore.users.batch_lookup import LookupReader, write_lookups
from featurestore.wire.connection import Connection, ReplyError, error_code, swallow
from featurestore.wire.functions import ask_many, call, encode_call

# A fold-in of so many ratings takes about as long as the hand-over to a thread costs.
INLINE_ENTRIES = 2_000
# Bounds the memory of one fold-in; more users are folded in block by block.
BLOCK_ENTRIES = 200_000
BLOCK_USERS = 4_096
# Lookups in one write: the store works on the first ones while the next are written, and on those while the
# first are read.
LOOKUPS_AT_ONCE = 2_048
# So few are looked up in less time with an object for each.
FEW_LOOKUPS = 256
# Calls in one write to the store, so that other lookups get their turn.
CALLS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Current:
    """Users as of now. `n` int64 (u,); `vectors` float32 (u, user_width), read only; `folded` bool (u,):
    which were folded in here.
    """

    n: Int64s
    vectors: Float32s
    folded: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Profile:
    """One user as of now: `n`, `vector` float32 (user_width,), the effective history, and whether it was
    folded in here.
    """

    n: int
    vector: Float32s
    history: History
    folded: bool


@dataclass(frozen=True, slots=True)
class _Behind:
    """A user whose record does not count: what was read of it as of one moment.

    `record`: what this generation knew of the user before, if anything.
    """

    user_id: bytes
    n: int
    data: bytes
    record: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Folded:
    vectors: Float32s
    histories: list[History]


class Users:
    """Reads users. Safe for any number of tasks of one event loop; every method may raise
    `StoreUnavailable`.
    """

    def __init__(self, keys: Keys, connection: Connection) -> None:
        self._keys = keys
        self._connection = connection
        self.kept = Kept(0, b"")
        # Heads of lookups by partition and length of the id, of the epoch that was asked for last.
        self._heads: dict[tuple[int, int], bytes] = {}
        self._headed = 0
        # The blocks of one batch leave before those of the next, so that its answers come first.
        self._one_batch = asyncio.Lock()
        self.folded_total = 0
        self.corrupt_total = 0

    def read(self, epoch: int, generation: int, user_ids: Sequence[bytes]) -> "asyncio.Future[list[Any]]":
        """`[n, record]` of each user, None where there is none; one write. Error replies are values."""
        partitions, heads = self._keys.partitions, self._heads_of(epoch)
        parts = []
        for user_id in user_ids:
            place = (crc32(user_id) % partitions, len(user_id))
            head = heads.get(place)
            if head is None:
                head = heads[place] = self._head(epoch, *place)
            parts.append(head + user_id)
        # The tail ends each command.
        parts.append(b"")
        return self._connection.execute(_tail(generation).join(parts), len(user_ids), at_once=True)

    def _heads_of(self, epoch: int) -> dict[tuple[int, int], bytes]:
        if self._headed != epoch:
            self._heads.clear()
            self._headed = epoch
        return self._heads

    def _head(self, epoch: int, partition: int, id_bytes: int) -> bytes:
        """A lookup up to the id of a user of so many bytes."""
        prefix = self._keys.user_prefixes(epoch)[partition]
        return b"*4\r\n$5\r\nHMGET\r\n$%d\r\n%b" % (len(prefix) + id_bytes, prefix)

    async def current(
        self, live: LiveGeneration, user_ids: Sequence[bytes], found: Sequence[Any] | None = None
    ) -> Current:
        """Users by the counter rule; an unknown one is the prior with `n` 0.

        One round trip, two when some are behind. Those are folded in together, in a thread when they are
        many, and written back without waiting for it. `found`: what `read` said of these users, where that
        has been asked already; it saves the first round trip.
        """
        if found is not None:
            return await self._mixed(live, user_ids, found)
        if len(user_ids) > LOOKUPS_AT_ONCE:
            current, places = await self.many(live, Ids.of(user_ids))
            return Current(current.n[places], current.vectors[places], current.folded[places])
        return await self._read_back(live, user_ids, await self.read(live.epoch, live.generation, user_ids))

    async def many(self, live: LiveGeneration, user_ids: Ids) -> tuple[Current, Int64s]:
        """What `current` says of a large batch, each user once, and where each of `user_ids` stands in that,
        (m,).
        """
        if len(user_ids) <= FEW_LOOKUPS:
            seats: dict[bytes, int] = {}
            places = [seats.setdefault(user_id, len(seats)) for user_id in user_ids]
            return await self.current(live, list(seats)), np.array(places, dtype=np.int64)
        users, place = distinct(user_ids)
        prefixes = self._keys.user_prefixes(live.epoch)
        lookups = write_lookups(users, prefixes, partial(self._head, live.epoch), _tail(live.generation))
        users = users.take(lookups.order)
        stands = np.empty(len(users), dtype=np.int64)
        stands[lookups.order] = np.arange(len(users))
        current = Current(
            np.zeros(len(users), dtype=np.int64),
            np.empty((len(users), live.model.user_width), dtype=np.float32),
            np.zeros(len(users), dtype=np.bool_),
        )
        asked = []
        async with self._one_batch:
            for part, payload in lookups.blocks(LOOKUPS_AT_ONCE):
                reader = LookupReader(current.n[part], current.vectors[part])
                size = part.stop - part.start
                replies = self._connection.execute(payload, size, at_once=True, reader=reader)
                # Where one fails nobody waits for the others.
                replies.add_done_callback(swallow)
                asked.append((part, replies))
                # Others get their turn.
                await asyncio.sleep(0)
        for part, replies in asked:
            found = await replies
            if found:
                some = await self._read_back(live, list(users.take(part)), found)
                current.n[part], current.vectors[part], current.folded[part] = (
                    some.n,
                    some.vectors,
                    some.folded,
                )
        return current, stands if place is None else stands[place]

    async def _read_back(
        self, live: LiveGeneration, user_ids: Sequence[bytes], replies: Sequence[Any]
    ) -> Current:
        try:
            counters, records = zip(*replies, strict=True) if replies else ((), ())
            n = np.fromiter(map(int, counters), dtype=np.int64, count=len(counters))
            seen, vectors = codecs.unpack_records(records, live.model.user_width)
        except (TypeError, codecs.RecordCorrupt):
            return await self._mixed(live, user_ids, replies)
        if not (seen == n).all():
            return await self._mixed(live, user_ids, replies)
        return Current(n, vectors, np.zeros(len(n), dtype=np.bool_))

    async def history(self, epoch: int, user_id: bytes) -> tuple[int, History]:
        """`n` and the effective history, as of one moment; 0 and nothing for an unknown user."""
        n, _, data = await self._look(epoch, b"n", user_id)
        return int(n or 0), codecs.unpack_history(data or b"")

    async def current_with_history(self, live: LiveGeneration, user_id: bytes) -> Profile:
        """One user with the history that the record rests on; one round trip."""
        n, record, data = await self._look(live.epoch, record_field(live.generation), user_id)
        if n is None:
            return Profile(0, live.posterior.prior_user, codecs.unpack_history(b""), False)
        vector = self._vector(record, int(n), live.model)
        if vector is not None:
            return Profile(int(n), vector, await self._decoded(data or b""), False)
        folded = await self._fold(live, [_Behind(user_id, int(n), data or b"", record)])
        return Profile(int(n), folded.vectors[0], folded.histories[0], True)

    async def _look(self, epoch: int, field: bytes, user_id: bytes) -> Any:
        keys = [self._keys.user(epoch, user_id), self._keys.history(epoch, user_id)]
        return await call(self._connection, "look", keys, [field])

    async def _decoded(self, data: bytes) -> History:
        if len(data) > INLINE_ENTRIES * ENTRY_BYTES:
            return await asyncio.to_thread(codecs.unpack_history, data)
        return codecs.unpack_history(data)

    def _vector(self, record: bytes | None, n: int, model: Model) -> Float32s | None:
        if record is None:
            return None
        try:
            seen, vectors = codecs.unpack_records([record], model.user_width)
        except codecs.RecordCorrupt:
            self.corrupt_total += 1
            return None
        return vectors[0] if int(seen[0]) == n else None

    def _usable(self, reply: Any) -> bool:
        """Whether a reply says something of the user.

        A key of the wrong type harms that user, not the batch.
        """
        if not isinstance(reply, ReplyError):
            return True
        if error_code(reply) != "WRONGTYPE":
            raise self._connection.failure(reply)
        self.corrupt_total += 1
        return False

    async def _mixed(
        self, live: LiveGeneration, user_ids: Sequence[bytes], replies: Sequence[Any]
    ) -> Current:
        n = np.zeros(len(user_ids), dtype=np.int64)
        vectors = np.empty((len(user_ids), live.model.user_width), dtype=np.float32)
        vectors[:] = live.posterior.prior_user
        folded = np.zeros(len(user_ids), dtype=np.bool_)
        positions: dict[bytes, list[int]] = {}
        for position, (user_id, reply) in enumerate(zip(user_ids, replies, strict=True)):
            if not self._usable(reply) or reply[0] is None:
                continue
            n[position] = counter = int(reply[0])
            vector = self._vector(reply[1], counter, live.model)
            if vector is None:
                positions.setdefault(user_id, []).append(position)
            else:
                vectors[position] = vector
        behind: list[_Behind] = []
        for user_id, look in zip(positions, await self._looks(live, list(positions)), strict=True):
            where = positions[user_id]
            if not self._usable(look) or look[0] is None:
                n[where] = 0
                continue
            n[where] = counter = int(look[0])
            vector = self._vector(look[1], counter, live.model)
            if vector is None:
                behind.append(_Behind(user_id, counter, look[2] or b"", look[1]))
            else:
                vectors[where] = vector
        for block in _blocks(behind):
            result = await self._fold(live, block)
            for user, vector in zip(block, result.vectors, strict=True):
                vectors[positions[user.user_id]] = vector
                folded[positions[user.user_id]] = True
        return Current(n, vectors, folded)

    async def _looks(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> list[Any]:
        field = record_field(live.generation)
        looks: list[Any] = []
        for start in range(0, len(user_ids), CALLS_AT_ONCE):
            calls = [
                encode_call(
                    "look",
                    [self._keys.user(live.epoch, user_id), self._keys.history(live.epoch, user_id)],
                    [field],
                )
                for user_id in user_ids[start : start + CALLS_AT_ONCE]
            ]
            looks += await ask_many(self._connection, calls)
        return looks

    async def _fold(self, live: LiveGeneration, behind: Sequence[_Behind]) -> _Folded:
        size = sum([len(user.data) for user in behind])
        if size > INLINE_ENTRIES * ENTRY_BYTES:
            folded = await asyncio.to_thread(_fold_in, live, behind)
        else:
            folded = _fold_in(live, behind)
        self.folded_total += len(behind)
        # Who waits for these users is answered first.
        asyncio.get_running_loop().call_soon(self._hand_back, live, behind, folded)
        return folded

    def _hand_back(self, live: LiveGeneration, behind: Sequence[_Behind], folded: _Folded) -> None:
        kept = self.kept
        n = np.array([user.n for user in behind], dtype=np.int64)
        records = codecs.pack_records(n, folded.vectors)
        calls = []
        for user, record, history in zip(behind, records, folded.histories, strict=True):
            keys = [
                self._keys.user(live.epoch, user.user_id),
                self._keys.history(live.epoch, user.user_id),
                self._keys.forgotten(live.epoch, partition_of(user.user_id, self._keys.partitions)),
            ]
            args = [
                record_field(live.generation),
                record,
                digest_of(user.user_id),
                b"%d" % kept.upto,
                kept.fields,
            ]
            if codecs.worth_compacting(user.data, history):
                args += [b"%d" % user.n, codecs.pack_history(history)]
            calls.append(encode_call("put_record", keys, args))
        for start in range(0, len(calls), CALLS_AT_ONCE):
            some = calls[start : start + CALLS_AT_ONCE]
            self._connection.execute_unwatched(b"".join(some), len(some))


def _tail(generation: int) -> bytes:
    """A lookup behind the id."""
    field = record_field(generation)
    return b"\r\n$1\r\nn\r\n$%d\r\n%b\r\n" % (len(field), field)


def _fold_in(live: LiveGeneration, behind: Sequence[_Behind]) -> _Folded:
    histories = [codecs.unpack_history(user.data) for user in behind]
    packed = codecs.pack_histories(histories)
    return _Folded(live.posterior.fold_in_users(live.items, packed, current=_before(live, behind)), histories)


def _before(live: LiveGeneration, behind: Sequence[_Behind]) -> Float32s:
    """Rows (b, user_width) that these users had in this generation; the prior where there is none to go by.

    A fold-in takes over from them what only a fit learns.
    """
    rows = np.repeat(live.posterior.prior_user[None], len(behind), axis=0)
    width = live.model.user_width
    size = codecs.record_dtype(width).itemsize
    records = [(k, user.record) for k, user in enumerate(behind) if user.record and len(user.record) == size]
    if records:
        known = np.array([k for k, _ in records])
        seen, vectors = codecs.unpack_records([record for _, record in records], width)
        # A record from the future is of a history that was lost.
        earlier = seen <= np.array([behind[k].n for k in known], dtype=np.uint64)
        rows[known[earlier]] = vectors[earlier]
    return rows


def _blocks(behind: Sequence[_Behind]) -> Iterator[list[_Behind]]:
    block: list[_Behind] = []
    entries = 0
    for user in behind:
        size = len(user.data) // ENTRY_BYTES
        if block and (entries + size > BLOCK_ENTRIES or len(block) >= BLOCK_USERS):
            yield block
            block, entries = [], 0
        block.append(user)
        entries += size
    if block:
        yield block
