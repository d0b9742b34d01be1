"""Read an archive snapshot as the arrays of a fit. Invariant: each pair stands once, with its last value.

User rows are numbered here: users of the earlier fit keep their order, new ones follow. Item rows are the
registry's, found by item id: the row that an event was archived with may be another item's by now.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Choices, Ratings, order_by_pair, taken, typed_items
from featurestore.contexts.codec import joined, trimmed
from trainer.archive.reading import EventColumns, join_parts, read_part
from trainer.archive.segments import read_columns

# Of an event.
_NUMBERS = ("n", "rating", "time", "type_code")


@dataclass(frozen=True, slots=True)
class FitInput:
    """What a fit learns from.

    `user_ids`: string array (u,); `user_n` int64 (u,): up to which count of the user the snapshot goes;
    `ratings`: ordered by user, then as they were made, each pair once, nothing that was taken back;
    `choices`: the same with the events of other types among them, None where there are none of these. `kept`
    int64 (k,): user row in the earlier fit of each of the first k users. `unknown`: events of items that the
    registry does not have, which are left out. `unlearned` int32: positions of the ratings that the earlier
    fit has not learned, in the order in which they arrived, without those that say again what it has learned;
    none where there was no such fit; `new_choices` int32: those of the choices. `has_news`: whether any event
    says another rating or time than that fit has learned of the pair.
    """

    user_ids: pa.StringArray
    user_n: npt.NDArray[np.int64]
    ratings: Ratings
    n_items: int
    kept: npt.NDArray[np.int64]
    unlearned: npt.NDArray[np.integer[Any]]
    unknown: int = 0
    choices: Choices | None = None
    has_news: bool = True
    new_choices: npt.NDArray[np.integer[Any]] = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def n_users(self) -> int:
        """How many users there are, those without any rating left included."""
        return len(self.user_ids)


def load_ratings(
    segments: Iterable[tuple[Path, pa.NativeFile]],
    item_ids: pa.StringArray,
    earlier: pa.StringArray | None = None,
    learned: npt.NDArray[np.int64] | None = None,
    *,
    threads: int = 1,
) -> FitInput:
    """Read the open `segments`, each verified. `item_ids`: by item row of the registry.

    `earlier`: user ids of an earlier fit, which has `learned` these users up to that `n`. An erased one is no
    valid text, so no event has it. Raises `SegmentDamagedError`.
    """
    user, ids, item_code, items, numbers, contexts = _read(segments, threads)
    found_rows = pc.index_in(items, value_set=item_ids).fill_null(-1).to_numpy(zero_copy_only=False)
    # Each column gives way to its successor: of many ratings every one counts.
    item_row = found_rows.astype(np.int32)[item_code]
    del item_code
    unknown = int((item_row < 0).sum())
    user_ids, rows, kept = _in_order(ids, earlier)
    user_row = rows[user]
    del user
    by_n = order_by_pair(user_row, numbers["n"], threads=threads)
    in_order = partial(taken, order=by_n, threads=threads)
    user_row, n = in_order(user_row), in_order(numbers.pop("n"))
    user_n = np.zeros(len(user_ids), dtype=np.int64)
    last_of_user = np.flatnonzero(np.diff(user_row, append=-1))
    user_n[user_row[last_of_user]] = np.maximum(n[last_of_user], 0)
    item_row, type_code = in_order(item_row), in_order(numbers.pop("type_code"))
    value, time = in_order(numbers.pop("rating")), in_order(numbers.pop("time"))
    item = np.where(item_row < 0, -1, typed_items(item_row, type_code))
    pairs = _Pairs.of(user_row, item, threads)
    del item
    given = np.zeros(len(user_row), dtype=bool)
    given[pairs.order[pairs.last]] = True
    given &= (item_row >= 0) & ~np.isnan(value)
    is_new, has_news = np.zeros(int(given.sum()), dtype=bool), True
    context = joined(contexts)
    if learned is None:
        del pairs
    else:
        learned_n = np.zeros(len(user_ids), dtype=np.int64)
        learned_n[: len(kept)] = learned[kept]
        later = n > learned_n[user_row]
        repeats = _Repeats.of(pairs, later)
        del pairs
        again = repeats.same(value)
        is_new = (later & ~again)[given]
        # What is told with a rating is not compared.
        has_news = bool((later & ~(again & repeats.same(time))).any()) or context is not None
    del n, in_order
    user_row, item_row, type_code, by_n = user_row[given], item_row[given], type_code[given], by_n[given]
    value, time = value[given], time[given]
    del given
    ratings, choices, rated = Ratings(user_row, item_row, value, time), None, type_code == 0
    new_choices = np.zeros(0, np.int32)
    if not rated.all():
        choices = Choices(user_row, item_row, value, time, type_code)
        new_choices = np.flatnonzero(is_new).astype(np.int32)
        ratings, by_n, is_new = choices.ratings(), by_n[rated], is_new[rated]
    ratings = ratings if context is None else replace(ratings, context=trimmed(context[by_n]))
    new = np.flatnonzero(is_new)
    unlearned = new[np.argsort(by_n[new])].astype(np.int32)
    found = FitInput(user_ids, user_n, ratings, len(item_ids), kept, unlearned, unknown, choices, has_news)
    return replace(found, new_choices=new_choices)


def _read(segments: Iterable[tuple[Path, pa.NativeFile]], threads: int) -> EventColumns:
    # Beside others in threads, as decoding and checksum hold no lock.
    with ThreadPoolExecutor(threads, "read") as pool:
        parts = list(pool.map(lambda segment: read_part(read_columns(*segment), _NUMBERS), segments))
    return join_parts(parts, _NUMBERS)


class _Pairs(NamedTuple):
    """Events by user and item: their `order` (m,), and which of them in that order are the last of a pair."""

    order: npt.NDArray[np.int64]
    last: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, user_row: npt.NDArray[np.int32], item: npt.NDArray[np.int64], threads: int) -> "_Pairs":
        """Find them. Events stand by user and `n`, and keep this order in each pair."""
        order = order_by_pair(user_row, item, threads=threads)
        other = taken(item, order, threads=threads)
        # Those of a user stay together.
        return cls(order, (np.diff(user_row, append=-1) != 0) | (np.diff(other, append=-2) != 0))


@dataclass(frozen=True, slots=True)
class _Repeats:
    """Events (m,) that are not learned and come after a learned one of their pair, as those of a file that is
    imported again do. `events`: their positions (k,), `known`: those of the last learned one of their pairs.
    """

    total: int
    events: npt.NDArray[np.int64]
    known: npt.NDArray[np.int64]

    @classmethod
    def of(cls, pairs: _Pairs, later: npt.NDArray[np.bool_]) -> "_Repeats":
        """Find them. `later`: which events (m,) are not learned."""
        late = later[pairs.order]
        pair = np.cumsum(pairs.last, dtype=np.int32) - pairs.last
        # Of a refit nearly all pairs have no new event.
        has_late = np.zeros(int(pair[-1]) + 1 if len(pair) else 0, dtype=bool)
        has_late[pair[late]] = True
        some = np.flatnonzero(has_late[pair])
        events, late, pair = pairs.order[some], late[some], pair[some]
        place = np.arange(len(events))
        first = np.maximum.accumulate(np.where(np.diff(pair, prepend=-1) != 0, place, 0))
        known = np.maximum.accumulate(np.where(late, -1, place))
        found = late & (known >= first)
        return cls(len(later), events[found], events[known[found]])

    def same(self, column: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which events (m,) have in this `column` what the learned one has; NaN is like NaN."""
        said, before = column[self.events], column[self.known]
        found = np.zeros(self.total, dtype=bool)
        found[self.events] = (said == before) | (np.isnan(said) & np.isnan(before))
        return found


