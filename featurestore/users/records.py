"""The door to user records: reads them by the counter rule, and folds in the users whose record is behind.

Invariant: every answer rests on all ratings that the store had when it was asked. A user who is behind is
folded in with the item table of the same generation, answered from that, and written back.
"""

import asyncio
import logging
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float32s, Int64s, Scale
from featurestore import codecs
from featurestore.client import Client
from featurestore.codecs import ENTRY_BYTES, History, RecordCorrupt
from featurestore.contexts import codec as context_codec
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Kept
from featurestore.id_columns import Ids, distinct
from featurestore.keys import Keys, digest_of, partition_of, record_field, shown_key, whole
from featurestore.users import counter_rule
from featurestore.users.batch_lookup import LookupReader, write_lookups
from featurestore.users.copies import UserCopies
from featurestore.users.counter_rule import Profile, UserLookup
from featurestore.users.fold_in import FoldedUsers, StaleUser, blocks, fold_in
from featurestore.users.histories import CALLS_AT_ONCE, HistoryReader, Look, due_after, pack_sample
from featurestore.wire.connection import Connection, swallow
from featurestore.wire.functions import encode_call
from featurestore.wire.resp import ReplyError

log = logging.getLogger(__name__)

# A fold-in of so many ratings takes about as long as the hand-over to a thread costs; contexts take as long
# by the byte (0.4 to 0.5 ms for 40 KB, with 5 and with 32 fields).
INLINE_BYTES = 2_000 * ENTRY_BYTES
# Lookups in one write: the store works on the first ones while the next are written, and on those while the
# first are read.
LOOKUPS_AT_ONCE = 2_048
# So few are looked up in less time with an object for each.
FEW_LOOKUPS = 256
# A worker that has not polled for so long may have missed a change of histories: after 2 s without a beat it
# is not waited for, and the last beat may be half a second older than the last poll.
FOLLOWED_S = 1.2
# Keys that the store looks at in one step of a scan: a fraction of a millisecond, in which lookups wait.
SCANNED_AT_ONCE = 1_000
# A lookup up to the end of the key, and behind that; lengths go before what they are of.
LOOKUP_HEAD = b"*4\r\n$5\r\nHMGET\r\n$%d\r\n%b"
LOOKUP_TAIL = b"\r\n$1\r\nn\r\n$%d\r\n%b\r\n"


@dataclass(frozen=True, slots=True)
class CurrentUsers:
    """Users as of now. `n` int64 (u,); `vectors` float32 (u, user_width), read only; `folded` bool (u,):
    which were folded in for this answer.
    """

    n: Int64s
    vectors: Float32s
    folded: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StoredUser:
    """What is stored of a user: `n` and the history, as entries (see `codecs`), and its contexts
    (`contexts/codec.py`).
    """

    user_id: bytes
    partition: int
    n: int
    history: bytes
    contexts: bytes = b""


