"""How much each item was rated of late, and what came of positive events at all. Invariant: every worker that
has the same generation and deltas says the same.

A rating counts half as much with each week that goes by. What the fit has learned is weighed at the end of
the day of its latest rating, by exponential decay; what came in since counts whole, until the next fit knows
when it was made.
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
# Weights are those of a whole day: the time of a rating would stay when its user was erased.
_DAY_S = 86_400.0
# Of what the fit has learned, however long ago that was: it still tells items apart of which nothing came in.
_LEAST_SHARE = 1e-12
# Format, when the weights are of, items; then float32 weights and uint32 counts of each item.
_HEAD = struct.Struct("<20sdq")
_FORMAT = b"foldin-activity-1"
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
    """`weights` float32 (n,): of what the fit has learned, at `weighed_s`; `counts` uint32 (n,): ratings that
    it knew; `gained` float32 (at least n_items,): ratings that came in since.
    """

    weighed_s: float
    n_items: int
    weights: Float32s
    counts: npt.NDArray[np.uint32]
    gained: Float32s

    def updated(
        self, rows: npt.NDArray[np.integer], counts: Int64s, n_items: int, events: Float64s | None = None
    ) -> "Activity":
        """Return the activity of `n_items` items, of which `rows` (m,) have so many ratings now (m,), and
        that many positive `events` (m,) more than the fit knew. Writes to `gained` in place.
        """
        gained = self.gained
        if n_items > len(gained):
            gained = np.zeros(n_items + n_items // 8 + _SPARE_ROWS, dtype=np.float32)
            gained[: len(self.gained)] = self.gained
        known = np.zeros(len(rows), dtype=np.int64)
        inside = rows < len(self.counts)
        known[inside] = self.counts[rows[inside]]
        # Ratings may have been taken back since.
        gained[rows] = np.maximum(counts - known, 0) + (0.0 if events is None else events)
        return replace(self, gained=gained, n_items=n_items)

    def at(self, now_s: float) -> Float64s:
        """Return how much each item is rated at a time, in seconds since 1970 (n_items,)."""
        share = max(_share(now_s - self.weighed_s), _LEAST_SHARE)
        found = self.gained[: self.n_items].astype(np.float64)
        found[: len(self.weights)] += share * self.weights.astype(np.float64)
        return found


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

    def gained(self, rows: Int64s) -> Float64s:
        """Return how many positive ones `rows` (m,) have that the fit did not know."""
        more = self._of(self.now, rows)[:, 1] - self._of(self.fitted, rows)[:, 1]
        return np.asarray(np.maximum(more, 0.0), np.float64)

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
    """Return what a fit says of its items. `times` (m,), in seconds since 1970, item by item: those of item
    `j` are `times[item_indptr[j]:item_indptr[j + 1]]`, NaN where not known, which counts for nothing; one
    after `now_s` is of a wrong clock, and as one of now.
    `others`: the same of events that are no ratings, which weigh as much.
    """
    n, counts = len(item_indptr) - 1, np.diff(item_indptr)
    # One time in milliseconds would make all others so old that they weigh nothing.
    latest = min(now_s, max(_latest(times), -np.inf if others is None else _latest(others[1])))
    weighed_s = _DAY_S * (np.floor(latest / _DAY_S) + 1.0) if np.isfinite(latest) else 0.0
    weights = _weights(item_indptr, times, weighed_s, now_s)
    if others is not None:
        weights += _weights(*others, weighed_s, now_s)
    data = weights.astype("<f4").tobytes() + counts.astype("<u4").tobytes()
    return _HEAD.pack(_FORMAT, weighed_s, n) + data


def _weights(item_indptr: Int64s, times: Times, weighed_s: float, now_s: float) -> Float64s:
    """Return how much the events of each item weigh then (n_items,)."""
    weights = np.zeros(len(item_indptr) - 1)
    for start in range(0, len(times), _AT_ONCE):
        part = times[start : start + _AT_ONCE]
        known = np.minimum(np.where(np.isfinite(part), part, -np.inf), now_s)
        each = np.exp2((known - weighed_s) / HALF_LIFE_S)
        # The items of these, and how many of these each has.
        first = int(np.searchsorted(item_indptr, start, side="right")) - 1
        stop = int(np.searchsorted(item_indptr, start + len(part)))
        edges: Int64s = np.clip(item_indptr[first : stop + 1], start, start + len(part))
        counts: Int64s = edges[1:] - edges[:-1]
        weights[first:stop] += np.bincount(np.repeat(np.arange(len(counts)), counts), each, len(counts))
    return weights


def _latest(times: Times) -> float:
    """Return the latest of the times that are known; minus infinity where none is."""
    latest = -np.inf
    for start in range(0, len(times), _AT_ONCE):
        part = times[start : start + _AT_ONCE]
        latest = max(latest, float(np.max(part, initial=-np.inf, where=np.isfinite(part))))
    return latest


def activity_from_bytes(data: bytes | memoryview, n_items: int) -> Activity:
    """Return the activity of a generation of `n_items`. Raises `GenerationBroken`."""
    if len(data) < _HEAD.size:
        raise GenerationBroken("the activity of its items is cut off")
    name, weighed_s, n = _HEAD.unpack_from(data)
    if name.rstrip(b"\0") != _FORMAT or n != n_items or len(data) != _HEAD.size + 8 * n:
        raise GenerationBroken("the activity of its items is of another version or of other items")
    weights = np.frombuffer(data, dtype="<f4", count=n, offset=_HEAD.size)
    if not (np.isfinite(weighed_s) and np.isfinite(weights).all() and (weights >= 0).all()):
        raise GenerationBroken("the activity of its items is no number")
    counts = np.frombuffer(data, dtype="<u4", count=n, offset=_HEAD.size + 4 * n)
    return Activity(weighed_s, n, weights, counts, np.zeros(n, dtype=np.float32))


def _share(age_s: float) -> float:
    # More than 1 before the day has ended. A rating of the future, by its sender's clock, is as one of now.
    return float(np.exp2(-max(age_s, -_DAY_S) / HALF_LIFE_S))
