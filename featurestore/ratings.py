"""The ratings log: what came in, in one step a partition. Invariant: after `append` returns, every reader
reflects it, and the trainer will see it.

A call says which epochs it believes its ratings go to. Where that is no longer so nothing is written; the
call learns the epochs, registers its items there, and tries again. A call whose connection was lost is not
repeated here: it may or may not have been carried out, and the caller may repeat it, since the last rating of
a pair wins.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

from featurestore import codecs
from featurestore.connection import Connection
from featurestore.epochs import Epochs
from featurestore.errors import EpochGone, StoreUnavailable, StreamFull
from featurestore.functions import call, call_many, commands, encode_call
from featurestore.items import ItemRegistry
from featurestore.keys import Keys, digest_of, partition_of

# An epoch changes twice in a `POST /train`; who finds it changed more often than this in one call gives up.
ATTEMPTS = 5
RETRY_FULL_S = 1.0

ByUser = dict[bytes, list["NewRating"]]


@dataclass(frozen=True, slots=True)
class NewRating:
    """One rating as it comes in; a NaN `rating` takes the item's rating back. `time`: seconds since 1970."""

    user_id: bytes
    item_id: bytes
    rating: float
    time: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Receipt: how many ratings held, the user's last `n`, and the digest by which the store remembers to
    forget.
    """

    ratings: int
    n: int
    digest: bytes


class RatingsLog:
    """Writes ratings and forgets users.

    Every method may raise `StoreUnavailable`, and may then be repeated.
    """

    def __init__(
        self,
        keys: Keys,
        connection: Connection,
        *,
        epochs: Epochs,
        registry: Callable[[int], ItemRegistry],
        stream_limit: int,
        synced: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._keys = keys
        self._connection = connection
        self._epochs = epochs
        self._registry = registry
        self._stream_limit = stream_limit
        self._synced = synced

    async def append(self, ratings: Sequence[NewRating], *, epoch: int | None = None) -> None:
        """Write ratings; those of one partition in one step, in the order given.

        `epoch`: only into that one, which is being prepared; a pair that is there already (it came in since)
        stays as it is. Raises `StreamFull` (before the first write; in a race for the last room some
        partitions may be written), `RegistryFull`, `EpochGone` when the epoch asked for takes no ratings.
        """
        if not ratings:
            return
        todo: dict[int, ByUser] = {}
        for rating in ratings:
            partition = partition_of(rating.user_id, self._keys.partitions)
            todo.setdefault(partition, {}).setdefault(rating.user_id, []).append(rating)
        item_ids = list(dict.fromkeys([rating.item_id for rating in ratings]))
        checked = False
        for _ in range(ATTEMPTS):
            expected = {partition: await self._epochs.expected(partition) for partition in todo}
            targets = {p: self._targets(text, epoch) for p, text in expected.items()}
            rows = await self._register({e for several in targets.values() for e in several}, item_ids, epoch)
            if rows is None:
                continue
            if not checked and len(todo) > 1:
                await self._check_room(todo, targets)
            checked = True
            calls = [
                self._rate(p, users, expected[p], targets[p], rows, given=epoch is not None)
                for p, users in todo.items()
            ]
            full = False
            for partition, reply in zip(list(todo), await call_many(self._connection, calls), strict=True):
                if reply[0] == b"OK":
                    del todo[partition]
                elif reply[0] == b"FULL":
                    full = True
                else:
                    await self._epochs.learn(partition, reply[1])
            if full:
                raise StreamFull("too many ratings wait for the trainer", RETRY_FULL_S)
            if not todo:
                if self._synced is not None:
                    await self._synced()
                return
        raise StoreUnavailable("the history is being replaced just now", 0.1)

    async def forget(self, user_id: bytes) -> Forgotten:
        """Remove a user with everything that is known of it; the trainer is told by an event.

        Safe to repeat: the receipt of an unknown user has no ratings.
        """
        keys, digest = self._keys, digest_of(user_id)
        partition = partition_of(user_id, keys.partitions)
        mark = codecs.pack_entry(codecs.FORGOTTEN_ROW, nan, 0.0)
        for _ in range(ATTEMPTS):
            expected = await self._epochs.expected(partition)
            names = [keys.epochs(partition)]
            for epoch in self._targets(expected, None):
                names += [
                    keys.ratings(epoch, partition),
                    keys.forgotten(epoch, partition),
                    keys.user(epoch, user_id),
                    keys.history(epoch, user_id),
                ]
            reply = await call(self._connection, "forget", names, [expected, user_id, digest, mark])
            if reply[0] == b"OK":
                if self._synced is not None:
                    await self._synced()
                return Forgotten(len(codecs.unpack_history(reply[2])), int(reply[1]), digest)
            await self._epochs.learn(partition, reply[1])
        raise StoreUnavailable("the history is being replaced just now", 0.1)

    async def forgotten(self, epoch: int) -> dict[bytes, int]:
        """Digest -> last `n` of every user that is to stay forgotten."""
        found: dict[bytes, int] = {}
        partitions = range(self._keys.partitions)
        replies = await commands(
            self._connection, [(b"HGETALL", self._keys.forgotten(epoch, p)) for p in partitions]
        )
        for flat in replies:
            found.update(zip(flat[::2], map(int, flat[1::2]), strict=True))
        return found

    async def release_forgotten(self, epoch: int, settled: Mapping[bytes, int]) -> int:
        """Drop entries of `forgotten` that still say the same: no generation that is kept has seen these
        users.

        Returns how many were dropped.
        """
        args = [part for digest, n in settled.items() for part in (digest, b"%d" % n)]
        if not args:
            return 0
        # A digest does not tell the partition; where it is not, nothing happens.
        calls = [
            encode_call("release_forgotten", [self._keys.forgotten(epoch, p)], args)
            for p in range(self._keys.partitions)
        ]
        return sum([int(reply[1]) for reply in await call_many(self._connection, calls)])

    async def loose_count(self, epoch: int) -> int:
        """How many ratings came into an epoch by other ways than the call that began it."""
        names = [(b"GET", self._keys.loose(epoch, p)) for p in range(self._keys.partitions)]
        return sum([int(count or 0) for count in await commands(self._connection, names)])

    async def begin_epoch(self) -> int:
        """Begin a new history beside the live one; each rating goes to both from now on.

        Raises `EpochBusy`.
        """
        return await self._epochs.begin()

    async def abandon_epoch(self, epoch: int) -> None:
        """Give up an epoch that is being prepared, and remove it. Safe to repeat.

        Raises `StoreError` if it is live.
        """
        await self._epochs.abandon(epoch)

    async def finish_epoch(self, epoch: int) -> None:
        """Let the epoch that has gone live be the only one, once no worker serves another. Safe to repeat."""
        await self._epochs.finish(epoch)

    def _targets(self, expected: bytes, epoch: int | None) -> tuple[int, ...]:
        epochs = tuple(map(int, expected.split(b",")))
        if epoch is None:
            return epochs
        if epoch not in epochs:
            raise EpochGone(epoch)
        return (epoch,)

    async def _register(
        self, epochs: set[int], item_ids: Sequence[bytes], asked: int | None
    ) -> dict[int, dict[bytes, int]] | None:
        """Item rows by epoch; None when an epoch has gone meanwhile."""
        order = sorted(epochs)
        try:
            rows = await asyncio.gather(*[self._registry(epoch).register(item_ids) for epoch in order])
        except EpochGone:
            if asked is not None:
                raise
            await self._epochs.refresh()
            return None
        return {epoch: dict(zip(item_ids, of, strict=True)) for epoch, of in zip(order, rows, strict=True)}

    async def _check_room(self, todo: Mapping[int, ByUser], targets: Mapping[int, Sequence[int]]) -> None:
        streams = [(p, self._keys.ratings(epoch, p)) for p in todo for epoch in targets[p]]
        lengths = await commands(self._connection, [(b"XLEN", stream) for _, stream in streams])
        for (partition, _), length in zip(streams, lengths, strict=True):
            new = sum([len(several) for several in todo[partition].values()])
            if length + new > self._stream_limit:
                raise StreamFull("too many ratings wait for the trainer", RETRY_FULL_S)

    def _rate(
        self,
        partition: int,
        users: ByUser,
        expected: bytes,
        epochs: Sequence[int],
        rows: Mapping[int, Mapping[bytes, int]],
        *,
        given: bool,
    ) -> bytes:
        keys = self._keys
        names = [keys.epochs(partition)]
        args = [expected, b"%d" % self._stream_limit, b"given" if given else b"loose", b"%d" % len(users)]
        for user_id in users:
            args += [user_id, digest_of(user_id)]
        pack = codecs.ENTRY.pack
        for epoch in epochs:
            names += [
                keys.ratings(epoch, partition),
                keys.loose(epoch, partition),
                keys.forgotten(epoch, partition),
            ]
            row_of = rows[epoch]
            for user_id, several in users.items():
                names += [keys.user(epoch, user_id), keys.history(epoch, user_id)]
                args.append(b"".join([pack(row_of[r.item_id], r.rating, r.time) for r in several]))
        return encode_call("rate", names, args)
