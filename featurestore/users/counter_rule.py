"""The counter rule. Invariant: a record is current if and only if it has seen the user's `n`, and is what was
written.

`n` counts the rating events of a user, and a record starts with the `n` that it has seen. An unknown user has
neither: the prior stands for it. Nothing else is cached, so there is nothing to invalidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from factors import Float32s, Int64s
from featurestore.codecs import COUNTER, History, damaged_records, read_record
from featurestore.generations.live import LiveGeneration
from featurestore.wire.resp import ReplyError


class UserLookup(NamedTuple):
    """Users as their records say. `n` int64 (m,), `vectors` float32 (m, user_width), read only.

    `behind`: positions of the users whose record is not current, `behind_ids` their ids; their rows are the
    prior until they are folded in. An unknown user has `n` 0 and the prior, and is not behind. `records`: as
    bytes, where they were read one by one. `histories`: of some users, what the store said of them right
    after that, as `HistoryReader.look_of` reads it.
    """

    n: Int64s
    vectors: Float32s
    behind: list[int]
    behind_ids: list[bytes]
    records: Sequence[bytes] = ()
    histories: Mapping[bytes, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Profile:
    """One user as of now: `n`, `vector` float32 (user_width,), the effective history (where that is not
    `whole`, a part that has all that the vector rests on), whether it was folded in for this answer, and the
    `attributes` as they are stored, where the vector may rest on such.
    """

    n: int
    vector: Float32s
    history: History
    folded: bool
    whole: bool = True
    attributes: bytes = b""


def apply(live: LiveGeneration, user_ids: Sequence[bytes], replies: Sequence[Any]) -> UserLookup:
    """Read `[n, record]` of each user; an error in its place means that the user is behind."""
    prior, seen = live.prior_record, COUNTER.unpack_from
    size = len(prior)
    records: list[bytes] = []
    behind: list[int] = []
    for position, reply in enumerate(replies):
        if isinstance(reply, ReplyError):
            # A key of another type, or a store that is going away: `catch_up` asks again and tells which.
            behind.append(position)
            records.append(prior)
            continue
        n, record = reply
        if record is not None and len(record) != size:
            record = read_record(record, size)
        if n is None:
            records.append(prior)
        # `n` is decimal text, as HINCRBY writes it: of any other `catch_up` tells.
        elif record is not None and n.isdigit() and seen(record)[0] == int(n):
            records.append(record)
        else:
            behind.append(position)
            records.append(prior)
    # Those that are behind are looked at where they are folded in.
    damaged = damaged_records(b"".join(records), size)
    if damaged:
        behind = sorted({*behind, *damaged})
        for position in damaged:
            records[position] = prior
    found = of_records(live, records)
    return found._replace(behind=behind, behind_ids=[user_ids[k] for k in behind]) if behind else found


def of_records(live: LiveGeneration, records: Sequence[bytes]) -> UserLookup:
    """Users whose records are these; the prior's stands for an unknown one."""
    # A row for each user, whatever is known of it: vectors stay beside the pairs that asked for them.
    table = np.frombuffer(b"".join(records), live.record_dtype)
    return UserLookup(table["n"].view(np.int64), table["vector"], [], [], records)


def may_continue(record: bytes | None, n: int) -> bool:
    """Whether a fold-in of a history of `n` events may go on from `record`, None where there is none.

    Not from one that has seen more than there is: that belongs to a lost history.
    """
    return record is not None and unseen(record, n) >= 0


def unseen(record: bytes, n: int) -> int:
    """Return how many of `n` events a record has not seen."""
    return n - int(COUNTER.unpack_from(record)[0])


def behind(n: Int64s, records: npt.NDArray[Any]) -> Int64s:
    """The positions at which one of `records` (m,), `codecs.record_dtype`, is not current; the same rule, for
    arrays.
    """
    found = n != records["n"].view(np.int64)
    found[damaged_records(records.view(np.uint8).data, records.itemsize)] = True
    return np.flatnonzero(found)
