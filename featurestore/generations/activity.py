"""How much each item was rated of late, and what came of positive events at all. Invariant: every worker that
has the same generation and deltas says the same, and a rating weighs by its own time, whenever it came in.

A rating counts half as much with each week that goes by, so the order of items does not depend on when they
are asked for. An item has a level: the base-2 logarithm of its weight, in weeks since 1970. An item with one
rating has the time of that as its level; an item whose level is 1 higher is rated twice as much.
"""

import struct
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from factors import Float32s, Float64s, Int64s
from featurestore.errors import GenerationBroken

# People look at what is new once in a while, and most things are rated on some days of a week more.
HALF_LIFE_S = 7 * 86_400.0
# The level of an item without a rating whose time is known, far below any time.
NEVER = -1e6
# Format, items; then the float32 level of each.
_HEAD = struct.Struct("<20sq")
_FORMAT = b"foldin-activity-2"
# The format before: when the weights are of, items; then float32 weights and uint32 counts of each item.
_HEAD_1 = struct.Struct("<20sdq")
_FORMAT_1 = b"foldin-activity-1"
# Events looked at in one go: the times of all may be mapped from a file that is larger than what is free.
_AT_ONCE = 1 << 20
# Spare rows for items that come later: a table that grows row by row is copied seldom.
_SPARE_ROWS = 1_024
# Format, items; then so many float32 an item.
_POSITIVES_HEAD = struct.Struct("<20sq")
_POSITIVES_FORMAT = b"foldin-positives-1"
POSITIVE_COLUMNS = 3
# Fewer ratings than this share of the positive events say less of items than these do.
_FEW_SHARE = 0.01


