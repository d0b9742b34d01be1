"""Rating events of many users as columns, from an archive or a store. Invariant: one code stands for one id,
within these columns, and each user's entries are in their order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Float32s, Float64s, Int64s, UInt8s, typed_items
from featurestore.contexts import codec as contexts
from featurestore.store import Store
from featurestore.users.records import StoredUser
from foldin.recovery.retries import Progress, no_progress, retried
from trainer.archive.events import string_array
from trainer.archive.reading import Part, events_of, join_parts, read_part, scan_users

# Of an archived event.
NUMBERS = ("n", "rating", "time", "type_code", "stream_ms", "stream_seq")
# Of RatingEvents, each (m,).
_COLUMNS = ("user", "item", "n", "rating", "time", "arrived_ms", "type_code")


@dataclass(frozen=True, slots=True)
class RatingEvents:
    """m events. `user_ids`, `item_ids`: each id once; `user`, `item` int64 (m,): positions there.

    `n` int64 (m,): of the events of a pair the one with the highest is the last, of equal ones the later in
    this order. `rating` float64 (m,), NaN takes the pair back; `time` float64 (m,), seconds since 1970, NaN
    if unknown; `arrived_ms` int64 (m,), by the store's clock; where that is unknown 0, or, of a rebuilt
    archive, the negative of a time by which it was there; `type_code` uint8 (m,), 0 for a rating, of
    another type `rating` is the value. A pair is a user with an item and a type. `context` float32 (m, k):
    what was told with each (`featurestore/contexts/codec.py`), None where with none was anything.
    """

    user_ids: pa.StringArray
    item_ids: pa.StringArray
    user: Int64s
    item: Int64s
    n: Int64s
    rating: Float64s
    time: Float64s
    arrived_ms: Int64s
    type_code: UInt8s
    context: Float32s | None = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def key(self) -> Int64s:
        """Return item and type of each event (m,) as one number: with the user, what a later one replaces."""
        return typed_items(self.item, self.type_code)

    def take(self, rows: Int64s | npt.NDArray[np.bool_]) -> "RatingEvents":
        """Some of the events, in this order, with the same codes."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, context=None if self.context is None else self.context[rows], **columns)


def as_bytes(ids: pa.StringArray) -> list[bytes]:
    """Return ids as objects."""
    found: list[bytes] = ids.cast(pa.binary()).to_pylist()
    return found


def of_tables(tables: Iterable[pa.Table]) -> RatingEvents:
    """Return archived events as columns. Tables of the archive's schema, in the order of the log."""
    return of_parts([read_part(zip(each.schema, each.columns, strict=True), NUMBERS) for each in tables])


def of_parts(parts: Sequence[Part]) -> RatingEvents:
    """Return archived events as columns. Takes `parts` with their `NUMBERS`, in the order of the log."""
    found = join_parts(parts, NUMBERS)
    user, item, ms = found.user.astype(np.int64), found.item.astype(np.int64), found.numbers["stream_ms"]
    n, rating, time, codes = (found.numbers[name] for name in ("n", "rating", "time", "type_code"))
    # A rebuilt archive has the time when it was rebuilt in place of the number.
    arrived = np.where(ms > 0, ms, -found.numbers["stream_seq"])
    context = contexts.joined(found.contexts)
    return RatingEvents(found.user_ids, found.item_ids, user, item, n, rating, time, arrived, codes, context)


def with_codes_of(events: RatingEvents, other: RatingEvents) -> RatingEvents:
    """Return `events` with codes that `other` uses too; ids that it lacks get further ones."""
    user_ids, user = _recoded(events.user_ids, other.user_ids)
    item_ids, item = _recoded(events.item_ids, other.item_ids)
    return replace(
        events, user_ids=user_ids, item_ids=item_ids, user=user[events.user], item=item[events.item]
    )


def _recoded(ids: pa.StringArray, known: pa.StringArray) -> tuple[pa.StringArray, Int64s]:
    # By Arrow: a dictionary of a million ids in Python takes a second and 200 MB.
    found = pc.index_in(ids, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    new = np.flatnonzero(found < 0)
    found[new] = len(known) + np.arange(len(new))
    return pa.concat_arrays([known, ids.take(pa.array(new))]), found


def joined(first: RatingEvents, later: RatingEvents) -> RatingEvents:
    """Events of both as one; `later` has the codes of `first` and further ones, and comes after it."""
    # A user's events of `later` follow all of `first`, whose counts are another store's.
    after = int(first.n.max(initial=0)) + 1 - int(later.n.min(initial=0))
    return concatenated(first, replace(later, n=later.n + after), codes=later)


def concatenated(first: RatingEvents, second: RatingEvents, *, codes: RatingEvents) -> RatingEvents:
    """Events of both as one, with the codes of `codes`, which has those of both."""
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in _COLUMNS}
    context = contexts.joined([(len(each), each.context) for each in (first, second)])
    return replace(codes, context=context, **columns)


def numbered_pairs(one: RatingEvents, other: RatingEvents) -> tuple[Int64s, Int64s]:
    """Return user and key of each event as one number, (m,), of both, which use the same codes."""
    # A sort by one number, and a search in it.
    width = 1 + max(one.key.max(initial=0), other.key.max(initial=0))
    return one.user * width + one.key, other.user * width + other.key


@dataclass(frozen=True, slots=True)
class Histories:
    """All users of an epoch. `events`: their entries, `n` being the place in the history; `n` int64 (u,): the
    count of each of the users, in the order of `events.user_ids`.
    """

    events: RatingEvents
    n: Int64s


async def read_histories(store: Store, epoch: int, progress: Progress = no_progress) -> Histories:
    """Read all histories; what was acknowledged before the call is there. `progress`: by partitions. Raises
    `StoppedError`.
    """
    # By id: a scan may give a user twice, later with more ratings.
    users: dict[bytes, StoredUser] = {}
    async for done, some in scan_users(store, epoch, retried):
        users |= {user.user_id: user for user in some}
        progress(done, store.keys.partitions)
    registry = store.items(epoch)
    # After the histories: it has all the items that they name.
    await retried(registry.refresh)
    found, _, _ = events_of(list(users.values()))
    user_ids, item_ids = string_array(found.users), string_array(registry.ids)
    events = RatingEvents(
        *(user_ids, item_ids, found.user, found.item_row, found.n, found.rating, found.time),
        arrived_ms=found.stream_ms,
        type_code=found.type_code,
        context=found.context,
    )
    # A row beyond the registry is of no item; the store has lost it.
    known = events.item < len(item_ids)
    counts = np.array([user.n for user in users.values()], dtype=np.int64)
    return Histories(events if known.all() else events.take(known), counts)
