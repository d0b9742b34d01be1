"""The ratings log: what came in, in steps of one partition. Invariant: after `append` returns, every reader
reflects it, and the trainer will see it.

A call whose connection was lost is not repeated here: it may or may not have been carried out, and the caller
may repeat it, since the last rating of a pair wins.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from factors import Float32s, Int64s
from featurestore import codecs
from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.contexts.codec import joined
from featurestore.errors import EpochGone, HistoryFull, StoreUnavailable, StreamFull, UserChanged
from featurestore.item_registry import ItemRegistries
from featurestore.keys import Keys, digest_of, partition_of, whole
from featurestore.namespace import StoredScale
from featurestore.ratings.batches import (
    Columns,
    Share,
    encode_rate,
    pack_contexts,
    pack_entries,
    pack_ids,
    shares_of,
)
from featurestore.ratings.epochs import Epochs
from featurestore.ratings.stream import RatingsStream
from featurestore.wire.connection import Connection
from featurestore.wire.functions import ask_many, call_many
from featurestore.wire.resp import ReplyError, encode

# An epoch changes twice in a `POST /train`; a call that finds it changed more often than this gives up.
ATTEMPTS = 5
# Ratings of a forgotten user that go into one entry of the stream: as many as a large call has.
KEPT_AT_ONCE = 5_000
# Ratings that are packed between two looks at the event loop: about 1 ms.
AT_ONCE = 1_000
# As for a store that is away: the trainer frees room all the time.
RETRY_FULL_S = 1.0
# Of a history whose ratings are counted on the event loop, in some 0.2 ms.
COUNTED_BYTES = 2_000 * codecs.ENTRY_BYTES

Targets = Mapping[int, Sequence[int]]
"""The epochs that take the ratings of each partition, the live one first."""
# Gets the live epoch and the partitions of the ratings that were stored.
Mark = Callable[[int, Iterable[int]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class NewRating:
    """One rating as it comes in; a NaN `rating` takes the item's rating back. `time`: seconds since 1970;
    `context`: float32 (k,), what was told with it.
    """

    user_id: bytes
    item_id: bytes
    rating: float
    time: float
    context: Float32s | None = None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Receipt: how many ratings held, the user's last `n`, the digest by which the store remembers to forget,
    and when that was, in milliseconds by the store's clock: later than every event of the user before.
    """

    ratings: int
    n: int
    digest: bytes
    at_ms: int


