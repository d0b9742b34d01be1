"""Ratings of one call as the store takes them: split by partition and user, and packed.

Invariant: the ratings of a user stay in the order in which they were given.

An entry of a stream holds the events of one step, those of a call in one partition or a part of them: `u`,
the ids of its users; `n`, for each user the count before and how many events it has; `e`, their history
entries. Its id ends with the number of its last event. Where any of the users has contexts, `x`: how many
bytes each user's have, then those of the ratings of this entry.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from factors import Float32s, Float64s, Int64s, UInt8s
from featurestore.codecs import ENTRY_BYTES, ENTRY_DTYPE, pack_entry
from featurestore.contexts.codec import pack_entries as pack_context_entries
from featurestore.keys import Keys, partition_of, partitions_of
from featurestore.wire.functions import encode_packed_call

NUMBER_DTYPE = np.dtype([("before", "<u8"), ("events", "<u4")])
LENGTH_DTYPE = np.dtype("<u2")
CONTEXT_LENGTH_DTYPE = np.dtype("<u4")
# A step keeps the store for 4 to 8 microseconds a rating where each is of another user, and lookups wait.
STEP_RATINGS = 128


@dataclass(frozen=True, slots=True)
class Columns:
    """Ratings of a call, in order. `user_id`, `item_id`: m ids; `rating` float64 (m,), NaN takes the item's
    rating back; `time` float64 (m,), seconds since 1970, NaN if unknown. `type_code` uint8 (m,): where there
    are events of other types among them (0: a rating), whose `rating` is their value. `known`: the `n` of
    each user as it was read: of those who were forgotten since nothing is stored. `context` float32 (m, k):
    what was told with each rating (`contexts/codec.py`), NaN where nothing was; None where with none.
    `only_into`: the live epoch, and the one that is being prepared where they may go there, too; nothing is
    stored then of users who have made an event of the same item and type since `known`, who cannot be read,
    or, not counted as left out, of whom there is nothing.
    """

    user_id: Sequence[bytes]
    item_id: Sequence[bytes]
    rating: Float64s
    time: Float64s
    type_code: UInt8s | None = None
    known: Mapping[bytes, int] | None = None
    context: Float32s | None = None
    only_into: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.user_id)

    def part(self, rows: slice) -> "Columns":
        """Some of the ratings."""
        codes = None if self.type_code is None else self.type_code[rows]
        context = None if self.context is None else self.context[rows]
        columns = self.user_id[rows], self.item_id[rows], self.rating[rows], self.time[rows]
        return Columns(*columns, codes, context=context)

    def ratings(self) -> "Columns":
        """Return the ratings among these events."""
        if self.type_code is None:
            return self
        return self.taken(np.flatnonzero(self.type_code == 0).tolist())

    def taken(self, places: Sequence[int]) -> "Columns":
        """Return what stands at `places`, where there are ratings alone."""
        users, items = ([ids[k] for k in places] for ids in (self.user_id, self.item_id))
        context = None if self.context is None else self.context[places]
        return Columns(users, items, self.rating[places], self.time[places], context=context)

    @property
    def mode(self) -> bytes:
        """How `rate` takes these where they are not those that begin an epoch."""
        return b"live" if self.known is None else b"unchanged" if self.only_into else b"shown"

    @property
    def has_ratings(self) -> bool:
        """Whether any of these events is a rating."""
        return self.type_code is None or not self.type_code.all()


@dataclass(frozen=True, slots=True)
class Share:
    """What a partition gets of a call in one step: its users, `rows` int64 (k,) of the call by user, and
    where each user's end: the user `u` has `rows[ends[u]:ends[u + 1]]`.
    """

    partition: int
    users: list[bytes]
    rows: Int64s
    ends: list[int]

    def without(self, gone: Collection[int]) -> "Share":
        """Return the share without the users at the positions `gone`."""
        kept = [u for u in range(len(self.users)) if u not in gone]
        size = np.diff(self.ends)
        rows = self.rows[np.repeat(~np.isin(np.arange(len(size)), [*gone]), size)]
        ends = [0, *np.cumsum(size[kept]).tolist()]
        return Share(self.partition, [self.users[u] for u in kept], rows, ends)


def shares_of(user_ids: Sequence[bytes], partitions: int) -> list[Share]:
    """The shares of all partitions that get anything, each cut between users where it is longer than
    `STEP_RATINGS`.
    """
    if len(user_ids) == 1:
        one = np.zeros(1, dtype=np.int64)
        return [Share(partition_of(user_ids[0], partitions), list(user_ids), one, [0, 1])]
    codes: dict[bytes, int] = {}
    code = np.array([codes.setdefault(user_id, len(codes)) for user_id in user_ids], dtype=np.int64)
    users = list(codes)
    of_user = partitions_of(users, partitions)
    # Users by partition, each partition's in the order in which they came.
    place = np.argsort(of_user, kind="stable")
    rank = np.empty(len(users), dtype=np.int64)
    rank[place] = np.arange(len(users))
    rows = np.argsort(rank[code], kind="stable")
    ends = np.zeros(len(users) + 1, dtype=np.int64)
    np.cumsum(np.bincount(code, minlength=len(users))[place], out=ends[1:])
    found, first = np.unique(of_user[place], return_index=True)
    borders = [*first.tolist(), len(users)]
    order = [users[k] for k in place.tolist()]
    shares = []
    for number, (start, stop) in zip(found.tolist(), pairwise(borders), strict=True):
        # Users whose ratings begin within the same so many of the partition's share a step.
        begin = ends[start:stop] - ends[start]
        cuts = np.flatnonzero(np.diff(begin // STEP_RATINGS)) + 1 + start
        for a, b in pairwise([start, *cuts.tolist(), stop]):
            inside = ends[a : b + 1]
            mine = rows[inside[0] : inside[-1]]
            shares.append(Share(number, order[a:b], mine, (inside - inside[0]).tolist()))
    return shares


def pack_entries(share: Share, item_row: Int64s, columns: Columns) -> list[bytes]:
    """The history entries of each user of a share. `item_row` int64 (m,): of each rating of the call."""
    if len(share.rows) == 1:
        row = share.rows[0]
        code = 0 if columns.type_code is None else int(columns.type_code[row])
        return [pack_entry(item_row[row], columns.rating[row], columns.time[row], code)]
    table = np.empty(len(share.rows), dtype=ENTRY_DTYPE)
    table["item_row"] = item_row[share.rows]
    table["type_code"] = 0 if columns.type_code is None else columns.type_code[share.rows]
    table["rating"] = columns.rating[share.rows]
    table["time"] = columns.time[share.rows]
    data = table.tobytes()
    return [data[start * ENTRY_BYTES : stop * ENTRY_BYTES] for start, stop in pairwise(share.ends)]


@dataclass(frozen=True, slots=True)
class PackedContexts:
    """Contexts of ratings as entries. `given`: '1' for each user who gave any, else '0'; `entries`: those of
    each user, one for each rating, also where nothing was given.
    """

    given: bytes
    entries: list[bytes]


def pack_contexts(rows: Int64s, ends: Sequence[int], item_row: Int64s, columns: Columns) -> PackedContexts:
    """The contexts of users. `rows`, `ends`: as in `Share`; `item_row` int64 (m,): of each rating of the
    call.
    """
    context = columns.context
    if context is None:
        context = np.full((len(columns), 0), np.nan, dtype=np.float32)
    gives = np.concatenate([[0], np.cumsum(~np.isnan(context[rows]).all(axis=1))])[np.asarray(ends)]
    if columns.type_code is not None:
        # Events of other types have none.
        rated = columns.type_code[rows] == 0
        ends = np.concatenate([[0], np.cumsum(rated)])[np.asarray(ends)].tolist()
        rows = rows[rated]
    entries = pack_context_entries(item_row[rows], columns.time[rows], context[rows], ends)
    return PackedContexts(b"".join([b"1" if each else b"0" for each in np.diff(gives)]), entries)


def pack_ids(users: Sequence[bytes]) -> bytes:
    """Ids as an entry of the stream has them: all lengths, then all ids."""
    if len(users) == 1:
        return len(users[0]).to_bytes(2, "little") + users[0]
    return np.array(list(map(len, users)), dtype=LENGTH_DTYPE).tobytes() + b"".join(users)


def encode_rate(
    keys: Keys,
    share: Share,
    item_rows: Mapping[int, Int64s],
    columns: Columns,
    fixed: Sequence[bytes],
    *,
    contexts: bool = False,
) -> bytes:
    """The call of `rate` for a share. `item_rows`: of all ratings of the call, in each epoch that they go
    to; `fixed`: the arguments before the ids; `contexts`: with those of the ratings.
    """
    users, partition = share.users, share.partition
    key = keys.epochs(partition)
    names, args = [b"$%d\r\n%b\r\n" % (len(key), key)], [*fixed, pack_ids(users)]
    packed = (
        [pack_contexts(share.rows, share.ends, item_row, columns) for item_row in item_rows.values()]
        if contexts
        else []
    )
    args.append(packed[0].given if packed else b"" if columns.has_ratings else b"-")
    for epoch, item_row in item_rows.items():
        streams = (keys.ratings(epoch, partition), keys.counts(epoch, partition))
        names += [b"$%d\r\n%b\r\n" % (len(key), key) for key in (*streams, keys.forgotten(epoch, partition))]
        user, history = keys.user_prefixes(epoch)[partition], keys.history_prefix(epoch, partition)
        a, b = len(user), len(history)
        own = [
            b"$%d\r\n%b%b\r\n$%d\r\n%b%b\r\n" % (a + len(each), user, each, b + len(each), history, each)
            for each in users
        ]
        if packed:
            third = keys.contexts_prefix(epoch, partition)
            own = [
                b"%b$%d\r\n%b%b\r\n" % (two, len(third) + len(each), third, each)
                for two, each in zip(own, users, strict=True)
            ]
        names += own
        args += pack_entries(share, item_row, columns)
    for each_epoch in packed:
        args += each_epoch.entries
    if columns.known is not None:
        args.append(np.array([columns.known[each] for each in users], dtype="<u8").tobytes())
    n_keys = 1 + len(item_rows) * (3 + (3 if packed else 2) * len(users))
    values = [b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args]
    return encode_packed_call("rate", n_keys, names, len(args), values)
