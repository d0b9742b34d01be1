"""Read an archive snapshot as the arrays of a fit. Invariant: each pair stands once, with its last value.

User rows are numbered here: users of the earlier fit keep their order, new ones follow. Item rows are the
registry's, found by item id: the row that an event was archived with may be another item's by now.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factors import Choices, Float32s, Ratings, order_by_pair, taken, typed_items
from featurestore.contexts.codec import joined, trimmed
from trainer.archive.events import CONTEXT, contexts_in
from trainer.archive.segments import read_columns

_NONE = np.zeros(0, np.int32)
_COLUMNS: Mapping[str, type[np.generic]] = {
    "n": np.int64,
    "rating": np.float64,
    "time": np.float64,
    "type_code": np.uint8,
}


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
    events = _read(segments, threads)
    item_row = _item_rows(events, item_ids)
    unknown = int((item_row < 0).sum())
    user_ids, rows, kept = _in_order(events.user_ids, earlier)
    # Each column gives way to its successor: of many ratings every one counts.
    user_row, events.user = rows[events.user], _NONE
    by_n = order_by_pair(user_row, events.n, threads=threads)
    in_order = partial(taken, order=by_n, threads=threads)
    user_row, n = in_order(user_row), in_order(events.n)
    events.n = _NONE
    user_n = np.zeros(len(user_ids), dtype=np.int64)
    last_of_user = np.flatnonzero(np.diff(user_row, append=-1))
    user_n[user_row[last_of_user]] = np.maximum(n[last_of_user], 0)
    item_row, type_code = in_order(item_row), in_order(events.type_code)
    value, events.rating = in_order(events.rating), _NONE
    time, events.time = in_order(events.time), _NONE
    item = np.where(item_row < 0, -1, typed_items(item_row, type_code))
    pairs = _Pairs.of(user_row, item, threads)
    del item
    given = np.zeros(len(user_row), dtype=bool)
    given[pairs.order[pairs.last]] = True
    given &= (item_row >= 0) & ~np.isnan(value)
    is_new, has_news = np.zeros(int(given.sum()), dtype=bool), True
    context = joined(events.contexts)
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
    n_items = len(item_ids)
    found = FitInput(user_ids, user_n, ratings, n_items, kept, unlearned, unknown, choices, has_news)
    return replace(found, new_choices=new_choices)


@dataclass
class _Events:
    """The columns of all events (m,), `user` and `item` int32 by `user_ids` and `items`; `contexts`: of each
    segment how many events it has, and theirs.
    """

    user: npt.NDArray[Any]
    user_ids: pa.StringArray
    item: npt.NDArray[Any]
    items: pa.StringArray
    n: npt.NDArray[Any]
    type_code: npt.NDArray[Any]
    rating: npt.NDArray[Any]
    time: npt.NDArray[Any]
    contexts: list[tuple[int, Float32s | None]]


def _read(segments: Iterable[tuple[Path, pa.NativeFile]], threads: int) -> _Events:
    with ThreadPoolExecutor(threads, "read") as pool:
        parts = list(pool.map(_read_segment, segments))
    contexts = [(part.count, part.context) for part in parts]
    # Each begins with nothing of its type, so that no segment at all is no special case.
    found = {
        name: np.concatenate([np.zeros(0, kind), *(part.columns.pop(name) for part in parts)])
        for name, kind in _COLUMNS.items()
    }
    user, user_ids = _joined([chunk for part in parts for chunk in part.ids.pop("user_id")])
    item, items = _joined([chunk for part in parts for chunk in part.ids.pop("item_id")])
    return _Events(user, user_ids, item, items, **found, contexts=contexts)


@dataclass
class _Segment:
    """The events of a segment, `count` of them: their numbers, their ids, and what was told with them."""

    count: int = 0
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    ids: dict[str, list[pa.DictionaryArray]] = field(default_factory=dict)
    context: Float32s | None = None


def _read_segment(segment: tuple[Path, pa.NativeFile]) -> _Segment:
    """Read a segment, verified; beside others in threads, as decoding and checksum hold no lock."""
    found = _Segment()
    for name, column in read_columns(*segment):
        found.count = len(column)
        if name in ("user_id", "item_id"):
            # As codes: a Python object for each of millions would take longer than the fit.
            found.ids[name] = column.dictionary_encode().chunks
        elif name == CONTEXT.name:
            found.context = contexts_in(column)
        elif name in _COLUMNS:
            # A copy: what is read by Arrow goes with the column.
            found.columns[name] = np.array(column.to_numpy())
    return found


def _item_rows(events: _Events, item_ids: pa.StringArray) -> npt.NDArray[np.int32]:
    """Return the row of the item of each event in the registry, -1 where it has none. Takes `events.item`."""
    found = pc.index_in(events.items, value_set=item_ids).fill_null(-1).to_numpy(zero_copy_only=False)
    rows: npt.NDArray[np.int32] = found.astype(np.int32)[events.item]
    events.item = _NONE
    return rows


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


def _joined(chunks: list[pa.DictionaryArray]) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    """Return the code of each row, and the strings by code."""
    if not chunks:
        return np.zeros(0, np.int32), pa.array([], type=pa.string())
    chunks = pa.chunked_array(chunks).unify_dictionaries().chunks
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(codes), chunks[-1].dictionary


def last_of_pairs(
    user_row: npt.NDArray[np.int64], item_row: npt.NDArray[np.int64], n: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the positions of the last event of each pair, ordered by user, then item.

    Of equal `n` the later position wins: after a rebuild an event may be there twice.
    """
    order = np.lexsort((n, item_row, user_row))
    if len(order) == 0:
        return order
    user, item = user_row[order], item_row[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return order[last]
