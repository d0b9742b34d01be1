"""The sparse item term: what an event of one item says of a few others, beyond what factors can say.

Invariant: an item says nothing of itself.

For each item `i` a ridge regression of who chose `i` on who chose its neighbours `J`, the items that were
chosen together with it most (by cosine). With the co-occurrences `G`,

    beta_i = (G_JJ + lambda I + damping diag(G_JJ))^-1 G_Ji

which is the closed form of Steck (EASE, 2019) for a few inputs; the diagonal is that of dropout on the inputs
(EDLAE, Steck, 2020).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from factors.inference.histories import Compressed
from factors.model.types import Float32s, Float64s, Int32s, Int64s

# Of more items the co-occurrences of neighbours are looked up in a sparse matrix: 6,000 make 144 MB.
_DENSE = 6_000
# Regressions that are solved at once: 80 MB with 100 neighbours.
_ITEMS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What item `j` in a history adds to the scores of other items: `weight[s]` to those of `item_row[s]`, `s
    = indptr[j]:indptr[j + 1]`.

    `indptr` int64 (n_items + 1,); `item_row` int32 (n,), ascending in each row; `weight` float32 (n,).
    """

    indptr: Int64s
    item_row: Int32s
    weight: Float32s

    def add(self, scores: Float64s, items: Int64s, weight: Float64s) -> None:
        """Add to `scores` (n_items,) what the history `items` (h,), which count `weight` (h,), says."""
        entries, lengths = self.entries(items)
        np.add.at(scores, self.item_row[entries], np.repeat(weight, lengths) * self.weight[entries])

    def added(self, items: Int64s, weight: Float64s, rows: Int64s) -> Float64s:
        """Return what `add` adds to the scores of `rows` (m,) alone."""
        entries, lengths = self.entries(items)
        distinct, inverse = np.unique(rows, return_inverse=True)
        reached = self.item_row[entries]
        place = np.searchsorted(distinct, reached)
        hit = (
            np.flatnonzero(distinct[np.minimum(place, len(distinct) - 1)] == reached)
            if len(rows)
            else place[:0]
        )
        terms = np.repeat(weight, lengths)[hit] * self.weight[entries[hit]]
        return np.asarray(np.bincount(place[hit], terms, minlength=len(distinct))[inverse], np.float64)

    def weights_of(self, items: Int64s, row: int) -> Float64s:
        """Return what each of `items` (h,) adds to the score of the one item `row`."""
        entries, lengths = self.entries(items)
        source, hit = np.repeat(np.arange(len(items)), lengths), self.item_row[entries] == row
        return np.bincount(source[hit], self.weight[entries[hit]], minlength=len(items)).astype(np.float64)

    def entries(self, items: Int64s) -> tuple[Int64s, Int64s]:
        """Return the positions (n,) of all that `items` (h,) add, one after the other, and the length (h,) of
        each.
        """
        first, lengths = self.indptr[items], self.indptr[items + 1] - self.indptr[items]
        starts = np.cumsum(lengths) - lengths
        return np.repeat(first - starts, lengths) + np.arange(int(lengths.sum())), lengths

    def scaled(self, factor: float) -> "Neighbours":
        """Return the same with all weights times `factor`."""
        return Neighbours(self.indptr, self.item_row, self.weight * np.float32(factor))


def no_neighbours(n_items: int) -> Neighbours:
    """Return a term that adds nothing."""
    return Neighbours(np.zeros(n_items + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class _Together:
    """How often items were chosen by the same user: `gram` (n_items, n_items), `dense` the same unless there
    are too many, `count` (n_items,) its diagonal.
    """

    gram: sp.csr_array
    dense: Float64s | None
    count: Float64s

    @classmethod
    def of(cls, by_user: Compressed, n_items: int) -> "_Together":
        events = by_user.thinned()
        ones = np.ones(len(events.other))
        chosen = sp.csr_array((ones, events.other, events.indptr), shape=(by_user.rows, n_items))
        gram = sp.csr_array(chosen.T @ chosen)
        gram.sort_indices()
        dense = np.asarray(gram.toarray(), np.float64) if n_items <= _DENSE else None
        return cls(gram, dense, np.asarray(gram.diagonal(), np.float64))

    def look_up(self, left: Int64s, right: Int64s) -> Float64s:
        """Return the entries at `left` (...) and `right` (...)."""
        table = self.gram if self.dense is None else self.dense
        return np.asarray(table[left.ravel(), right.ravel()], np.float64).reshape(left.shape)

    def nearest(self, most: int) -> tuple[Int64s, Int64s]:
        """Return pairs of an item (n,), ascending, and a neighbour (n,): at most `most` an item, the highest
        cosines.
        """
        item = np.repeat(np.arange(len(self.count)), np.diff(self.gram.indptr))
        other = self.gram.indices.astype(np.int64)
        apart = item != other
        item, other = item[apart], other[apart]
        cosine = self.gram.data[apart] / np.sqrt(self.count[item] * self.count[other])
        # A stable order, so that equal cosines do not depend on chance.
        order = np.lexsort((-cosine, item))
        order = order[np.arange(len(order)) - np.searchsorted(item, item) < most]
        return item[order], other[order]


def fit_neighbours(
    by_user: Compressed, n_items: int, *, most: int, ridge: float, damping: float, threads: int = 1
) -> Neighbours:
    """Return the term of `most` neighbours an item, from the events of the users."""
    together = _Together.of(by_user, n_items)
    item, neighbour = together.nearest(most)
    edges = np.searchsorted(item, np.arange(0, n_items + _ITEMS_AT_ONCE, _ITEMS_AT_ONCE)).tolist()

    def solve(part: slice) -> Float64s:
        return _regressions(together, item[part], neighbour[part], ridge=ridge, damping=damping)

    with ThreadPoolExecutor(threads, thread_name_prefix="ranking") as pool:
        weight = np.concatenate([np.zeros(0), *pool.map(solve, map(slice, edges[:-1], edges[1:]))])
    # The regressions are by the item that is scored; a history is read by its own items.
    by_neighbour = sp.csr_array((weight.astype(np.float32), (neighbour, item)), shape=(n_items, n_items))
    by_neighbour.sort_indices()
    indptr, item_row = by_neighbour.indptr.astype(np.int64), by_neighbour.indices.astype(np.int32)
    return Neighbours(indptr, item_row, by_neighbour.data)


def _regressions(
    together: _Together, item: Int64s, neighbour: Int64s, *, ridge: float, damping: float
) -> Float64s:
    """Return the weight of each pair (n,), those of one item being solved together."""
    if len(item) == 0:
        return np.zeros(0)
    _, row, lengths = np.unique(item, return_inverse=True, return_counts=True)
    rows, longest = len(lengths), int(lengths.max())
    place = np.arange(len(item)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    inputs = np.zeros((rows, longest), dtype=np.int64)
    inputs[row, place] = neighbour
    used = np.arange(longest) < lengths[:, None]
    system = together.look_up(*np.broadcast_arrays(inputs[:, :, None], inputs[:, None]))
    system *= used[:, :, None] & used[:, None]
    diagonal = np.arange(longest)
    system[:, diagonal, diagonal] *= 1.0 + damping
    # A place without a neighbour gets the weight 0.
    system[:, diagonal, diagonal] += np.where(used, ridge, 1.0)
    target = np.zeros((rows, longest))
    target[row, place] = together.look_up(item, neighbour)
    return np.asarray(np.linalg.solve(system, target[:, :, None])[row, place, 0])