class Times(Protocol):
    """Times (m,), in seconds since 1970, that are read a slice at a time, such as an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Float64s: ...


@dataclass(frozen=True, slots=True)
class Activity:
    """`table` float32 (at least n_items,): the level of each item, `NEVER` where there is none."""

    n_items: int
    table: Float32s

    @property
    def levels(self) -> Float32s:
        """The level of each item (n_items,), a view."""
        return self.table[: self.n_items]

    def updated(self, rows: npt.NDArray[np.integer], levels: Float32s, n_items: int) -> "Activity":
        """Return the activity of `n_items` items, of which `rows` (m,) have these `levels` (m,). Writes in
        place.
        """
        table = self.table
        if n_items > len(table):
            table = np.full(n_items + n_items // 8 + _SPARE_ROWS, NEVER, dtype=np.float32)
            table[: len(self.table)] = self.table
        table[rows] = levels
        return Activity(n_items, table)


def levels_of(rows: npt.NDArray[np.integer], times: Float64s, n_rows: int, now_s: float) -> Float32s:
    """Return the levels of `n_rows` items, of events of `rows` (m,) at `times` (m,), in seconds since 1970. A
    time that is not known, NaN, counts for nothing; one after `now_s` is of a wrong clock, and as one of now.
    """
    known = np.isfinite(times)
    weeks, rows = np.minimum(times[known], now_s) / HALF_LIFE_S, rows[known]
    latest = np.full(n_rows, NEVER)
    np.maximum.at(latest, rows, weeks)
    # Relative to the latest of the item: no item is so old that its weight vanishes.
    weights = np.bincount(rows, np.exp2(weeks - latest[rows]), n_rows)
    return np.asarray(latest + np.log2(np.maximum(weights, 1.0)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Positives:
    """Of each item the weight of its positive events, how many these are, and how many others that are no
    ratings, each of a user and a type once: float32 `fitted` (n, 3) what the fit has learned, `now` (at least
    n_items, 3) with what came in since.
    """

    n_items: int
    fitted: Float32s
    now: Float32s

    @property
    def weights(self) -> Float32s:
        """The weight of each item's (n_items,), a view."""
        return self.now[: self.n_items, 0]

    @property
    def events(self) -> Float64s:
        """How many events that are no ratings each item has (n_items,)."""
        return np.asarray(self.now[: self.n_items, 1:].sum(axis=1), np.float64)

    def counts_of(self, rows: Int64s) -> Int64s:
        """Return how many positive ones each of `rows` (m,) has; none of a row beyond the table."""
        return self._of(self.now[: self.n_items], rows)[:, 1].astype(np.int64)

    def updated(self, rows: npt.NDArray[np.integer], values: Float32s, n_items: int) -> "Positives":
        """Return those of `n_items` items, of which `rows` (m,) have `values` (m, 3). Writes in place."""
        now = self.now
        if n_items > len(now):
            now = np.zeros((n_items + n_items // 8 + _SPARE_ROWS, POSITIVE_COLUMNS), dtype=np.float32)
            now[: len(self.now)] = self.now
        now[rows] = values
        return replace(self, now=now, n_items=n_items)

    @staticmethod
    def _of(table: Float32s, rows: Int64s) -> Float32s:
        found = np.zeros((len(rows), POSITIVE_COLUMNS), dtype=np.float32)
        inside = rows < len(table)
        found[inside] = table[rows[inside]]
        return found


def is_by_events(n_ratings: int, positives: Float32s | None) -> bool:
    """Return whether events tell users and items apart, and not ratings: of these a fit has none, or next to
    none beside what it says of the `positives` (n, 3) of its items.
    """
    events = 0.0 if positives is None else float(positives[:, 1].sum(dtype=np.float64))
    return n_ratings == 0 or n_ratings < _FEW_SHARE * events


def positives_to_bytes(table: Float32s) -> bytes:
    """Return what a fit says of the events of its items (n, 3), see `Positives`."""
    return _POSITIVES_HEAD.pack(_POSITIVES_FORMAT, len(table)) + table.astype("<f4").tobytes()


def positives_from_bytes(data: bytes | memoryview, n_items: int) -> Positives:
    """Return the positive events of a generation of `n_items`. Raises `GenerationBroken`."""
    if len(data) != _POSITIVES_HEAD.size + 4 * POSITIVE_COLUMNS * n_items:
        raise GenerationBroken("the positive events of its items are cut off, or of other items")
    name, n = _POSITIVES_HEAD.unpack_from(data)
    if name.rstrip(b"\0") != _POSITIVES_FORMAT or n != n_items:
        raise GenerationBroken("the positive events of its items are of another version")
    table = np.frombuffer(data, dtype="<f4", offset=_POSITIVES_HEAD.size).reshape(n, POSITIVE_COLUMNS)
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise GenerationBroken("the positive events of its items are no number")
    return Positives(n, table, table.copy())


def activity_to_bytes(
    item_indptr: Int64s, times: Times, others: tuple[Int64s, Times] | None = None, *, now_s: float
) -> bytes:
    """Return what a fit says of its items. `times` (m,), as of `levels_of`, item by item: those of item `j`
    are `times[item_indptr[j]:item_indptr[j + 1]]`. `others`: the same of events that are no ratings, which
    weigh as much.
    """
    n = len(item_indptr) - 1
    levels = np.full(n, NEVER, dtype=np.float64)
    for indptr, of_items in ((item_indptr, times), *(() if others is None else (others,))):
        for start in range(0, len(of_items), _AT_ONCE):
            part = of_items[start : start + _AT_ONCE]
            # The items of these, and how many of these each has.
            first = int(np.searchsorted(indptr, start, side="right")) - 1
            stop = int(np.searchsorted(indptr, start + len(part)))
            edges: Int64s = np.clip(indptr[first : stop + 1], start, start + len(part))
            rows = np.repeat(np.arange(stop - first), np.diff(edges))
            more = levels_of(rows, part, stop - first, now_s)
            both = np.logaddexp2(levels[first:stop], more)
            levels[first:stop] = np.where(more > NEVER, both, levels[first:stop])
    return _HEAD.pack(_FORMAT, n) + levels.astype("<f4").tobytes()


def activity_from_bytes(data: bytes | memoryview, n_items: int) -> Activity:
    """Return the activity of a generation of `n_items`. Raises `GenerationBroken`."""
    if len(data) >= _HEAD_1.size and bytes(data[:20]).rstrip(b"\0") == _FORMAT_1:
        _, weighed_s, n = _HEAD_1.unpack_from(data)
        if n != n_items or len(data) != _HEAD_1.size + 8 * n:
            raise GenerationBroken("the activity of its items is of other items")
        weights = np.frombuffer(data, dtype="<f4", count=n, offset=_HEAD_1.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            table = np.where(weights > 0, np.log2(weights) + weighed_s / HALF_LIFE_S, NEVER)
    elif len(data) != _HEAD.size + 4 * n_items:
        raise GenerationBroken("the activity of its items is cut off, or of other items")
    else:
        name, n = _HEAD.unpack_from(data)
        if name.rstrip(b"\0") != _FORMAT or n != n_items:
            raise GenerationBroken("the activity of its items is of another version")
        table = np.frombuffer(data, dtype="<f4", offset=_HEAD.size)
    if not np.isfinite(table).all():
        raise GenerationBroken("the activity of its items is no number")
    # A copy, as changes are written to it.
    return Activity(n_items, table.astype(np.float32))
