"""Ratings of one call as the store takes them: split by partition and user, packed, and unpacked from the
stream.

Invariant: the ratings of a user stay in the order in which they were given.

An entry of a stream holds the events of one step, those of a call in one partition or a part of them: `u`,
the ids of its users; `n`, for each user the count before and how many events it has; `e`, their history
entries. Its id ends with the number of its last event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from factors import Float64s, Int64s
from featurestore.codecs import ENTRY_BYTES, ENTRY_DTYPE, pack_entry
from featurestore.keys import partition_of, partitions_of

NUMBER_DTYPE = np.dtype([("before", "<u8"), ("events", "<u4")])
LENGTH_DTYPE = np.dtype("<u2")
# A step keeps the store for 4 to 8 microseconds a rating where each is of another user, and lookups wait.
STEP_RATINGS = 128


@dataclass(frozen=True, slots=True)
class Columns:
    """Ratings of a call, in order. `user_id`, `item_id`: m ids; `rating` float64 (m,), NaN takes the item's
    rating back; `time` float64 (m,), seconds since 1970, NaN if unknown.
    """

    user_id: Sequence[bytes]
    item_id: Sequence[bytes]
    rating: Float64s
    time: Float64s

    def __len__(self) -> int:
        return len(self.user_id)


@dataclass(frozen=True, slots=True)
class Share:
    """What a partition gets of a call in one step: its users, `rows` int64 (k,) of the call by user, and
    where each user's end: the user `u` has `rows[ends[u]:ends[u + 1]]`.
    """

    partition: int
    users: list[bytes]
    rows: Int64s
    ends: list[int]


def shares_of(user_ids: Sequence[bytes], partitions: int) -> list[Share]:
    """The shares of all partitions that get anything, each cut between users where it is longer than
    `STEP_RATINGS`.
    """
    if len(user_ids) == 1:
        partition = partition_of(user_ids[0], partitions)
        return [Share(partition, list(user_ids), np.zeros(1, dtype=np.int64), [0, 1])]
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
        return [pack_entry(item_row[row], columns.rating[row], columns.time[row])]
    table = np.empty(len(share.rows), dtype=ENTRY_DTYPE)
    table["item_row"] = item_row[share.rows]
    table["rating"] = columns.rating[share.rows]
    table["time"] = columns.time[share.rows]
    data = table.tobytes()
    return [data[start * ENTRY_BYTES : stop * ENTRY_BYTES] for start, stop in pairwise(share.ends)]


def pack_ids(users: Sequence[bytes]) -> bytes:
    """Ids as an entry of the stream has them: all lengths, then all ids."""
    if len(users) == 1:
        return len(users[0]).to_bytes(2, "little") + users[0]
    return np.array(list(map(len, users)), dtype=LENGTH_DTYPE).tobytes() + b"".join(users)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Events of several entries, in order.

    `entry`, `number`: int64 (m,), the position of an event's entry and the event's own number in the stream;
    `users`: ids; `user` int64 (m,): position in `users`; `n` int64 (m,); `table`: history entries (m,).
    """

    entry: Int64s
    number: Int64s
    users: list[bytes]
    user: Int64s
    n: Int64s
    table: npt.NDArray[Any]


def unpack(fields: Sequence[Sequence[bytes]], last: Int64s) -> tuple[Unpacked, list[int]]:
    """Events of entries with these `fields` and `last` numbers (k,); positions of entries that are damaged
    and were left out.
    """
    sound = [k for k, of in enumerate(fields) if _is_sound(of)]
    users: list[bytes] = []
    for k in sound:
        _unpack_ids(fields[k][1], fields[k][3], users)
    numbers = np.frombuffer(b"".join([fields[k][1] for k in sound]), dtype=NUMBER_DTYPE)
    table = np.frombuffer(b"".join([fields[k][5] for k in sound]), dtype=ENTRY_DTYPE)
    of_user = numbers["events"].astype(np.int64)
    user = np.repeat(np.arange(len(users)), of_user)
    size = np.array([len(fields[k][5]) // ENTRY_BYTES for k in sound], dtype=np.int64)
    entry = np.repeat(np.array(sound, dtype=np.int64), size)
    unpacked = Unpacked(
        entry=entry,
        number=last[entry] - np.repeat(size - 1, size) + _within(size),
        users=users,
        user=user,
        n=numbers["before"].astype(np.int64)[user] + 1 + _within(of_user),
        table=table,
    )
    damaged = sorted(set(range(len(fields))) - set(sound))
    return unpacked, damaged


def _within(sizes: Int64s) -> Int64s:
    """0, 1, ... in each of groups of these sizes."""
    starts = np.cumsum(sizes) - sizes
    within: Int64s = np.arange(int(sizes.sum()), dtype=np.int64) - np.repeat(starts, sizes)
    return within


def _is_sound(fields: Sequence[bytes]) -> bool:
    if len(fields) != 6 or fields[0] != b"n" or fields[2] != b"u" or fields[4] != b"e":
        return False
    numbers, ids, entries = fields[1], fields[3], fields[5]
    count, rest = divmod(len(numbers), NUMBER_DTYPE.itemsize)
    if rest or not count or len(ids) < count * LENGTH_DTYPE.itemsize:
        return False
    if count == 1:
        length, events = int.from_bytes(ids[:2], "little"), int.from_bytes(numbers[8:12], "little")
    else:
        length = int(np.frombuffer(ids, LENGTH_DTYPE, count).sum(dtype=np.int64))
        events = int(np.frombuffer(numbers, NUMBER_DTYPE)["events"].sum(dtype=np.int64))
    return length == len(ids) - count * LENGTH_DTYPE.itemsize and events * ENTRY_BYTES == len(entries)


def _unpack_ids(numbers: bytes, ids: bytes, users: list[bytes]) -> None:
    count = len(numbers) // NUMBER_DTYPE.itemsize
    if count == 1:
        users.append(ids[2:])
        return
    ends = np.cumsum(np.frombuffer(ids, LENGTH_DTYPE, count), dtype=np.int64) + count * LENGTH_DTYPE.itemsize
    stops = ends.tolist()
    users += [ids[start:stop] for start, stop in pairwise([count * LENGTH_DTYPE.itemsize, *stops])]
