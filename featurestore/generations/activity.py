"""How much each item was rated of late. Invariant: every worker that has the same generation and deltas says
the same.

A rating counts half as much with each week that goes by. What the fit has learned is weighed at the end of
the day of its latest rating, by exponential decay; what came in since counts whole, until the next fit knows
when it was made.
"""

import struct
from dataclasses import dataclass, replace

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
# Spare rows for items that come later: a table that grows row by row is copied seldom.
_SPARE_ROWS = 1_024


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

    def updated(self, rows: npt.NDArray[np.integer], counts: Int64s, n_items: int) -> "Activity":
        """Return the activity of `n_items` items, of which `rows` (m,) have so many ratings now (m,). Writes
        to `gained` in place.
        """
        gained = self.gained
        if n_items > len(gained):
            gained = np.zeros(n_items + n_items // 8 + _SPARE_ROWS, dtype=np.float32)
            gained[: len(self.gained)] = self.gained
        known = np.zeros(len(rows), dtype=np.int64)
        inside = rows < len(self.counts)
        known[inside] = self.counts[rows[inside]]
        # Ratings may have been taken back since.
        gained[rows] = np.maximum(counts - known, 0)
        return replace(self, gained=gained, n_items=n_items)

    def at(self, now_s: float) -> Float64s:
        """Return how much each item is rated at a time, in seconds since 1970 (n_items,)."""
        share = max(_share(now_s - self.weighed_s), _LEAST_SHARE)
        found = self.gained[: self.n_items].astype(np.float64)
        found[: len(self.weights)] += share * self.weights.astype(np.float64)
        return found


def activity_to_bytes(
    item_indptr: Int64s, times: Float64s, others: tuple[Int64s, Float64s] | None = None
) -> bytes:
    """Return what a fit says of its items. `times` (m,), in seconds since 1970, item by item: those of item
    `j` are `times[item_indptr[j]:item_indptr[j + 1]]`, NaN where not known, which counts for nothing.
    `others`: the same of events that are no ratings, which weigh as much.
    """
    n, counts = len(item_indptr) - 1, np.diff(item_indptr)
    every = times if others is None else np.concatenate([times, others[1]])
    known = np.isfinite(every)
    weighed_s = _DAY_S * (np.floor(every[known].max() / _DAY_S) + 1.0) if known.any() else 0.0
    weights = _weights(item_indptr, times, weighed_s)
    if others is not None:
        weights += _weights(*others, weighed_s)
    data = weights.astype("<f4").tobytes() + counts.astype("<u4").tobytes()
    return _HEAD.pack(_FORMAT, weighed_s, n) + data


def _weights(item_indptr: Int64s, times: Float64s, weighed_s: float) -> Float64s:
    """Return how much the events of each item weigh then (n_items,)."""
    each = np.exp2((np.where(np.isfinite(times), times, -np.inf) - weighed_s) / HALF_LIFE_S)
    weights = np.zeros(len(item_indptr) - 1)
    # Between two items with events there are none: the sums go from one beginning to the next.
    some = np.diff(item_indptr) > 0
    weights[some] = np.add.reduceat(each, item_indptr[:-1][some]) if some.any() else 0.0
    return weights


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
