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
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from factors.inference.histories import RECENT, Compressed
from factors.model.types import Bools, Float32s, Float64s, Int32s, Int64s
from factors.ranking.half_steps import row_blocks

Pairs = tuple[Int64s, Int64s]
"""Items (n,), ascending, and a neighbour of each (n,)."""

# Of more items the co-occurrences of neighbours are looked up in a sparse matrix: so many make 400 MB.
_DENSE = 10_000
# Neighbours of an item for each of its events: a regression of more says nothing of them.
_FOR_EACH = 4
# Pairs of events of one user that are counted: 30 s, and at most 1.2 GB.
_PAIRS = 1e8
# Of distinct pairs, worked on at once: some 60 bytes each.
_PAIRS_AT_ONCE = 1 << 22
# With so many times the pairs an item that are wanted, those far from the nearest are left out before the
# rest is put in order; levels of cosines by which that is seen.
_CROWDED, _LEVELS = 4, 256
# Dropout of half of the inputs (EDLAE): `p / (1 - p)` of the diagonal. Between 0.25 and 0.5 held-out lists of
# three sets are within their error of each other.
DAMPING = 1.0


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

    def reached(self, items: Int64s, weight: Float64s) -> tuple[Int64s, Float64s]:
        """Return the rows (m,), ascending, that `add` adds to, and what it adds to each (m,)."""
        entries, lengths = self.entries(items)
        row, added = self.item_row[entries], np.repeat(weight, lengths) * self.weight[entries]
        order = np.argsort(row, kind="stable")
        row, added = row[order], added[order]
        # Several events reach the same item: one sum for each.
        first = np.flatnonzero(np.diff(row, prepend=-1))
        return row[first].astype(np.int64), np.add.reduceat(added, first) if len(first) else added

    def weights_between(self, items: Int64s, rows: Int64s) -> Float64s:
        """Return what each of `items` (h,) adds to the scores of the items `rows` (m,): (h, m)."""
        entries, lengths = self.entries(items)
        source, reached = np.repeat(np.arange(len(items)), lengths), self.item_row[entries]
        found = np.zeros((len(items), len(rows)))
        for place, row in enumerate(rows.tolist()):
            hit = reached == row
            weights = self.weight[entries[hit]]
            found[:, place] = np.bincount(source[hit], weights, minlength=len(items))
        return found

    def matrix(self) -> sp.csr_array:
        """Return the same as a sparse matrix (n_items, n_items)."""
        n_items = len(self.indptr) - 1
        return sp.csr_array((self.weight, self.item_row, self.indptr), shape=(n_items, n_items))

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
class CoOccurrences:
    """How often items were chosen by the same users, those with `n` events counting `1 / sqrt(n + 1)`: of
    users who choose everything a pair says little. Scaled so that an event counts 1 on average.

    `gram` (n_items, n_items); `dense` the same unless there are too many items; `count` (n_items,), its
    diagonal; `events` int64 (n_items,).
    """

    gram: sp.csr_array
    dense: Float32s | None
    count: Float64s
    events: Int64s

    @classmethod
    def of(cls, by_user: Compressed, n_items: int, said: Float64s | None = None) -> "CoOccurrences":
        """Count the events of the users, of which the longest histories are thinned. `said`: how much each
        event (n,) says, 1 where None.
        """
        chosen = chosen_by_users(by_user, n_items, said)
        # By columns what is by rows, too: made so, it would be there twice for a moment.
        gram = sp.csr_array((chosen.T @ chosen).T)
        gram.sort_indices()
        dense = np.asarray(gram.toarray(), np.float32) if n_items <= _DENSE else None
        counts = np.bincount(chosen.indices, minlength=n_items)
        return cls(gram, dense, np.asarray(gram.diagonal(), np.float64), counts)

    def fit(self, pairs: Pairs, ridge: float, threads: int = 1) -> Neighbours:
        """Return the term with these neighbours, see `nearest`."""
        n_items, (item, neighbour) = len(self.count), pairs
        indptr = np.searchsorted(item, np.arange(n_items + 1))
        weight = np.zeros(len(item), dtype=np.float32)

        def solve(rows: Int64s) -> None:
            place = np.arange(int((indptr[rows + 1] - indptr[rows]).max()))
            entry = indptr[rows, None] + place
            used = entry < indptr[rows + 1, None]
            inputs = np.where(used, neighbour[np.where(used, entry, 0)], 0)
            weight[entry[used]] = self._regressions(rows, inputs, used, ridge)[used]

        counts = np.diff(indptr)
        (filled,) = np.nonzero(counts)
        # Regressions of about one size together, so that few numbers are solved in vain.
        blocks = (filled[rows] for rows in row_blocks(counts[filled], int(counts.max(initial=1))))
        with ThreadPoolExecutor(threads, thread_name_prefix="ranking") as pool:
            for _ in pool.map(solve, blocks):
                pass
        # The regressions are by the item that is scored; a history is read by its own items.
        return by_rows(sp.csr_array((weight, (neighbour, item)), shape=(n_items, n_items)))

    def fit_all(self, ridge: float) -> Neighbours:
        """Return the term with all items as neighbours."""
        return all_regressions(np.asarray(self.gram.toarray(), np.float64), ridge)

    def nearest(self, most: int) -> Pairs:
        """Return pairs of an item (n,), ascending, and a neighbour (n,): at most `most` an item, the highest
        cosines, and no more than `_FOR_EACH` for each of its events.
        """
        indptr = self.gram.indptr
        borders = np.searchsorted(indptr, np.arange(0, indptr[-1], _PAIRS_AT_ONCE))
        blocks = pairwise(np.unique([0, *borders.tolist(), len(self.count)]).tolist())
        parts = [self._nearest(start, stop, most) for start, stop in blocks]
        none = np.zeros(0, dtype=np.int64)
        item, other = zip((none, none), *parts, strict=True)
        return np.concatenate(item), np.concatenate(other)

    def _nearest(self, start: int, stop: int, most: int) -> Pairs:
        """Return the pairs of the items from `start` to before `stop`."""
        indptr = self.gram.indptr[start : stop + 1]
        item, entries = np.repeat(np.arange(start, stop), np.diff(indptr)), slice(indptr[0], indptr[-1])
        other = self.gram.indices[entries].astype(np.int64)
        apart = item != other
        item, other = item[apart], other[apart]
        cosine = self.gram.data[entries][apart] / np.sqrt(self.count[item] * self.count[other])
        most_of = most_near(most, self.events)
        if len(item) > _CROWDED * most * (stop - start):
            near = _nearest_levels(item - start, cosine, most_of[start:stop])
            item, other, cosine = item[near], other[near], cosine[near]
        # One number by which to sort; stable, so that equal cosines do not depend on chance.
        order = np.argsort(item - 0.5 * np.minimum(cosine, 1.0), kind="stable")
        place = np.arange(len(order)) - np.searchsorted(item, item)
        order = order[place < most_of[item]]
        return item[order], other[order]

    def _regressions(self, item: Int64s, inputs: Int64s, used: Bools, ridge: float) -> Float32s:
        """Return the weights (b, k) of the `used` neighbours `inputs` (b, k) of `item` (b,)."""
        system = self._look_up(*np.broadcast_arrays(inputs[:, :, None], inputs[:, None]))
        system *= used[:, :, None] & used[:, None]
        diagonal = np.arange(inputs.shape[1])
        system[:, diagonal, diagonal] *= np.float32(1.0 + DAMPING)
        # A place without a neighbour gets the weight 0.
        system[:, diagonal, diagonal] += np.where(used, ridge, 1.0).astype(np.float32)
        target = used * self._look_up(*np.broadcast_arrays(item[:, None], inputs))
        return np.asarray(np.linalg.solve(system, target[:, :, None])[:, :, 0], np.float32)

    def _look_up(self, left: Int64s, right: Int64s) -> Float32s:
        table = self.gram if self.dense is None else self.dense
        return np.asarray(table[left.ravel(), right.ravel()], np.float32).reshape(left.shape)