class RatingsLog:
    """Writes ratings and forgets users.

    Every method may raise `StoreUnavailable`, and may then be repeated.
    """

    def __init__(
        self,
        keys: Keys,
        connection: Connection,
        client: Client,
        *,
        epochs: Epochs,
        registries: ItemRegistries,
        stream: RatingsStream,
        stream_limit: int,
        identity: Callable[[], str],
        confirmation: Confirmation,
        scale: StoredScale,
        mark: Mark | None = None,
    ) -> None:
        """`mark`: told of each call that was stored, where traces are sent."""
        self._keys = keys
        self._connection = connection
        self._client = client
        self._epochs = epochs
        self._registries = registries
        self._stream = stream
        self._stream_limit = stream_limit
        self._identity = identity
        self._confirmation = confirmation
        self._scale = scale
        self._mark = mark
        # Partitions that had forgotten users: only there the store wants a digest with each user.
        self._digests: set[int] = set()
        # Partitions with users who gave contexts: only there a rating without one may replace one with.
        self._with_contexts: set[int] = set()

    async def append(self, ratings: Sequence[NewRating], *, epoch: int | None = None) -> None:
        """Write ratings; those of one user in one step, in the order given.

        `epoch`: only into that one, which is being prepared; a pair that is there already (it came in since)
        stays as it is. Raises `StreamFull` (before the first write; in a race for the last room some steps
        may be done), `RegistryFull`, `EpochGone` when the epoch asked for takes no ratings.
        """
        columns = Columns(
            [rating.user_id for rating in ratings],
            [rating.item_id for rating in ratings],
            np.array([rating.rating for rating in ratings], dtype=np.float64),
            np.array([rating.time for rating in ratings], dtype=np.float64),
            context=joined([(1, None if each.context is None else each.context[None]) for each in ratings]),
        )
        await self.append_columns(columns, epoch=epoch)

    async def append_columns(
        self, columns: Columns, *, epoch: int | None = None, most_entries: int = 0
    ) -> int:
        """The same for ratings in columns. `most_entries`: of one user, 0 any; raises `HistoryFull`,
        `OffScale` (before the first write, as for a full stream). Returns how many were left out: where
        `columns.known` is told, those of users who were forgotten since, or who have no room; see also
        `columns.only_into`. Raises `EpochGone` where they would go to other epochs than that says.
        """
        if not len(columns):
            return 0
        if not self._scale.settled:
            await self._scale.require(columns.ratings().rating)
        left = shares_of(columns.user_id, self._keys.partitions)
        since, left_out = self._confirmation.begin(*self._written(left, columns)), 0
        unconfirmed: dict[int, int] = {}
        for _ in range(ATTEMPTS):
            left, out = await self._append(left, columns, epoch, most_entries, unconfirmed)
            left_out += out
            if not left:
                await self._confirmation.wait(since, *map(self._keys.items, unconfirmed))
                for each, rows in unconfirmed.items():
                    self._registries.of(each).confirm(rows)
                if self._mark is not None:
                    partitions = {partition_of(user_id, self._keys.partitions) for user_id in columns.user_id}
                    # What another call has found since may have none: the ratings are stored all the same.
                    if expected := self._epochs.expected.get(min(partitions)):
                        await self._mark(int(expected.partition(b",")[0]), partitions)
                return left_out
        raise StoreUnavailable("the history is being replaced just now", 0.1)

    async def admit(self, columns: Columns, *, most_entries: int = 0) -> None:
        """Raise what refuses these ratings as far as that is known before they are written; else their new
        items have rows, as `append_columns` gives them.
        """
        # One that has gone meanwhile is found so once more, and asked for, where they are written.
        with contextlib.suppress(EpochGone):
            await self._admit(
                shares_of(columns.user_id, self._keys.partitions), columns, None, most_entries, look=True
            )

    def _written(self, shares: Sequence[Share], columns: Columns) -> list[bytes]:
        """Return a key of each slot that has what these events mean, but for their items."""
        keys = [self._keys.epochs(share.partition) for share in shares]
        # Events and contexts are stored by numbers that these documents give.
        keys += [self._keys.contexts] if columns.context is not None else []
        return keys + ([self._keys.event_types] if columns.type_code is not None else [])

    async def _append(
        self,
        shares: Sequence[Share],
        columns: Columns,
        epoch: int | None,
        most: int,
        unconfirmed: dict[int, int],
    ) -> tuple[list[Share], int]:
        """Write `shares` of a call; return those for which this process was wrong about the partition, of
        which it has learned meanwhile, and how many events were left out. `unconfirmed` gets how many items
        of an epoch must have their rows for these events to mean the same for ever.
        """
        try:
            expected, targets, item_rows = await self._admit(shares, columns, epoch, most)
        except EpochGone:
            if epoch is not None:
                raise
            await self._epochs.refresh()
            if columns.only_into:
                raise
            return list(shares), 0
        for each, rows in item_rows.items():
            registry = self._registries.of(each)
            if rows.max() >= registry.confirmed:
                unconfirmed[each] = max(len(registry), int(rows.max()) + 1)
        mode = b"bootstrap" if epoch is not None else columns.mode
        fixed = (
            b"%d" % self._stream_limit,
            b"%d" % (most * codecs.ENTRY_BYTES),
            mode,
            self._identity().encode(),
        )
        replies = await self._rate(shares, expected, targets, item_rows, columns=columns, fixed=fixed)
        return await self._learned(shares, replies, most, leaves_out=columns.known is not None)

    async def _admit(
        self,
        shares: Sequence[Share],
        columns: Columns,
        epoch: int | None,
        most: int,
        *,
        look: bool = False,
    ) -> tuple[dict[int, bytes], dict[int, tuple[int, ...]], dict[int, Int64s]]:
        """Refuse what cannot be written, and give new items their rows; return the epochs of each partition
        as text and as numbers, and of each epoch the rows of the items. `look`: also where the store will.
        """
        # Each call says which epochs it believes its ratings go to. Where that is no longer so nothing is
        # written.
        if not self._epochs.expected:
            await self._epochs.refresh()
        expected = {share.partition: self._epochs.expected[share.partition] for share in shares}
        targets = {p: tuple(map(int, text.split(b","))) for p, text in expected.items()}
        if columns.only_into and any(each != columns.only_into[: len(each)] for each in targets.values()):
            raise EpochGone(columns.only_into[0])
        if epoch is not None:
            if not all(epoch in several for several in targets.values()):
                raise EpochGone(epoch)
            targets = dict.fromkeys(targets, (epoch,))
        epochs = sorted({each for several in targets.values() for each in several})
        registries = [self._registries.of(each) for each in epochs]
        # Before items are registered: a call that is refused leaves nothing. It says what the store will say,
        # as far as that can be known; in a race for the last room the store decides.
        if look or len(shares) > 1 or not all(each.knows(columns.item_id) for each in registries):
            await self._require_room(shares, targets)
            if most and columns.known is None:
                await self._require_short_histories(shares, targets, most)
        rows = [await registry.register(columns.item_id) for registry in registries]
        return (
            expected,
            targets,
            {each: np.array(of, dtype=np.int64) for each, of in zip(epochs, rows, strict=True)},
        )

    async def _require_room(self, shares: Sequence[Share], targets: Targets) -> None:
        """Raise `StreamFull` where more events of a partition than the limit would wait for the trainer."""
        size = Counter[int]()
        for share in shares:
            size[share.partition] += len(share.rows)
        for epoch in sorted({epoch for several in targets.values() for epoch in several}):
            found = await self._stream.progress(epoch, size)
            for partition, ratings in size.items():
                room = self._stream_limit - found[partition].waiting
                if epoch in targets[partition] and ratings > room:
                    raise StreamFull("too many ratings wait for the trainer", RETRY_FULL_S)

    async def _require_short_histories(self, shares: Sequence[Share], targets: Targets, most: int) -> None:
        """Raise `HistoryFull` where a user would have more than `most` entries."""
        names = [
            self._keys.history_prefix(targets[share.partition][0], share.partition) + user
            for share in shares
            for user in share.users
        ]
        new = np.concatenate([np.diff(share.ends) for share in shares])
        stored = await call_many(self._connection, [encode(b"STRLEN", name) for name in names])
        full = np.flatnonzero(np.array(stored) // codecs.ENTRY_BYTES + new > most)
        if len(full):
            users = [user for share in shares for user in share.users]
            raise HistoryFull(users[full[0]], most)

    async def _learned(
        self, shares: Sequence[Share], replies: Sequence[Any], most: int, *, leaves_out: bool
    ) -> tuple[list[Share], int]:
        """Return what is to be written again of `shares`, and how many events were left out of them."""
        left, left_out = list[Share](), 0
        for share, reply in zip(shares, replies, strict=True):
            if leaves_out and not isinstance(reply, ReplyError) and reply[0] in (b"LEFT", b"LONG"):
                users = [int(u) for u in reply[1:]]
                rest = share.without([abs(u) - 1 for u in users])
                # Those of whom there is nothing have nothing that could be left out.
                left_out += len(share.without([-u - 1 for u in users if u < 0]).rows) - len(rest.rows)
                left += [rest] if rest.users else []
                continue
            self._require_taken(share, reply, most)
            if reply[0] != b"OK":
                left.append(share)
            if reply[0] == b"DIGESTS":
                self._digests.add(share.partition)
            elif reply[0] == b"CONTEXTS":
                self._with_contexts.add(share.partition)
            elif reply[0] == b"EPOCHS":
                await self._epochs.learn(share.partition, reply[1])
            elif reply[0] == b"CHANGED":
                await self._epochs.look_again()
        return left, left_out

    def _require_taken(self, share: Share, reply: Any, most: int) -> None:
        """Raise what a reply says is not to be tried again."""
        if isinstance(reply, ReplyError):
            raise self._connection.failure(reply)
        if reply[0] == b"FULL":
            raise StreamFull("too many ratings wait for the trainer", RETRY_FULL_S)
        if reply[0] == b"LONG":
            raise HistoryFull(share.users[int(reply[1]) - 1], most)

    async def forget(self, user_id: bytes, keep: Columns | None = None, n: int | None = None) -> Forgotten:
        """Remove a user with everything that is known of it; the trainer is told by an event. `keep`: what
        the user has rated or done again after it, in the same step, whatever room there is. `n`: the user's
        last one in the live epoch when `keep` was made; raises `UserChanged` where it no longer is.

        Safe to repeat, with `keep` only where `n` is given: the receipt of an unknown user has no ratings.
        """
        keys, digest = self._keys, digest_of(user_id)
        partition = partition_of(user_id, keys.partitions)
        mark = codecs.pack_entry(codecs.FORGOTTEN_ROW, nan, 0.0)
        since = self._confirmation.begin()
        for _ in range(ATTEMPTS):
            if not self._epochs.expected:
                await self._epochs.refresh()
            expected = self._epochs.expected[partition]
            names = [keys.epochs(partition), keys.attributes(user_id), keys.attributes_list(partition)]
            epochs = list(map(int, expected.split(b",")))
            for epoch in epochs:
                names += [
                    keys.ratings(epoch, partition),
                    keys.counts(epoch, partition),
                    keys.forgotten(epoch, partition),
                    keys.user(epoch, user_id),
                    keys.history(epoch, user_id),
                    keys.user_contexts(epoch, user_id),
                ]
            args = [expected, pack_ids([user_id]), digest, mark, b"" if n is None else b"%d" % n]
            try:
                args += await self._kept(epochs, keep)
            except EpochGone:
                await self._epochs.refresh()
                continue
            (reply,) = await self._client.call("forget", (names, args))
            if reply[0] == b"OK":
                await self._confirmation.wait(since)
                brief = len(reply[2]) <= COUNTED_BYTES
                count = self._count(reply[2]) if brief else await asyncio.to_thread(self._count, reply[2])
                return Forgotten(count, int(reply[1]), digest, int(reply[3]))
            if reply[0] == b"CHANGED":
                # Perhaps by an attempt before this one, whose answer was lost.
                await self._confirmation.wait(since)
                raise UserChanged
            await self._epochs.learn(partition, reply[1])
        raise StoreUnavailable("the history is being replaced just now", 0.1)

    async def _kept(self, epochs: Sequence[int], columns: Columns | None) -> list[bytes]:
        """Return events of one user, in pieces, as `forget` takes them. Raises `EpochGone`,
        `RegistryFull`.
        """
        if columns is None:
            return [b""]
        starts = range(0, len(columns), KEPT_AT_ONCE)
        pieces = [columns.part(slice(start, start + KEPT_AT_ONCE)) for start in starts]
        given, args = b"", list[bytes]()
        for epoch in epochs:
            registered = await self._registries.of(epoch).register(columns.item_id)
            rows = np.array(registered, dtype=np.int64)
            contexts = []
            for start, piece in zip(starts, pieces, strict=True):
                some, every = rows[start : start + KEPT_AT_ONCE], np.arange(len(piece))
                share = Share(0, [piece.user_id[0]], every, [0, len(piece)])
                args += pack_entries(share, some, piece)
                contexts.append(pack_contexts(every, share.ends, some, piece))
            args += [each.entries[0] for each in contexts]
            given = b"".join([each.given for each in contexts])
        return [given, *args]

    def _count(self, history: bytes) -> int:
        """Return how many ratings a history had; of a damaged one, which is gone now, its entries."""
        try:
            return len(codecs.unpack_history(history, self._scale.stored))
        except codecs.RecordCorrupt:
            return len(history) // codecs.ENTRY_BYTES

    async def forgotten(self, epoch: int) -> dict[bytes, int]:
        """Digest -> last `n` of every user that is to stay forgotten."""
        found: dict[bytes, int] = {}
        keys = [self._keys.forgotten(epoch, partition) for partition in range(self._keys.partitions)]
        for key, fields in zip(keys, await self._client.of_each("HGETALL", keys), strict=True):
            found.update({digest: whole(n, key) for digest, n in fields.items()})
        return found

    async def stay_forgotten(self, epoch: int, before: int) -> None:
        """Have an epoch that is being prepared remember the forgotten users of the one before."""
        keys, partitions = self._keys, range(self._keys.partitions)
        found = await self._client.of_each("HKEYS", [keys.forgotten(before, p) for p in partitions])
        pipe = self._client.pipeline()
        for partition, digests in zip(partitions, found, strict=True):
            for digest in digests:
                # A count of its own begins there.
                pipe.hsetnx(keys.forgotten(epoch, partition), digest, 0)
        await pipe.execute()

    async def release_forgotten(self, epoch: int, settled: Mapping[bytes, int]) -> int:
        """Drop entries of `forgotten` that still say the same: no generation that is kept has seen these
        users.

        Returns how many were dropped.
        """
        args = [part for digest, n in settled.items() for part in (digest, b"%d" % n)]
        if not args:
            return 0
        # A digest does not tell the partition; where it is not, nothing happens.
        calls = [([self._keys.forgotten(epoch, p)], args) for p in range(self._keys.partitions)]
        return sum([int(reply[1]) for reply in await self._client.call("release_forgotten", *calls)])

    async def count_live(self, epoch: int) -> int:
        """How many ratings came into an epoch live: not with the call that began it."""
        keys = [self._keys.counts(epoch, partition) for partition in range(self._keys.partitions)]
        # What is stored keeps the name that live ratings had.
        counts = zip(await self._client.of_each("HGET", keys, "loose"), keys, strict=True)
        return sum([0 if count is None else whole(count, key) for count, key in counts])

    async def _rate(
        self,
        shares: Iterable[Share],
        expected: Mapping[int, bytes],
        targets: Targets,
        item_rows: Mapping[int, Int64s],
        *,
        columns: Columns,
        fixed: Sequence[bytes],
    ) -> list[Any]:
        """Return the reply to each share, errors as values. `fixed`: limits of stream and history, `live` or
        `bootstrap`, and which store this is.
        """
        # The store works on the first of many ratings while the next are packed.
        pending: list[asyncio.Future[list[Any]]] = []
        calls: list[bytes] = []
        packed = 0
        for share in shares:
            partition = share.partition
            args = [
                expected[partition],
                *fixed,
                b"%d" % len(share.users),
                b"".join(map(digest_of, share.users)) if partition in self._digests else b"",
            ]
            rows = {epoch: item_rows[epoch] for epoch in targets[partition]}
            contexts = columns.context is not None or (
                partition in self._with_contexts and columns.has_ratings
            )
            calls.append(encode_rate(self._keys, share, rows, columns, args, contexts=contexts))
            packed += len(share.rows)
            if packed >= AT_ONCE:
                pending.append(asyncio.ensure_future(ask_many(self._connection, calls)))
                calls, packed = [], 0
                await asyncio.sleep(0)
        if not pending:
            return await ask_many(self._connection, calls)
        if calls:
            pending.append(asyncio.ensure_future(ask_many(self._connection, calls)))
        # All have ended before an error is told: nothing is written after that.
        replies: list[Any] = []
        for answer in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            replies += answer
        return replies
