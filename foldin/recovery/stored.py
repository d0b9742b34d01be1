"""The histories of the store as columns. Invariant: what was acknowledged before the call is there, each
user's entries in their order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from factors import Float32s, Int64s
from featurestore.codecs import ENTRY_BYTES, ENTRY_DTYPE, rated_items
from featurestore.contexts import codec as contexts
from featurestore.store import Store
from featurestore.users.records import StoredUser
from foldin.recovery.events import RatingEvents
from foldin.recovery.retries import Progress, no_progress, retried
from trainer.archive.events import string_array


@dataclass(frozen=True, slots=True)
class Histories:
    """All users of an epoch. `events`: their entries, `n` being the place in the history; `n` int64 (u,): the
    count of each of the users, in the order of `events.user_ids`.
    """

    events: RatingEvents
    n: Int64s


async def read_histories(
    store: Store,
    epoch: int,
    keep: Callable[[bytes], bool] = lambda _user_id: True,
    progress: Progress = no_progress,
) -> Histories:
    """Read the users for whom `keep` says so; `progress` is by partitions. Raises `StoppedError`."""
    # By id: a scan may give a user twice, later with more ratings.
    users: dict[bytes, StoredUser] = {}
    for partition in range(store.config.partitions):
        cursor, more = 0, True
        while more:
            cursor, found = await retried(store.users.scan, epoch, partition, cursor)
            more = cursor != 0
            users |= {user.user_id: user for user in found if keep(user.user_id)}
        progress(partition + 1, store.config.partitions)
    registry = store.items(epoch)
    # After the histories: it has all the items that they name.
    await retried(registry.refresh)
    return _columns(list(users.values()), string_array(registry.ids))


def _columns(users: list[StoredUser], item_ids: pa.StringArray) -> Histories:
    counts = np.array([len(user.history) // ENTRY_BYTES for user in users], dtype=np.int64)
    data = b"".join(
        [user.history[: count * ENTRY_BYTES] for user, count in zip(users, counts.tolist(), strict=True)]
    )
    # One buffer for all: an array for each of a hundred thousand users costs more than their ratings.
    entries = np.frombuffer(data, dtype=ENTRY_DTYPE)
    owner = np.repeat(np.arange(len(users)), counts)
    events = RatingEvents(
        user_ids=string_array(user.user_id for user in users),
        item_ids=item_ids,
        user=owner,
        item=entries["item_row"].astype(np.int64),
        n=np.arange(len(entries)) - np.repeat(np.cumsum(counts) - counts, counts),
        rating=entries["rating"].astype(np.float64),
        time=entries["time"].astype(np.float64),
        arrived_ms=np.zeros(len(entries), dtype=np.int64),
        type_code=np.ascontiguousarray(entries["type_code"]),
        context=_contexts(users, owner, entries),
    )
    # A row beyond the registry is of no item; the store has lost it.
    known = events.item < len(item_ids)
    return Histories(
        events if known.all() else events.take(known), np.array([user.n for user in users], dtype=np.int64)
    )


def _contexts(users: list[StoredUser], owner: Int64s, entries: npt.NDArray[Any]) -> Float32s | None:
    """Return the contexts of `entries` (m,), whose users are `owner` (m,)."""
    given = [k for k, user in enumerate(users) if user.contexts]
    every, of_entry = contexts.of_users([users[k].contexts for k in given], given)
    time = entries["time"].astype(np.float64)
    return contexts.match(rated_items(entries), time, every, (owner, of_entry))
