"""How alike items are by a ranking head: of events alone, where no rating says it.

Invariant: the likeness of two items is that of their relevance to the users: any other basis of the latent
space gives the same.

With `G` the second moments of the users, `y_i' G y_j` is the expected product of the relevance of two items
over them. Divided by the roots of the expected squares, the items' uncertainty included, it is a cosine that
shrinks where an item is little known, as that of the ratings does (`factors/serving/ranking.py`). The
covariance of an item with `n` events is that of the half-step in which its users are typical ones: `noise`
times the inverse of `(a_i + n / (a0 users)) G' + R_i I`, with the terms of `factors/ranking/half_steps.py`
and `G'` what all users add to the precision of an item.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.model.types import Bools, Float32s, Float64s, Int64s, Ranked
from factors.ranking.head import RankingHead
from factors.serving.mean_table import bar, largest

# Rows that are multiplied at once: 2 MB at rank 64, as much as a core's cache holds.
_ROWS_AT_ONCE = 1 << 12

Weigh = Callable[[Int64s], Float64s]
"""What the events of items (m,) weigh, a rating 1; 0 where only attributes tell of an item."""


@dataclass(frozen=True, slots=True)
class _View:
    """What one call compares: `items` (n, r), what their events `weigh`, and once they were asked for the
    `inverses` float32 (n,) of their lengths, 0 of an item without events.
    """

    items: Float32s
    weigh: Weigh
    inverses: Float32s | None


class HeadLikeness:
    """Compares the items of one head. Keeps a number an item, once `similar` was called. `update` follows the
    head and may run beside the other calls in another thread; two updates may not.
    """

    def __init__(self, head: RankingHead, weigh: Weigh) -> None:
        """`weigh`: of the items of `head`."""
        self._parameters = head.parameters
        # The users' second moments but for a factor, which no cosine has.
        values, vectors = np.linalg.eigh(head.parameters.item_gram)
        self._values: Float64s = np.maximum(values, 0.0)
        self._root = np.asarray(vectors * np.sqrt(self._values), dtype=np.float32)
        # Held while lengths are made or replaced: an update must not miss those that are being made.
        self._preparing = threading.Lock()
        self._state = _View(head.items, weigh, None)

    @property
    def prepared(self) -> bool:
        """Whether `similar` need not read the whole table first."""
        return self._state.inverses is not None

    @property
    def multiplications(self) -> float:
        """About how many multiplications `similar` takes, once it is prepared."""
        return float(self._state.items.size)

    def update(self, rows: npt.NDArray[np.integer[Any]], head: RankingHead, weigh: Weigh) -> None:
        """Follow `head`, in which the factors or the weights of `rows` (m,) are others than before; rows that
        it has more than the one before are read too.
        """
        with self._preparing:
            state = self._state
            before, count = len(state.items), len(head.items)
            inverses = state.inverses
            view = _View(head.items, weigh, None)
            if inverses is not None:
                changed = np.union1d(np.asarray(rows, np.int64), np.arange(before, count))
                # Not in place: a call beside this one reads them.
                inverses = np.concatenate([inverses, np.zeros(count - before, dtype=np.float32)])
                inverses[changed] = self._directions(view, changed)[1]
            self._state = replace(view, inverses=inverses)

    def similar(self, item_row: int, n: int, allowed: Bools | None = None) -> Ranked:
        """Return the `n` items whose relevance goes together with that of `item_row` over the users.

        `scores`: see above; 1 is the same. An item without events is like none. `allowed` (n_items,): the
        rows that may be returned; one beyond its end may not.
        """
        state = self._prepared()
        inverses = state.inverses
        known = inverses is not None and 0 <= item_row < len(inverses) and inverses[item_row] > 0
        if inverses is None or not known or n < 1:
            return Ranked(np.zeros(0, dtype=np.int64), np.zeros(0))
        own = self._directions(state, np.array([item_row]))[0][0]
        scores = (state.items @ (self._root @ own)) * inverses
        scores[inverses == 0] = -np.inf
        scores[item_row] = -np.inf
        bar(scores, allowed)
        rows = largest(scores, n)
        # The factors of some may be newer than the lengths that are kept.
        exact = self._directions(state, rows)[0] @ own
        order = np.argsort(-exact, kind="stable")
        return Ranked(rows[order], exact[order].astype(np.float64))

    def directions(self, rows: npt.NDArray[np.integer[Any]]) -> Float32s:
        """Return a vector (m, r) of each of `rows`, as their products tell how alike items are, of one that
        attributes alone tell of, too; 0 of an item of which nothing is known, and beyond the head.
        """
        state, wanted = self._state, np.asarray(rows, np.int64)
        found = np.zeros((len(wanted), state.items.shape[1]), dtype=np.float32)
        inside = wanted < len(state.items)
        found[inside] = self._directions(state, wanted[inside])[0]
        return found

    def _prepared(self) -> _View:
        with self._preparing:
            state = self._state
            if state.inverses is None:
                inverses = np.empty(len(state.items), dtype=np.float32)
                for start in range(0, len(inverses), _ROWS_AT_ONCE):
                    rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(inverses)))
                    inverses[rows] = self._directions(state, rows)[1]
                self._state = state = replace(state, inverses=inverses)
            return state

    def _directions(self, state: _View, rows: Int64s) -> tuple[Float32s, Float32s]:
        """Return the directions (m, r) of `rows`, and the inverses (m,) of their lengths, 0 where there are
        no events.
        """
        moved, weights = state.items[rows] @ self._root, state.weigh(rows)
        square = np.einsum("ij,ij->i", moved, moved).astype(np.float64) + self._uncertainty(weights)
        # Without uncertainty an item without factors would have no length.
        inverse = np.asarray(1.0 / np.sqrt(np.maximum(square, 1e-30)), np.float32)
        known = (weights > 0) & moved.any(axis=1)
        return np.asarray(moved * inverse[:, None], np.float32), np.where(known, inverse, np.float32(0))

    def _uncertainty(self, weights: Float64s) -> Float64s:
        """Return what uncertainty adds to the squared lengths (m,) of items with events of these weights."""
        p = self._parameters
        typical = p.activity("item", weights) + weights / (p.background * max(p.n_users, 1.0))
        ridge = p.ridges("item", weights)
        found = np.zeros(len(weights))
        for value in self._values.tolist():
            # In the axes of `G'`, in which the covariance is diagonal.
            found += value / (typical * value + ridge)
        return np.asarray(p.noise * found)
