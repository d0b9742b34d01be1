"""The most active users of a history, among whom neighbours are looked for. Invariant: none is added who is
not known at that moment, so that a user who was forgotten, and removed here, stays so.

Ids alone: what is known of these users is in their records, which are current by the counter rule.
"""

from collections.abc import Sequence

import numpy as np

from featurestore.client import Client
from featurestore.keys import Keys, partition_of, partitions_of
from featurestore.leases import Lease

# A worker that is asked for neighbours keeps a direction of each: 2 MB at rank 64, and a product of all with
# one user is half a million multiplications. Reading their records is a large batch of predictions.
MOST_ACTIVE = 8_192
# Where users are compared by their events it is histories that are read.
MOST_ACTIVE_BY_EVENTS = 1_024
# Users of one step: the store is busy with it for 0.1 ms.
_AT_ONCE = 128


class ActiveUsers:
    """Reads and replaces the ids. Every method may raise `StoreUnavailable`, and may then be repeated."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def ids(self, epoch: int) -> list[bytes]:
        """Return all ids, in one round trip."""
        return [user_id for found in await self._by_partition(epoch) for user_id in found]

    async def replace(self, epoch: int, user_ids: Sequence[bytes], *, lease: Lease | None = None) -> None:
        """Have these users, of whom unknown ones are left out, take the place of those who are there.

        `lease`: of the caller, which is renewed before the writes to each partition, as no function can
        compare it in the slots of these. Raises `LeaseLost`.
        """
        partitions = partitions_of(user_ids, self._keys.partitions)
        for partition, before in enumerate(await self._by_partition(epoch)):
            key = self._keys.active(epoch, partition)
            own = {user_ids[k] for k in np.flatnonzero(partitions == partition).tolist()}
            gone, new = sorted(before - own), sorted(own - before)
            if lease is not None and (gone or new):
                await lease.renew()
            for start in range(0, len(gone), _AT_ONCE):
                await self._client.srem(key, *gone[start : start + _AT_ONCE])
            for start in range(0, len(new), _AT_ONCE):
                some = new[start : start + _AT_ONCE]
                await self._client.call("add_active", ([key, *self._keys.users(epoch, some)], some))

    async def remove(self, epoch: int, user_id: bytes) -> None:
        """Take out a user who was forgotten."""
        partition = partition_of(user_id, self._keys.partitions)
        await self._client.srem(self._keys.active(epoch, partition), user_id)

    async def _by_partition(self, epoch: int) -> list[set[bytes]]:
        keys = [self._keys.active(epoch, partition) for partition in range(self._keys.partitions)]
        return await self._client.of_each("SMEMBERS", keys)