def _in_order(
    user_ids: pa.StringArray, earlier: pa.StringArray | None
) -> tuple[pa.StringArray, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the users in the order of their rows, the row (u,) of each of `user_ids`, and the rows in the
    earlier fit of those who are in it, who come first.
    """
    if earlier is None or not len(earlier):
        return user_ids, np.arange(len(user_ids), dtype=np.int32), np.zeros(0, np.int64)
    found = pc.index_in(user_ids, value_set=earlier).fill_null(-1).to_numpy(zero_copy_only=False)
    # Known users by their earlier rows, then the others by their first event.
    order = np.argsort(np.where(found < 0, len(earlier), found), kind="stable")
    kept = found[order][: int((found >= 0).sum())].astype(np.int64)
    rows = np.empty(len(order), dtype=np.int32)
    rows[order] = np.arange(len(order), dtype=np.int32)
    return user_ids.take(pa.array(order)), rows, kept


def last_of_pairs(
    user_row: npt.NDArray[np.integer], item_row: npt.NDArray[np.integer], n: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the positions of the last event of each pair, ordered by user, then item.

    Of equal `n` the later position wins: after a rebuild an event may be there twice.
    """
    order = np.lexsort((n, item_row, user_row))
    user, item = user_row[order], item_row[order]
    last: npt.NDArray[np.int64] = order[(np.diff(user, append=-1) != 0) | (np.diff(item, append=-1) != 0)]
    return last
