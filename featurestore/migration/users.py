"""Users go from one store to another. Invariant: a user counts as copied when both stores were read and have
the same, byte for byte; and as long as the source remembers who changes, none is missed.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from featurestore.keys import partition_of
from featurestore.migration.stages import Filling, MigrationStopped, Placing, flat
from featurestore.store import Store
from featurestore.wire.functions import call_many
from featurestore.wire.resp import encode

# A hundred histories of 20 KB are 2 MB; the store answers others between the commands of a batch.
AT_ONCE = 100
# Keys that one step of a scan looks at: a millisecond of the store.
_SCANNED = 2_000

# Of a user: the hash, the history, the contexts, the attributes.
_User = tuple[Any, Any, Any, Any]
_NONE: _User = ([], None, None, [])


class UserCopies:
    """The users of one epoch, from `source` to `target`. `copied`: the checksum of each that both had when
    they were read last; some 200 bytes a user.
    """

    def __init__(self, source: Store, target: Store, placing: Placing, epoch: int) -> None:
        self._source = source
        self._target = target
        self._placing = placing
        self._epoch = epoch
        self.copied: dict[bytes, int] = {}

    async def copy_all(self, told: Callable[[int], object]) -> None:
        """Copy every user that there is all along, and those who are new where the scan meets them. `told`:
        is called with how many are copied so far.
        """
        async for ids in self._listed(self._source):
            await self.copy([user_id for user_id in ids if user_id not in self.copied])
            told(len(self.copied))

    async def compare_all(self, told: Callable[[int], object]) -> int:
        """Read every user of both stores once more; return how many were not the same, and were copied again:
        those who have changed since, or whom the target has lost.
        """
        others, done = 0, 0
        async for ids in self._listed(self._source):
            here, there = (
                await _read(self._source, self._epoch, ids),
                await _read(self._target, self._epoch, ids),
            )
            again = [user_id for user_id, one, other in zip(ids, here, there, strict=True) if one != other]
            await self.copy(again)
            others, done = others + len(again), done + len(ids)
            told(done)
        async for ids in self._listed(self._target):
            # Of those who have left since, the source tells.
            await self.copy(gone := [user_id for user_id in ids if user_id not in self.copied])
            others += len(gone)
        return others

    async def copy_changed(self) -> int:
        """Copy who has changed, as far as the source remembers that; return how many."""
        count, keys, redis = 0, self._source.keys, cast("Any", self._source.redis)
        for partition in range(keys.partitions):
            key = keys.changed(keys.epochs(partition), self._placing.token)
            # Taken out first: who changes from here on is remembered anew.
            while ids := await redis.spop(key, AT_ONCE):
                await self.copy(sorted(ids))
                count += len(ids)
        return count

    async def copy(self, ids: Sequence[bytes]) -> None:
        """Copy users as they are now; one who is not there any more goes. Raises `MigrationStopped` where the
        target does not have what it was given.
        """
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            found = await _read(self._source, self._epoch, some)
            await self._placing.place([self._fillings(*each) for each in zip(some, found, strict=True)])
            stored = await _read(self._target, self._epoch, some)
            if found != stored:
                raise MigrationStopped("the target does not keep what it is given")
            for user_id, user in zip(some, found, strict=True):
                if user == _NONE:
                    self.copied.pop(user_id, None)
                else:
                    self.copied[user_id] = _checksum(user_id, user)

    def digests(self) -> list[tuple[int, int]]:
        """Return of each partition of the target how many users it has, and one number over all of them."""
        partitions = self._target.keys.partitions
        counts, sums = [0] * partitions, [0] * partitions
        for user_id, checksum in self.copied.items():
            partition = partition_of(user_id, partitions)
            counts[partition] += 1
            sums[partition] = (sums[partition] + checksum) % 2**64
        return list(zip(counts, sums, strict=True))

    def _fillings(self, user_id: bytes, user: _User) -> list[Filling]:
        keys, epoch = self._target.keys, self._epoch
        fields, history, contexts, attributes = user
        listed = keys.attributes_list(partition_of(user_id, keys.partitions))
        return [
            Filling(keys.user(epoch, user_id), "hash", flat(fields)),
            Filling(keys.history(epoch, user_id), "string", [] if history is None else [history]),
            Filling(keys.user_contexts(epoch, user_id), "string", [] if contexts is None else [contexts]),
            Filling(keys.attributes(user_id), "hash", flat(attributes)),
            Filling(listed, "zset" if attributes else "zrem", [user_id], fresh=False),
        ]

    async def _listed(self, store: Store) -> AsyncIterator[list[bytes]]:
        """Yield the ids of the users of a store; one may come twice."""
        keys = store.keys
        kinds = [
            (keys.users_pattern(self._epoch) + b"*", keys.user_of),
            # In a history that has just begun some may have nothing else yet.
            (keys.attributes_pattern, keys.attributes_user),
        ]
        for pattern, user_of in kinds:
            async for names in store.redis.pages(pattern, _SCANNED):
                ids = [user_of(name) for name in names]
                for start in range(0, len(ids), AT_ONCE):
                    yield ids[start : start + AT_ONCE]


async def _read(store: Store, epoch: int, ids: Sequence[bytes]) -> list[_User]:
    keys, calls = store.keys, list[bytes]()
    for user_id in ids:
        calls += [
            encode(b"HGETALL", keys.user(epoch, user_id)),
            encode(b"GET", keys.history(epoch, user_id)),
            encode(b"GET", keys.user_contexts(epoch, user_id)),
            encode(b"HGETALL", keys.attributes(user_id)),
        ]
    replies = iter(await call_many(store.bulk, calls) if calls else ())
    return [
        (_sorted(fields), history, contexts, _sorted(attributes))
        for fields, history, contexts, attributes in zip(replies, replies, replies, replies, strict=True)
    ]


def _sorted(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    # Servers give the fields of a hash in an order of their own.
    return sorted(zip(flat[::2], flat[1::2], strict=True))


def _checksum(user_id: bytes, user: _User) -> int:
    fields, history, contexts, attributes = user
    state = hashlib.blake2b(digest_size=8)
    for part in (user_id, *flat(fields), history or b"", contexts or b"", *flat(attributes)):
        state.update(b"%d:" % len(part) + part)
    return int.from_bytes(state.digest(), "little")
