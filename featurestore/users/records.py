"""The door to user records: reads them by the counter rule, and folds in the users whose record is behind.

Invariant: every answer rests on all ratings that the store had when it was asked. A user who is behind is
folded in with the item table of the same generation, answered from that, and written back.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float32s, Int64s
from featurestore import codecs
from featurestore.client import Client
from featurestore.codecs import ENTRY_BYTES, History, RecordCorrupt
from featurestore.contexts import codec as context_codec
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Kept, Pointer
from featurestore.generations.served import FOLLOWED_S
from featurestore.id_columns import Ids, distinct
from featurestore.keys import Keys, digest_of, partition_of, record_field, shown_key, whole
from featurestore.namespace import StoredScale
from featurestore.users import counter_rule
from featurestore.users.batch_lookup import LookupReader, write_lookups
from featurestore.users.copies import RecentRaters, UserCopies
from featurestore.users.counter_rule import Profile, UserLookup
from featurestore.users.fold_in import INLINE_BYTES, FoldedUsers, StaleUser, blocks, fold_in, is_brief
from featurestore.users.histories import CALLS_AT_ONCE, HistoryReader, Look, due_after, pack_sample
from featurestore.wire.connection import Connection, swallow
from featurestore.wire.functions import encode_call
from featurestore.wire.resp import ReplyError

log = logging.getLogger(__name__)

# Lookups in one write: the store works on some while the next are written and those before are read.
LOOKUPS_AT_ONCE = 2_048
# So few are looked up in less time with an object for each.
FEW_LOOKUPS = 256
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
    keep what is read here, where they are wanted; `writing`: over which ratings are written.
    """

    def __init__(
        self,
        keys: Keys,
        connection: Connection,
        client: Client,
        scale: StoredScale,
        copies: UserCopies | None = None,
        *,
        writing: Connection,
    ) -> None:
        self._keys = keys
        self._writing = writing
        self._scale = scale
        self._connection = connection
        self._client = client
        self.copies = copies
        self._histories = HistoryReader(keys, connection)
        self.raters = RecentRaters()
        self.kept = Kept(frozenset())
        # When a follower asked last, by `time.monotonic`; infinite where none says which history is live.
        self.followed_at = float("inf")
        self._only_epoch: int | None = None
        # The blocks of one batch leave before those of the next, so that its answers come first.
        self._one_batch = asyncio.Lock()
        self.folded_total = 0
        self.corrupt_total = 0

    def polled(self, kept: Kept, asked_at: float, erasures: bytes, pointer: Pointer) -> None:
        """Take in what the store said when it was asked at `asked_at`, by `time.monotonic`: which generations
        it keeps, how often users were forgotten, and the pointer.
        """
        self.kept, self.followed_at = kept, asked_at
        self._only_epoch = pointer.only_epoch
        if self.copies is not None:
            self.copies.age(asked_at, erasures)

    def serves(self, generations: Set[tuple[int, int]]) -> None:
        """Take in which generations (epoch, number) this process serves: copies of others are dropped."""
        if self.copies is not None:
            self.copies.serve(generations)

    async def lookup(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> UserLookup:
        """Read users by the counter rule, with one write and one round trip; none is folded in. The histories
        of those who have just rated come with it.
        """
        self._require_followed(live.epoch)
        field = record_field(live.generation)
        tail = LOOKUP_TAIL % (len(field), field)
        calls = [LOOKUP_HEAD % (len(key), key) + tail for key in self._keys.users(live.epoch, user_ids)]
        raters, size = self.raters.take(user_ids), len(calls)
        if raters:
            wanted = live.user_attributes is not None
            calls += [self._histories.call(live.epoch, field, each, wanted) for each in raters]
        replies = await self._connection.execute_calls(calls, at_once=True)
        found = counter_rule.apply(live, user_ids, replies[:size])
        if raters:
            told = zip(raters, replies[size:], strict=True)
            # Where that failed `catch_up` asks again.
            found = found._replace(histories={k: v for k, v in told if not isinstance(v, ReplyError)})
        if self.copies is not None:
            self.copies.keep_lookup(live, user_ids, found)
        return found

    def ask(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> "asyncio.Future[list[Any]]":
        """Ask for users as they are before the ratings that are written from here on; `answered` reads the
        replies. What is written in the same turn of the event loop goes with it.
        """
        field, wanted = record_field(live.generation), live.user_attributes is not None
        calls = [self._histories.call(live.epoch, field, user_id, wanted) for user_id in user_ids]
        asked = self._writing.execute_calls(calls)
        asked.add_done_callback(swallow)
        return asked

    async def answered(
        self, live: LiveGeneration, user_ids: Sequence[bytes], asked: "asyncio.Future[list[Any]]"
    ) -> tuple[CurrentUsers, npt.NDArray[np.bool_]]:
        """Return users as `ask` found them, and who (u,) is: of a history that is read in pieces there may be
        what came since.
        """
        replies = await asked
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._writing.failure(reply)
        told = dict(zip(user_ids, replies, strict=True))
        looks = await self._look(live, user_ids, told)
        lookup = counter_rule.apply(live, user_ids, [look.state for look in looks])
        current = await self.catch_up(live, lookup._replace(histories=told))
        return current, current.n == np.array([look.n or 0 for look in looks], dtype=np.int64)

    async def catch_up(self, live: LiveGeneration, lookup: UserLookup) -> CurrentUsers:
        """Fold in the users of `lookup` who are behind, and write them back without waiting for it.

        One round trip when there are any whose history did not come with their record, none otherwise. Raises
        `StoreDamaged` for the first user of whom that cannot be done.
        """
        folded = np.zeros(len(lookup.n), dtype=np.bool_)
        if not lookup.behind:
            return CurrentUsers(lookup.n, lookup.vectors, folded)
        positions: dict[bytes, list[int]] = {}
        for position, user_id in zip(lookup.behind, lookup.behind_ids, strict=True):
            positions.setdefault(user_id, []).append(position)
        user_ids = list(positions)
        looks = await self._look(live, user_ids, lookup.histories)
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
        self._require_followed(live.epoch)
        field, wanted = record_field(live.generation), live.user_attributes is not None
        look = await self._histories.look(live.epoch, field, user_id, attributes=wanted)
        look = await self._histories.with_part(live.epoch, field, user_id, look)
        lookup = counter_rule.apply(live, [user_id], [look.state])
        if lookup.behind:
            stale = await self._stale(live, user_id, look)
            folded = await self._fold_in(live, [stale])
            history, look = folded.histories[0], stale.look
            return Profile(stale.n, folded.vectors[0], history, True, look.whole, look.attributes or b"")
        data = b"" if look.n is None else look.part or b""
        history = await self._unpacked(live.epoch, user_id, data, look)
        n, vector = int(lookup.n[0]), lookup.vectors[0]
        return Profile(n, vector, history, False, look.whole, look.attributes or b"")

    async def history(self, epoch: int, user_id: bytes) -> tuple[int, History]:
        """`n` and the effective history, as of one moment; 0 and nothing for an unknown user.

        One round trip, and one more for each 1 MB of it.
        """
        self._require_followed(epoch)
        look = await self._histories.look(epoch, b"n", user_id)
        look = await self._histories.with_all(epoch, b"n", user_id, look)
        return look.n or 0, await self._unpacked(epoch, user_id, look.tail, look)

    async def _unpacked(self, epoch: int, user_id: bytes, data: bytes, look: Look) -> History:
        if len(data) + len(look.contexts) > INLINE_BYTES:
            return await asyncio.to_thread(self._history, epoch, user_id, data, look)
        return self._history(epoch, user_id, data, look)

    def _history(self, epoch: int, user_id: bytes, data: bytes, look: Look) -> History:
        try:
            history = codecs.unpack_history(data, self._scale.stored)
        except RecordCorrupt as exc:
            raise StoreDamaged(shown_key(self._keys.history(epoch, user_id)), str(exc)) from exc
        if not look.contexts:
            return history
        found = context_codec.unpack(look.contexts, whole=len(look.contexts) == look.contexts_size)
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

    async def parts(self, epoch: int, user_ids: Sequence[bytes], *, one_look: bool = False) -> list[History]:
        """The part of each user's history that a vector rests on (see `Profile`), nothing of an unknown one
        or a wrong key. One round trip, but for long histories without a sample; `one_look`: their ends.
        """
        found, looks = list[History](), await self._histories.look_many(epoch, b"n", user_ids)
        for user_id, look in zip(user_ids, looks, strict=True):
            part = Look(None, None, b"", 0) if isinstance(look, ReplyError) else look
            if not one_look:
                part = await self._histories.with_part(epoch, b"n", user_id, part)
            found.append(await self._unpacked(epoch, user_id, part.part or part.tail, part))
            await asyncio.sleep(0)  # others get their turn
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
        contexts = [b""] * len(user_ids)
        if any_contexts:
            names = [self._keys.user_contexts(epoch, user_id) for user_id in user_ids]
            contexts = [given or b"" for given in await self._client.of_each("GET", names)]
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
                *(b"%d" % self.kept.upto, self.kept.fields, user.look.described),
                b"1" if user.damaged else b"",
            ]
            # Of a history that is mostly superseded only what holds is kept, unless a rating came in since.
            compacted = user.look.whole and codecs.worth_compacting(user.history, history)
            if compacted or user.look.renews:
                entries = history.entries if compacted else user.look.entries
                due = due_after(entries, history.entries) if user.look.whole else user.look.due
                args += [
                    b"%d" % user.n,
                    codecs.pack_history(history) if compacted else b"",
                    pack_sample(user.n, user.n - entries, due, history, user.has_events)
                    if user.look.renews
                    else b"",
                    codecs.pack_contexts(history) if compacted else b"",
                ]
            calls.append(encode_call("put_record", names, args))
        for start in range(0, len(calls), CALLS_AT_ONCE):
            some = calls[start : start + CALLS_AT_ONCE]
            self._connection.execute_calls(some).add_done_callback(swallow)

    async def _lookup_batch(self, live: LiveGeneration, users: Ids) -> tuple[UserLookup, Int64s]:
        """Look up a large batch without an object for each user: in the order in which they were asked, and
        the row of each of `users` in that, (m,).
        """
        self._require_followed(live.epoch)
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

    def _require_followed(self, epoch: int) -> None:
        """Raise `StoreUnavailable` where a history has ended, or may have meanwhile: what would be read of it
        lacks what others have written to the next one.

        So it is after this process was stopped, or cut off.
        """
        if time.monotonic() - self.followed_at > FOLLOWED_S:
            raise StoreUnavailable("which history is live was not heard for a while", 0.1)
        if self._only_epoch not in (None, epoch):
            raise StoreUnavailable("another history has taken over meanwhile", 0.1)

    async def _look(
        self, live: LiveGeneration, user_ids: Sequence[bytes], told: Mapping[bytes, Any]
    ) -> list[Look]:
        """What there is of each user, of one moment each; `told`: what the store has said of some."""
        looks = {
            user_id: self._histories.look_of(live.epoch, user_id, told[user_id])
            for user_id in user_ids
            if user_id in told
        }
        left = [user_id for user_id in user_ids if user_id not in looks]
        field, wanted = record_field(live.generation), live.user_attributes is not None
        found = await self._histories.look_many(live.epoch, field, left, attributes=wanted)
        for user_id, look in zip(left, found, strict=True):
            if isinstance(look, ReplyError):
                raise self._connection.failure(look)
            looks[user_id] = look
        return [looks[user_id] for user_id in user_ids]

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
        return StaleUser(user_id, look, look.part or b"", record, damaged)

    async def _fold_in(self, live: LiveGeneration, users: Sequence[StaleUser]) -> FoldedUsers:
        size = sum([len(user.history) + len(user.look.contexts) for user in users])
        if is_brief(size, live):
            folded = self._fold(live, users)
        else:
            folded = await live.in_thread(partial(self._fold, live, users))
        self.folded_total += len(users)
        # Requests that wait for these users are answered first.
        asyncio.get_running_loop().call_soon(self.write_back, live, users, folded)
        return folded

    def _fold(self, live: LiveGeneration, users: Sequence[StaleUser]) -> FoldedUsers:
        for user in users:
            if user.n < user.look.entries:
                # Each event has added one entry; they are compacted, and `n` never falls.
                key = shown_key(self._keys.user(live.epoch, user.user_id))
                raise StoreDamaged(key, f"n is {user.n}, and the history has {user.look.entries} entries")
        histories = [self._history(live.epoch, user.user_id, user.history, user.look) for user in users]
        return fold_in(live, users, histories)
