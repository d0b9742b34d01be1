"""What an event of each type says in a ranking head, and which event of a pair counts.

Invariant: of all events of a user and an item one counts, in the fit as in folding in, whatever the weights.
A rating counts before any other; then what the user did on purpose (`decisive`), then the rest, and last what
was only shown; of two of one kind the later one. So a view of what was bought says nothing more, and what was
shown and then chosen does not count as left out.

An event of weight `w` is a term `w (x y - t)^2` of the squares that the head minimises
(`factors/ranking/half_steps.py`), with the target `t` 1 where the user wanted the item, and 0 where not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from factors.inference.histories import Compressed, compress_pairs
from factors.model.types import Bools, Choices, Float32s, Float64s, Histories, Int64s, UInt8s

Meaning = Literal["positive", "negative", "shown"]

# Item and type make one number, which stays below 2^32 (`typed_items`).
TYPE_CODES = 32
# What a type counts where nothing chooses: what users did as much as a rating, what they saw hardly, as it
# comes tenfold.
_UNCHOSEN = {"positive": 1.0, "negative": 1.0, "shown": 0.1}
# Of events of a pair the one of the highest number counts.
_RANKS = {"shown": 0, "negative": 1, "positive": 1}
# In that order before all of these.
_DECISIVE, _RATING = 2, 3


@dataclass(frozen=True, slots=True)
class TypeWeight:
    """What the events of one type count. `weight`: where a rating counts 1; None: to be chosen; `decisive`:
    what users did on purpose, which lists are to find; `decided`: events of the type when the weight was last
    chosen, or they were too few for that; 0 where it is given.
    """

    code: int
    meaning: Meaning
    weight: float | None = None
    decisive: bool = False
    decided: int = 0


def resolved(
    types: Sequence[TypeWeight], earlier: Sequence[TypeWeight] = ()
) -> tuple[tuple[TypeWeight, ...], frozenset[int]]:
    """Return the types, each with a weight: its own, else what was chosen in `earlier`, else that of its
    meaning; and the codes of those without one of their own.
    """
    # A weight that was given once was not chosen.
    before = {each.code: each for each in earlier if each.decided}
    found = []
    for each in types:
        weight, decided = each.weight, 0
        if weight is None:
            chosen = before.get(each.code, each)
            weight = _UNCHOSEN[each.meaning] if chosen.weight is None else chosen.weight
            decided = chosen.decided
        found.append(replace(each, weight=weight, decided=decided))
    return tuple(found), frozenset(each.code for each in types if each.weight is None)


@dataclass(frozen=True, slots=True)
class TypeTable:
    """By code: `weight`, `target` float64 (32,), `rank` int64 (32,) by which one event of a pair is taken,
    and `decisive` (32,), whether lists are to find such a pair. A type that is not known weighs nothing.
    """

    weight: Float64s
    target: Float64s
    rank: Int64s
    decisive: Bools

    @classmethod
    def of(cls, types: Sequence[TypeWeight]) -> "TypeTable":
        """Return the table of these types and of ratings."""
        weight, target = np.zeros(TYPE_CODES), np.ones(TYPE_CODES)
        rank, decisive = np.zeros(TYPE_CODES, dtype=np.int64), np.zeros(TYPE_CODES, dtype=np.bool_)
        weight[0], rank[0], decisive[0] = 1.0, _RATING, True
        for each in types:
            weight[each.code] = _UNCHOSEN[each.meaning] if each.weight is None else each.weight
            target[each.code] = float(each.meaning == "positive")
            rank[each.code] = _DECISIVE if each.decisive else _RANKS[each.meaning]
            decisive[each.code] = each.decisive and each.meaning == "positive"
        return cls(weight, target, rank, decisive)

    def weights(self, codes: UInt8s | None, data: Compressed) -> tuple[Float64s | None, Float64s | None]:
        """Return weight and target of each event (n,) of `data`, None where all are ratings. `codes`: by
        `data.source`.
        """
        if codes is None:
            return None, None
        own = codes[data.source]
        return self.weight[own], self.target[own]


def typed_items(item: npt.NDArray[np.integer[Any]], type_code: npt.NDArray[np.integer[Any]]) -> Int64s:
    """Return a number for each item (m,) with its type (m,): by whatever it goes that an item stands once for
    each type, the same for the same; negative where the item is.
    """
    return item.astype(np.int64) * TYPE_CODES + type_code


def compress_types(histories: Histories, n_other: int, table: TypeTable) -> Compressed:
    """Return `histories` of all types with one event for each pair, see above; an entry whose row is not in
    the other table, of `n_other` rows, gets -1. Types that weigh nothing are left out.
    """
    n_rows = len(histories.offsets) - 1
    row = np.repeat(np.arange(n_rows, dtype=np.int32), np.diff(histories.offsets))
    codes = np.zeros(len(row), np.uint8) if histories.type_code is None else histories.type_code
    events = Choices(row, histories.other_row, histories.value, histories.time, codes)
    data = one_of_pairs(events, n_rows, table)
    unknown = (data.other < 0) | (data.other >= n_other)
    data.other[unknown] = -1
    return data


def one_of_pairs(choices: Choices, n_rows: int, table: TypeTable, high: float = 1.0) -> Compressed:
    """Return events by user with the one of each pair that counts; `source` is the position in `choices`.

    The value of an event that is no rating is `high`.
    """
    # Each type of a pair once, the last one, unless that was taken back.
    codes, key = choices.type_code, typed_items(choices.item_row, choices.type_code)
    each = compress_pairs(choices.user_row, key, choices.value, choices.time, n_rows)
    own, pair_other = codes[each.source], each.other // TYPE_CODES
    order = np.lexsort((each.source, table.rank[own], pair_other, each.row))
    order = order[table.weight[own[order]] > 0]
    pair_row, pair_other = each.row[order], pair_other[order]
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = (pair_row[1:] != pair_row[:-1]) | (pair_other[1:] != pair_other[:-1])
    order = order[last]
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(pair_row[last], minlength=n_rows), out=indptr[1:])
    value = np.where(own[order] == 0, each.value[order], high)
    return Compressed(indptr, pair_other[last], value, each.time[order], each.source[order])


def event_worth(types: Sequence[TypeWeight]) -> Float64s:
    """Return by code what one event adds to the sums of its item (32, 3): its weight and 1 where the user
    wanted the item, and 1 in the third where not; nothing of a rating.
    """
    worth = np.zeros((TYPE_CODES, 3))
    for each in types:
        if each.meaning == "positive":
            worth[each.code, :2] = _UNCHOSEN[each.meaning] if each.weight is None else each.weight, 1.0
        else:
            worth[each.code, 2] = 1.0
    return worth


def event_sums(histories: Histories, types: Sequence[TypeWeight]) -> Float32s:
    """Return of each row (b, 3) the weight of its positive events, how many these are, and how many others
    that are no ratings: of a pair each type once, unless that was taken back.
    """
    each, codes = _last_events(histories)
    sums = [np.bincount(each.row, column, each.rows) for column in event_worth(types)[codes].T]
    return np.stack(sums, axis=1).astype(np.float32)


def wanted_times(histories: Histories, types: Sequence[TypeWeight]) -> tuple[Int64s, Float64s]:
    """Return the row and the time of each rating and positive event (m,), of a pair each type once."""
    each, codes = _last_events(histories)
    wanted = (codes == 0) | (event_worth(types)[codes, 1] > 0)
    return each.row[wanted], each.time[wanted]


def _last_events(histories: Histories) -> tuple[Compressed, UInt8s]:
    """Return the last event of each pair and type that was not taken back, and the codes of these (m,)."""
    n_rows, codes = len(histories.offsets) - 1, histories.type_code
    if codes is None:
        codes = np.zeros(len(histories.value), dtype=np.uint8)
    row = np.repeat(np.arange(n_rows, dtype=np.int32), np.diff(histories.offsets))
    key = typed_items(histories.other_row, codes)
    each = compress_pairs(row, key, histories.value, histories.time, n_rows)
    return each, codes[each.source]


def kept(data: Compressed, keep: Bools) -> Compressed:
    """Return the same rows with the entries to `keep` (n,) alone, each with the `source` that it had."""
    if keep.all():
        return data
    indptr = np.concatenate([[0], np.cumsum(keep)])[data.indptr]
    return Compressed(indptr, data.other[keep], data.value[keep], data.time[keep], data.source[keep])


def event_counts(data: Compressed, weight: Float64s | None, target: Float64s | None) -> Int64s | Float64s:
    """Return how many events each row (b,) of `data` has, or the weight of those that were wanted."""
    if weight is None or target is None:
        return data.counts
    return np.bincount(data.row, weight * target, minlength=data.rows)