class UserRecords:
    """Reads user records. Safe for any number of tasks of one event loop; every method may raise
    `StoreUnavailable`, and `StoreDamaged` of what is stored of a user. `scale`: of the ratings; `copies`:
    keep what is read here, where they are wanted.
    """

    def __init__(
        self,
        keys: Keys,
        connection: Connection,
        client: Client,
        scale: Scale,
        copies: UserCopies | None = None,
    ) -> None:
        self._keys = keys
        self._scale = scale
        self._connection = connection
        self._client = client
        self.copies = copies
        self._histories = HistoryReader(keys, connection)
        self.kept = Kept(frozenset())
        # When a follower polled last, by `time.monotonic`; infinite where none says which history is live.
        self.followed_at = float("inf")
        # The blocks of one batch leave before those of the next, so that its answers come first.
        self._one_batch = asyncio.Lock()
        self.folded_total = 0
        self.corrupt_total = 0

    def polled(self, kept: Kept, now: float) -> None:
        """Take in what the store said at `now`, by `time.monotonic`: which generations it keeps."""
        self.kept, self.followed_at = kept, now
        if self.copies is not None:
            self.copies.age(now)

    def serves(self, generations: Set[tuple[int, int]]) -> None:
        """Take in which generations (epoch, number) this process serves: copies of others are dropped."""
        if self.copies is not None:
            self.copies.serve(generations)

    async def lookup(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> UserLookup:
        """Read users by the counter rule, with one write and one round trip; none is folded in."""
        self._require_followed()
        field = record_field(live.generation)
        heads = [LOOKUP_HEAD % (len(key), key) for key in self._keys.users(live.epoch, user_ids)]
        # The tail ends each command.
        tail = LOOKUP_TAIL % (len(field), field)
        asked = self._connection.execute(tail.join([*heads, b""]), len(heads), at_once=True)
        found = counter_rule.apply(live, user_ids, await asked)
        if self.copies is not None:
            self.copies.keep_lookup(live, user_ids, found)
        return found

    async def catch_up(self, live: LiveGeneration, lookup: UserLookup) -> CurrentUsers:
        """Fold in the users of `lookup` who are behind, and write them back without waiting for it.

        One round trip when there are any, none otherwise. Raises `StoreDamaged` for the first user of whom
        that cannot be done.
        """
        folded = np.zeros(len(lookup.n), dtype=np.bool_)
        if not lookup.behind:
            return CurrentUsers(lookup.n, lookup.vectors, folded)
        positions: dict[bytes, list[int]] = {}
        for position, user_id in zip(lookup.behind, lookup.behind_ids, strict=True):
            positions.setdefault(user_id, []).append(position)
        user_ids = list(positions)
        looks = await self._look(live, user_ids)
        # Another reader may have written a record back meanwhile.
        again = counter_rule.apply(live, user_ids, [look.state for look in looks])
        n, vectors = lookup.n.copy(), lookup.vectors.copy()
        for k, user_id in enumerate(user_ids):
            n[positions[user_id]], vectors[positions[user_id]] = again.n[k], again.vectors[k]
        stale = [await self._stale(live, user_ids[k], looks[k]) for k in again.behind]
        for block in blocks(stale):
            result = await self._fold_in(live, block)
            for user, vector in zip(block, result.vectors, strict=True):
                places = positions[user.user_id]
                n[places], vectors[places], folded[places] = user.n, vector, True
        return CurrentUsers(n, vectors, folded)

    async def current(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> CurrentUsers:
        """Users by the counter rule; an unknown one is the prior with `n` 0.

        One round trip, two when some are behind. Those are folded in together, in a thread when they are
        many.
        """
        if len(user_ids) > LOOKUPS_AT_ONCE:
            users, index = await self.current_distinct(live, Ids.of(user_ids))
            return CurrentUsers(users.n[index], users.vectors[index], users.folded[index])
        return await self.catch_up(live, await self.lookup(live, user_ids))

    async def current_distinct(self, live: LiveGeneration, user_ids: Ids) -> tuple[CurrentUsers, Int64s]:
        """`current` of a large batch, each user once, and the row (m,) of each of `user_ids` in that."""
        if len(user_ids) <= FEW_LOOKUPS:
            rows: dict[bytes, int] = {}
            index = [rows.setdefault(user_id, len(rows)) for user_id in user_ids]
            return await self.current(live, list(rows)), np.array(index, dtype=np.int64)
        users, index_of = distinct(user_ids)
        lookup, row_of = await self._lookup_batch(live, users)
        current = await self.catch_up(live, lookup)
        return current, row_of if index_of is None else row_of[index_of]

    async def profile(self, live: LiveGeneration, user_id: bytes) -> Profile:
        """One user with the history that the vector rests on; one round trip, but for a long history that has
        no sample yet.
        """
        profile = await self._profile(live, user_id)
        if self.copies is not None:
            self.copies.keep_profile(live, user_id, profile)
        return profile

    async def _profile(self, live: LiveGeneration, user_id: bytes) -> Profile:
        self._require_followed()
        field, wanted = record_field(live.generation), live.user_attributes is not None
        look = await self._histories.look(live.epoch, field, user_id, attributes=wanted)
        look = await self._histories.with_part(live.epoch, field, user_id, look)
        lookup = counter_rule.apply(live, [user_id], [look.state])
        if lookup.behind:
            stale = await self._stale(live, user_id, look)
            folded = await self._fold_in(live, [stale])
            history, whole = folded.histories[0], stale.whole
            return Profile(stale.n, folded.vectors[0], history, True, whole, stale.attributes)
        data = b"" if look.n is None else look.part or b""
        history = await self._unpacked(live.epoch, user_id, data, look)
        n, vector = int(lookup.n[0]), lookup.vectors[0]
        return Profile(n, vector, history, False, look.whole, look.attributes or b"")

    async def history(self, epoch: int, user_id: bytes) -> tuple[int, History]:
        """`n` and the effective history, as of one moment; 0 and nothing for an unknown user.

        One round trip, and one more for each 1 MB of it.
        """
        self._require_followed()
        look = await self._histories.look(epoch, b"n", user_id)
        look = await self._histories.with_all(epoch, b"n", user_id, look)
        return look.n or 0, await self._unpacked(epoch, user_id, look.tail, look)

    async def _unpacked(self, epoch: int, user_id: bytes, data: bytes, look: Look) -> History:
        given = epoch, user_id, data, look.contexts, len(look.contexts) == look.contexts_size
        if len(data) + len(look.contexts) > INLINE_BYTES:
            return await asyncio.to_thread(self._history, *given)
        return self._history(*given)

    def _history(
        self, epoch: int, user_id: bytes, data: bytes, contexts: bytes, whole_contexts: bool
    ) -> History:
        try:
            history = codecs.unpack_history(data, self._scale)
        except RecordCorrupt as exc:
            raise StoreDamaged(shown_key(self._keys.history(epoch, user_id)), str(exc)) from exc
        if not contexts:
            return history
        found = context_codec.unpack(contexts, whole=whole_contexts)
        if not found.sound:
            # They count as not given: ratings are worth more than what was told with them.
            self.corrupt_total += 1
            log.warning("contexts damaged: %s", shown_key(self._keys.user_contexts(epoch, user_id)))
        return codecs.with_contexts(history, found)

    async def stored(self, epoch: int, user_ids: Sequence[bytes]) -> list[StoredUser]:
        """Each user as of one moment; `n` 0 and nothing for a user who is unknown, or whose key has the wrong
        type.
        """
        found: list[StoredUser] = []
        looks = await self._histories.look_many(epoch, b"n", user_ids)
        for user_id, look in zip(user_ids, looks, strict=True):
            partition = partition_of(user_id, self._keys.partitions)
            if isinstance(look, ReplyError):
                found.append(StoredUser(user_id, partition, 0, b""))
            else:
                all_of_it = await self._histories.with_all(epoch, b"n", user_id, look)
                state = all_of_it.n or 0, all_of_it.tail, all_of_it.contexts
                found.append(StoredUser(user_id, partition, *state))
        return found

    async def parts(self, epoch: int, user_ids: Sequence[bytes]) -> list[History]:
        """The part of each user's history that a vector rests on (see `Profile`); nothing for a user who is
        unknown, or whose key has the wrong type. One round trip, but for long histories without a sample.
        """
        found = []
        looks = await self._histories.look_many(epoch, b"n", user_ids)
        for user_id, look in zip(user_ids, looks, strict=True):
            part = Look(None, None, b"", 0)
            if not isinstance(look, ReplyError):
                part = await self._histories.with_part(epoch, b"n", user_id, look)
            found.append(await self._unpacked(epoch, user_id, part.part or b"", part))
        return found

    async def scan(self, epoch: int, partition: int, cursor: int = 0) -> tuple[int, list[StoredUser]]:
        """The cursor of the next users of a partition, 0 at the end, and what is stored of these.

        Starts at cursor 0. May be repeated; as with `SCAN`, a user may come twice. Raises `StoreError`.
        """
        prefix = self._keys.user_prefixes(epoch)[partition]
        found: Any
        cursor, found = await self._client.scan(cursor, prefix + b"*", SCANNED_AT_ONCE)
        user_ids = [key.removeprefix(prefix) for key in found]
        pipe = self._client.pipeline()
        for user_id in user_ids:
            pipe.hget(self._keys.user(epoch, user_id), "n")
            pipe.get(self._keys.history(epoch, user_id))
        # After the histories: a context that came with one of their entries is said to be there.
        pipe.hget(self._keys.counts(epoch, partition), "contexts")
        *replies, any_contexts = await pipe.execute()
        contexts = await self._contexts(epoch, user_ids) if any_contexts else [b""] * len(user_ids)
        for user_id, history in zip(user_ids, replies[1::2], strict=True):
            if len(history or b"") % ENTRY_BYTES:
                key = shown_key(self._keys.history(epoch, user_id))
                raise StoreDamaged(key, f"{len(history)} bytes are no entries of {ENTRY_BYTES}")
        users = [
            StoredUser(user_id, partition, whole(n, self._keys.user(epoch, user_id)), history or b"", given)
            for user_id, n, history, given in zip(
                user_ids, replies[::2], replies[1::2], contexts, strict=True
            )
            if n is not None
        ]
        return cursor, users

    async def _contexts(self, epoch: int, user_ids: Sequence[bytes]) -> list[bytes]:
        pipe = self._client.pipeline()
        for user_id in user_ids:
            pipe.get(self._keys.user_contexts(epoch, user_id))
        return [given or b"" for given in await pipe.execute()]

    def write_back(self, live: LiveGeneration, users: Sequence[StaleUser], folded: FoldedUsers) -> None:
        """Store the records of users who were folded in, unless newer ones are there or the users were
        forgotten, without waiting for it: where it fails, the next reader folds in again.
        """
        keys, calls = self._keys, []
        n = np.array([user.n for user in users], dtype=np.int64)
        records = codecs.pack_records(n, folded.vectors)
        if self.copies is not None:
            self.copies.keep(live, [user.user_id for user in users], records)
        for user, record, history in zip(users, records, folded.histories, strict=True):
            names = [
                keys.user(live.epoch, user.user_id),
                keys.history(live.epoch, user.user_id),
                keys.forgotten(live.epoch, partition_of(user.user_id, keys.partitions)),
                keys.user_contexts(live.epoch, user.user_id),
            ]
            args = [
                *(record_field(live.generation), record, digest_of(user.user_id)),
                *(b"%d" % self.kept.upto, self.kept.fields, user.described),
                b"1" if user.damaged else b"",
            ]
            # Of a history that is mostly superseded only what holds is kept, unless a rating came in since.
            compacted = user.whole and codecs.worth_compacting(user.history, history)
            if compacted or user.renews:
                entries = history.entries if compacted else user.entries
                due = due_after(entries, history.entries) if user.whole else user.due
                args += [
                    b"%d" % user.n,
                    codecs.pack_history(history) if compacted else b"",
                    pack_sample(user.n, user.n - entries, due, history, user.has_events)
                    if user.renews
                    else b"",
                    codecs.pack_contexts(history) if compacted else b"",
                ]
            calls.append(encode_call("put_record", names, args))
        for start in range(0, len(calls), CALLS_AT_ONCE):
            some = calls[start : start + CALLS_AT_ONCE]
            self._connection.execute(b"".join(some), len(some)).add_done_callback(swallow)

    async def _lookup_batch(self, live: LiveGeneration, users: Ids) -> tuple[UserLookup, Int64s]:
        """Look up a large batch without an object for each user: in the order in which they were asked, and
        the row of each of `users` in that, (m,).
        """
        self._require_followed()
        prefixes = self._keys.user_prefixes(live.epoch)
        field = record_field(live.generation)
        lookups = write_lookups(users, prefixes, LOOKUP_HEAD, LOOKUP_TAIL % (len(field), field))
        users = users.take(lookups.order)
        n = np.zeros(len(users), dtype=np.int64)
        records = np.empty(len(users), dtype=live.record_dtype)
        vectors = records["vector"]
        pending = []
        async with self._one_batch:
            for part, payload in lookups.blocks(LOOKUPS_AT_ONCE):
                reader = LookupReader(n[part], records[part])
                size = part.stop - part.start
                replies = self._connection.execute(payload, size, at_once=True, reader=reader)
                # Where one fails the others are not awaited.
                replies.add_done_callback(swallow)
                pending.append((part, replies))
                # Others get their turn.
                await asyncio.sleep(0)
        behind: list[int] = []
        for part, replies in pending:
            found = await replies
            if found:
                block = counter_rule.apply(live, [b""] * len(found), found)
                n[part], vectors[part] = block.n, block.vectors
                behind += [part.start + position for position in block.behind]
            else:
                some = counter_rule.behind(n[part], records[part])
                behind += (part.start + some).tolist()
        behind_ids = list(users.take(np.array(behind, dtype=np.int64))) if behind else []
        row_of = np.empty(len(users), dtype=np.int64)
        row_of[lookups.order] = np.arange(len(users))
        return UserLookup(n, vectors, behind, behind_ids), row_of

    def _require_followed(self) -> None:
        """Raise `StoreUnavailable` where the history that this process serves may have ended meanwhile.

        So it is after the process was stopped, or cut off: what it would read lacks what others have written
        to the next history.
        """
        if time.monotonic() - self.followed_at > FOLLOWED_S:
            raise StoreUnavailable("which history is live was not heard for a while", 0.1)

    async def _look(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> list[Look]:
        """What there is of each user, all of one moment."""
        found: list[Look] = []
        looks = self._histories.look_many(
            live.epoch,
            record_field(live.generation),
            user_ids,
            attributes=live.user_attributes is not None,
        )
        for look in await looks:
            if isinstance(look, ReplyError):
                raise self._connection.failure(look)
            found.append(look)
        return found

    async def _stale(self, live: LiveGeneration, user_id: bytes, look: Look) -> StaleUser:
        field = record_field(live.generation)
        look = await self._histories.with_part(live.epoch, field, user_id, look)
        stored = look.record
        record = None if stored is None else codecs.read_record(stored, len(live.prior_record))
        damaged = record is None and stored is not None
        if damaged:
            self.corrupt_total += 1
            key = shown_key(self._keys.user(live.epoch, user_id))
            log.warning("record damaged, folded in again: %s field=%s", key, field.decode())
        return StaleUser(
            *(user_id, look.n or 0, look.part or b"", record),
            whole=look.whole,
            entries=look.entries,
            renews=look.renews,
            due=look.due,
            attributes=look.attributes or b"",
            described=look.described,
            contexts=look.contexts,
            all_contexts=len(look.contexts) == look.contexts_size,
            damaged=damaged,
        )

    async def _fold_in(self, live: LiveGeneration, users: Sequence[StaleUser]) -> FoldedUsers:
        if sum([len(user.history) + len(user.contexts) for user in users]) > INLINE_BYTES:
            folded = await live.in_thread(partial(self._fold, live, users))
        else:
            folded = self._fold(live, users)
        self.folded_total += len(users)
        # Requests that wait for these users are answered first.
        asyncio.get_running_loop().call_soon(self.write_back, live, users, folded)
        return folded

    def _fold(self, live: LiveGeneration, users: Sequence[StaleUser]) -> FoldedUsers:
        for user in users:
            if user.n < user.entries:
                # Each event has added one entry; they are compacted, and `n` never falls.
                key = shown_key(self._keys.user(live.epoch, user.user_id))
                raise StoreDamaged(key, f"n is {user.n}, and the history has {user.entries} entries")
        return fold_in(
            live,
            users,
            [
                self._history(live.epoch, user.user_id, user.history, user.contexts, user.all_contexts)
                for user in users
            ],
        )
