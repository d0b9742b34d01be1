"""Refuses ratings before anything of them is written: streams that are full, histories that are too long.

Invariant: it says what the store will say, as far as that can be known; in a race for the last room the store
decides.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from featurestore.codecs import ENTRY_BYTES
from featurestore.errors import HistoryFull, StreamFull
from featurestore.keys import Keys
from featurestore.ratings.batches import Share
from featurestore.ratings.stream import RatingsStream
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many
from featurestore.wire.resp import encode

# As for a store that is away: the trainer frees room all the time.
RETRY_FULL_S = 1.0
Targets = Mapping[int, Sequence[int]]
"""The epochs that take the ratings of each partition, the live one first."""


async def require_room(stream: RatingsStream, limit: int, shares: Sequence[Share], targets: Targets) -> None:
    """Raise `StreamFull` where more than `limit` events of a partition would wait for the trainer."""
    size = Counter[int]()
    for share in shares:
        size[share.partition] += len(share.rows)
    for epoch in sorted({epoch for several in targets.values() for epoch in several}):
        found = await stream.progress(epoch)
        for partition, ratings in size.items():
            room = limit - found[partition].waiting
            if epoch in targets[partition] and ratings > room:
                raise StreamFull("too many ratings wait for the trainer", RETRY_FULL_S)


async def require_short_histories(
    keys: Keys, connection: Connection, shares: Sequence[Share], targets: Targets, *, most: int
) -> None:
    """Raise `HistoryFull` where a user would have more than `most` entries."""
    names = [
        keys.history_prefix(targets[share.partition][0], share.partition) + user
        for share in shares
        for user in share.users
    ]
    new = np.concatenate([np.diff(share.ends) for share in shares])
    stored = await call_many(connection, [encode(b"STRLEN", name) for name in names])
    full = np.flatnonzero(np.array(stored) // ENTRY_BYTES + new > most)
    if len(full):
        users = [user for share in shares for user in share.users]
        raise HistoryFull(users[full[0]], most)