def _nearest_levels(item: Int64s, cosine: Float64s, most: Int64s) -> Bools:
    """Return which pairs (n,) may be among the `most` (m,) of highest `cosine` of their `item`: all but those
    below the level in which the last of these is.
    """
    level = (np.clip(cosine, 0.0, 1.0) * (_LEVELS - 1)).astype(np.int64)
    counts = np.bincount(item * _LEVELS + level, minlength=len(most) * _LEVELS).reshape(-1, _LEVELS)
    # Pairs at each level and above.
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    least = np.maximum((above >= most[:, None]).sum(axis=1) - 1, 0)
    return np.asarray(level >= least[item])


def by_rows(weights: sp.csr_array) -> Neighbours:
    """Return the term of these `weights` (n_items, n_items) of an item of a history for another."""
    weights.sort_indices()
    weights.eliminate_zeros()
    return Neighbours(weights.indptr.astype(np.int64), weights.indices.astype(np.int32), weights.data)


def all_regressions(gram: Float64s, ridge: float) -> Neighbours:
    """Return the term with all items as neighbours: one inverse has all regressions (Steck, 2019). `gram`
    (n_items, n_items) is overwritten.
    """
    diagonal = np.diag_indices(len(gram))
    gram[diagonal] += ridge + DAMPING * gram[diagonal]
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    # An item that was never chosen says nothing and is said nothing of.
    weights[diagonal] = 0.0
    return by_rows(sp.csr_array(weights.astype(np.float32)))


def most_near(most: int, events: Int64s) -> Int64s:
    """Return how many neighbours an item with so many `events` (n_items,) has at most."""
    return np.minimum(most, _FOR_EACH * events)


def chosen_by_users(by_user: Compressed, n_items: int, said: Float64s | None = None) -> sp.csr_array:
    """Return who chose what (n_users, n_items), in float32, so that the product of its transpose with it are
    the co-occurrences, see `CoOccurrences`; the longest histories are thinned.
    """
    if said is not None:
        # An item that was not wanted is chosen together with none.
        (wanted,) = np.nonzero(said)
        by_user, said = by_user.only(wanted), said[wanted]
    events = by_user.thinned(*_thinning(by_user.counts))
    weight = (events.counts + 1.0) ** -0.5
    weight /= (weight @ events.counts) / max(1, len(events.other))
    root = np.repeat(np.sqrt(weight).astype(np.float32), events.counts)
    if said is not None:
        root *= said[events.source]
    # Places of 64 bits would make the numbers of all pairs so wide.
    kind = np.int32 if len(root) <= np.iinfo(np.int32).max else np.int64
    places = (events.other.astype(kind, copy=False), events.indptr.astype(kind))
    return sp.csr_array((root, *places), shape=(by_user.rows, n_items))


def _thinning(counts: Int64s) -> tuple[int, int]:
    """Return how many of the latest and of the other events of a user count, so that the pairs are not too
    many.
    """
    kept = RECENT
    while kept > 1 and float((np.minimum(counts, 2 * kept).astype(np.float64) ** 2).sum()) > _PAIRS:
        kept //= 2
    return kept, kept
