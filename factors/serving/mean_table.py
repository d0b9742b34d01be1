"""The best rows of an item table for users, exactly or by an index. Invariant: an excluded row is never
returned, and ties go to the lower row.

The exact search multiplies a block of users with some thousand items at a time and keeps the maxima of short
runs of items. The n-th largest maximum is a lower bound of the n-th best score, so only runs that reach it
are looked at again. The search by an index (`ivf_index`) looks into some of its lists only.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.model.layout import FloatTable
from factors.model.types import Bools, Float32s, Int32s, Int64s
from factors.serving.ivf_index import TOP, Index

# Items in a run of which the maximum is kept: a few vector registers.
_RUN = 128
# Rows that are read at once: they stay in the cache while they are copied.
_ROWS_AT_ONCE = 1 << 10
# So few allowed rows are read one by one in about a millisecond at rank 64: then the answer is exact.
FEW_ALLOWED = 1 << 13


# Masks that are remembered: more than the ten or so filters of a front-end, with hidden items and without.
_REMEMBERED = 32
# Of a million items a mask takes 4 MB at most: sixteen that allow all, or all of those that are filters.
_REMEMBERED_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a `mask` allows of a table with these `rows`: `positions` int32 (k,), ascending; `starts` int64
    (c + 1,): where those of each list of the index begin, and where the last list ends.
    """

    mask: Bools
    rows: Int32s
    n_items: int
    positions: Int32s
    starts: Int64s


class RememberedMasks:
    """What masks allow, those that were used last. Several threads may ask at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the mask's address; each has its mask, so no other one can have that address meanwhile.
        self._kept: OrderedDict[int, Allowed] = OrderedDict()

    def get(self, mask: Bools) -> Allowed | None:
        """Return what a mask allows, None where it is not known."""
        with self._lock:
            kept = self._kept.get(id(mask))
            if kept is not None:
                self._kept.move_to_end(id(mask))
            return kept

    def put(self, kept: Allowed) -> None:
        """Remember what a mask allows, in place of what it allowed before."""
        with self._lock:
            self._kept.pop(id(kept.mask), None)
            self._kept[id(kept.mask)] = kept
            size = sum(each.positions.nbytes for each in self._kept.values())
            while len(self._kept) > _REMEMBERED or (size > _REMEMBERED_BYTES and len(self._kept) > 1):
                size -= self._kept.popitem(last=False)[1].positions.nbytes


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of an index, ascending `numbers` int64 (c,), in which there are `size` items, newer ones that are
    in no list among them; of these only what a mask has `allowed`.
    """

    numbers: Int64s
    size: int
    allowed: Allowed | None


@dataclass(frozen=True, slots=True)
class Products:
    """Distinct `positions` int64 (m,), ascending unless it is said, and the products `values` (m,) of the
    means there with the features of one user, -inf where a row is excluded. No other row that was looked at
    has a higher product than `rest`.
    """

    positions: Int64s
    values: FloatTable
    rest: float = -np.inf


@dataclass(frozen=True, slots=True)
class MeanTable:
    """The posterior means of the items by position, in one state of the table.

    An index puts the rows of one list at adjacent positions; rows that are newer follow. `columns`: of the
    means in a stored row. `n_items`: rows of the table. `means` float32 (capacity, dim); `rows` int32
    (capacity,): the row at each position; `positions` int32 (capacity,): the position of each row; `starts`
    int64 (c + 1,): the first position of each list of `index`, and the end of the last.
    """

    columns: slice
    n_items: int
    means: Float32s
    rows: Int32s
    positions: Int32s
    index: Index | None
    starts: Int64s
    remembered: RememberedMasks = field(default_factory=RememberedMasks)

    @staticmethod
    def of(items: Float32s, columns: slice, index: Index | None) -> "MeanTable":
        """Return the means of `items` (n, item_width); an index of more rows than these is not used."""
        n = len(items)
        rows: Int32s = np.arange(n, dtype=np.int32)
        starts: Int64s = np.zeros(1, dtype=np.int64)
        if index is not None and len(index.lists) > n:
            index = None
        if index is not None:
            rows[: len(index.lists)] = np.argsort(index.lists, kind="stable")
            starts = np.zeros(len(index.centres) + 1, dtype=np.int64)
            np.cumsum(np.bincount(index.lists, minlength=len(index.centres)), out=starts[1:])
        positions = np.empty_like(rows)
        positions[rows] = np.arange(n, dtype=np.int32)
        means: Float32s = np.empty((n, columns.stop - columns.start), dtype=np.float32)
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            means[positions[part]] = items[part, columns]
        return MeanTable(columns, n, means, rows, positions, index, starts)

    def updated(self, items: Float32s, changed: Int64s) -> "MeanTable":
        """Return the means of `items` (n, item_width), of which the rows `changed` are read again.

        Shares its arrays with this one as long as there is room.
        """
        n, means, rows, positions = len(items), self.means, self.rows, self.positions
        if n > len(means):
            before = len(rows)
            means, rows, positions = (grown(array, n) for array in (means, rows, positions))
            rows[before:] = positions[before:] = np.arange(before, len(rows))
        means[positions[changed]] = items[changed][:, self.columns]
        return MeanTable(
            *(self.columns, n, means, rows, positions, self.index, self.starts), remembered=self.remembered
        )

    def share(self, depth: int, allowed: Bools | None = None) -> float:
        """Return about which part of the table is read for the best `depth` items, excluded ones included, of
        those `allowed`: all of it where it is not remembered what a mask allows.
        """
        probes = self._probes(depth)
        if self.index is None or probes is None:
            return 1.0
        without = (probes + 1) / len(self.index.centres)
        if allowed is None:
            return without
        kept = self.known(allowed)
        if kept is None:
            return 1.0
        # At worst all that is barred is what is nearest to the user, and as much is read farther off.
        passing = len(kept.positions) / self.n_items
        return min(passing, without + 1.0 - passing)

    def known(self, mask: Bools) -> Allowed | None:
        """Return what is remembered of a mask for this state of the table, None where nothing is."""
        kept = self.remembered.get(mask)
        same = kept is not None and kept.rows is self.rows and kept.n_items == self.n_items
        return kept if same else None

    def products(
        self,
        features: Float32s,
        n: int,
        exclude: Sequence[Int64s],
        *,
        exact: bool = False,
        allowed: Bools | None = None,
        spare: int = 0,
    ) -> list[Products]:
        """Return for each of `features` (b, dim) the products of what a search for the best `n` items looks
        at, without the rows in `exclude` (b arrays).

        By the index, where there is one and `n` is small, unless `exact`, that is all in some of its lists.
        Else it is what may be among the best `n` and `spare` more, as a second look would read all again.
        `allowed` (n_items,): the rows that may be returned; one beyond its end may not. What one allows that
        cannot be written to is remembered for the next call with it.
        """
        excluded = [self._at(rows) for rows in exclude]
        pairs = zip(features, excluded, strict=True)
        found = [self._searched(*pair, n, exact=exact, allowed=allowed) for pair in pairs]
        left = [j for j, products in enumerate(found) if products is None]
        exactly = iter(self._exact(features[left], n + spare, [excluded[j] for j in left], allowed))
        found = [next(exactly) if products is None else products for products in found]
        for products, positions in zip(found, excluded, strict=True):
            if products is not None:
                products.values[places(products.positions, positions)[1]] = -np.inf
        return [products for products in found if products is not None]

    def of_rows(self, user: Float32s, rows: Int64s) -> Float32s:
        """Return the products of the means of `rows` (m,) with the features `user` (dim,)."""
        return np.asarray(self.means.take(self.positions[rows], axis=0) @ user)

    def rows_at(self, positions: Int64s) -> Int64s:
        """Return the row at each of `positions`."""
        return self.rows[positions].astype(np.int64)

    def lists_near(self, user: Float32s, least: int, allowed: Bools | None) -> Lists | None:
        """Return the lists that a search for the best `least` of features `user` (dim,) looks into; None
        where it reads all items, or a mask that is not remembered.
        """
        probes = self._probes(least)
        if self.index is None or probes is None:
            return None
        if allowed is None:
            some = _nearest(self.index.centres @ user, probes)
            size = (
                int((self.starts[some + 1] - self.starts[some]).sum()) + self.n_items - int(self.starts[-1])
            )
            return Lists(some, size, None) if size >= least else None
        if allowed.flags.writeable:
            return None
        kept = self._remember(allowed)
        near = self._lists_near_kept(user, probes, least, kept)
        if near is None:
            return None
        sizes = kept.starts[near + 1] - kept.starts[near]
        return Lists(near, int(sizes.sum()) + len(kept.positions) - int(kept.starts[-1]), kept)

    def _at(self, rows: Int64s) -> Int64s:
        """Return the positions of `rows`, ascending."""
        return np.sort(self.positions[rows]).astype(np.int64)

    def _products(self, user: Float32s, positions: Int64s) -> Products:
        # By `take`: a third of the time of an index.
        return Products(positions, self.means.take(positions, axis=0) @ user)

    def _probes(self, depth: int) -> int | None:
        """Return how many lists hold the best `depth`; None where the exact product is as fast."""
        if self.index is None:
            return None
        # The index was measured on its best TOP; twice as many lie in about the same lists.
        probes = self.index.probes * max(1, -(-depth // (2 * TOP)))
        return probes if probes * 4 <= len(self.index.centres) else None

    def _searched(
        self, user: Float32s, exclude: Int64s, n: int, *, exact: bool, allowed: Bools | None
    ) -> Products | None:
        """Return the products of what the index has near `user`, or of all where few are `allowed`; None
        where the product with all items is as fast. Excluded ones are among them.
        """
        # What is excluded tends to be what would stand highest.
        least = n + len(exclude)
        probes = None if exact else self._probes(least)
        if allowed is not None and not allowed.flags.writeable:
            return self._near_kept(user, probes, least, self._remember(allowed))
        if allowed is not None:
            return self._near_allowed(user, probes, least, allowed[: self.n_items])
        if self.index is None or probes is None:
            return None
        borders = self._borders(_nearest(self.index.centres @ user, probes))
        return self._of_segments(user, *borders) if int(np.diff(borders, axis=0).sum()) >= least else None

    def _near_allowed(
        self, user: Float32s, probes: int | None, least: int, allowed: Bools
    ) -> Products | None:
        """Return the products of as many rows that are `allowed` as a search without a mask looks at."""
        # A millionth of a second for 30,000 rows: no reason to remember it with the mask.
        count = int(np.count_nonzero(allowed))
        if count <= FEW_ALLOWED:
            return self._products(user, self._at(np.flatnonzero(allowed)))
        if self.index is None or probes is None:
            return None
        near, lists = self.index.centres @ user, len(self.index.centres)
        # As many allowed rows are looked at as a search without a mask looks at rows: in the more lists, the
        # fewer of them are allowed.
        wanted = probes * len(self.index.lists) // lists
        probes = probes * len(self.index.lists) // count
        while probes < lists:
            positions = _ranges(*self._borders(_nearest(near, probes)))
            positions = positions[self._allowed_at(positions, allowed)]
            # A mask may go against the user's taste: near lists then hold few of its rows.
            if len(positions) >= wanted:
                return self._products(user, positions) if len(positions) >= least else None
            probes *= 2
        return None

    def _near_kept(self, user: Float32s, probes: int | None, least: int, kept: Allowed) -> Products | None:
        """Return what `_near_allowed` does of a mask that is remembered."""
        some = self._lists_near_kept(user, probes, least, kept)
        if some is not None:
            newer = kept.positions[kept.starts[-1] :]
            positions = kept.positions[_ranges(kept.starts[some], kept.starts[some + 1])]
            return self._products(user, np.concatenate([positions, newer]).astype(np.int64))
        # Rows that are copied one by one take four times as long as in their order.
        few = len(kept.positions) <= max(FEW_ALLOWED, self.n_items // 4)
        return self._products(user, kept.positions.astype(np.int64)) if few else None

    def _lists_near_kept(
        self, user: Float32s, probes: int | None, least: int, kept: Allowed
    ) -> Int64s | None:
        """Return the lists, ascending, that are looked into under a mask that is remembered; None where what
        is allowed is read as a whole.
        """
        if self.index is None or probes is None or len(kept.positions) <= FEW_ALLOWED:
            return None
        # As many allowed rows as a search without a mask looks at, from the lists that are nearest.
        wanted = probes * len(self.index.lists) // len(self.index.centres)
        near, sizes = np.argsort(-(self.index.centres @ user)), np.diff(kept.starts)
        needed = 1 + int(np.searchsorted(np.cumsum(sizes[near]), wanted))
        # By so many lists as a mask needs more than a random one of its size, it goes against the user's
        # taste: the best that is left is spread over as many more.
        random = probes * len(self.index.lists) // len(kept.positions)
        some = np.sort(near[: needed + max(0, needed - random)])
        found = int(sizes[some].sum()) + len(kept.positions) - int(kept.starts[-1])
        return some if least <= found < self.n_items // 4 else None

    def _borders(self, lists: Int64s) -> tuple[Int64s, Int64s]:
        """Return where each of `lists` (c,), ascending, begins and ends; then where the items do that came
        after the index, which are in none.
        """
        newer = [self.starts[-1]], [self.n_items]
        starts, stops = self.starts[lists], self.starts[lists + 1]
        return np.concatenate([starts, newer[0]]), np.concatenate([stops, newer[1]])

    def _remember(self, mask: Bools) -> Allowed:
        """Return what a mask allows, made once for each state of the table."""
        kept = self.known(mask)
        if kept is None:
            positions = np.flatnonzero(self._allowed_at(slice(0, self.n_items), mask)).astype(np.int32)
            kept = Allowed(mask, self.rows, self.n_items, positions, np.searchsorted(positions, self.starts))
            self.remembered.put(kept)
        return kept

    def _allowed_at(self, positions: Int64s | slice, allowed: Bools) -> Bools:
        """Return which of `positions` hold a row that is `allowed`."""
        rows = self.rows[positions]
        inside = rows < len(allowed)
        if inside.all():
            return np.asarray(allowed[rows])
        inside[inside] = allowed[rows[inside]]
        return np.asarray(inside)

    def _exact(
        self, features: Float32s, n: int, exclude: Sequence[Int64s], allowed: Bools | None = None
    ) -> list[Products]:
        """Return the products among which the best `n` are, for each of `features` (b, dim). The sorted
        positions in `exclude` are not among the best, but may be among what is returned.
        """
        b, count = len(features), self.n_items
        if b == 0:
            return []
        maxima: Float32s = np.empty((b, -(-count // _RUN)), dtype=np.float32)
        # So many scores stay in the cache between the product and the maxima. Of one user 256 KB are enough:
        # more would only push the means out.
        step = max(_RUN, min(1 << 16, (1 << 19) // b) // _RUN * _RUN)
        for start in range(0, count, step):
            stop = min(start + step, count)
            scores = features @ self.means[start:stop].T
            if allowed is not None:
                scores[:, ~self._allowed_at(slice(start, stop), allowed)] = -np.inf
            for row, positions in zip(scores, exclude, strict=True):
                first, last = np.searchsorted(positions, (start, stop))
                if first < last:
                    row[positions[first:last] - start] = -np.inf
            whole = (stop - start) // _RUN * _RUN
            runs = slice(start // _RUN, (start + whole) // _RUN)
            maxima[:, runs] = scores[:, :whole].reshape(b, -1, _RUN).max(axis=2)
            if start + whole < stop:
                maxima[:, -1] = scores[:, whole:].max(axis=1)
        found = []
        for user, most in zip(features, maxima, strict=True):
            bound = float(nth_largest(most, n))
            # Scores of one item differ in their last bits between products of different shape.
            again = np.flatnonzero(most >= bound - 1e-5 * max(1.0, abs(bound))) * _RUN
            stops = np.minimum(again + _RUN, count)
            if allowed is None:
                products = self._of_segments(user, again, stops)
            else:
                some = _ranges(again, stops)
                products = self._products(user, some[self._allowed_at(some, allowed)])
            found.append(replace(products, rest=float(bound)))
        return found

    def _of_segments(self, user: Float32s, starts: Int64s, stops: Int64s) -> Products:
        """Return the products of the positions from each of `starts` (c,), ascending, to before each of
        `stops`.
        """
        segments = zip(starts.tolist(), stops.tolist(), strict=True)
        values = [self.means[start:stop] @ user for start, stop in segments]
        return Products(_ranges(starts, stops), np.concatenate([np.zeros(0, np.float32), *values]))

    def best_of(self, products: Products, n: int) -> Int64s:
        """Return the rows of the best `n`, best first, ties by row."""
        best = largest(products.values, n)
        rows = self.rows_at(products.positions[best])
        return np.asarray(rows[np.lexsort((rows, -products.values[best]))])


def places(ascending: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
    """Return which of `rows` (m,) are among distinct `ascending` ones, and the place of each of these."""
    place = np.searchsorted(ascending, rows)
    hit = np.flatnonzero(place < len(ascending))
    hit = hit[ascending[place[hit]] == rows[hit]]
    return hit, place[hit].astype(np.int64)


def _nearest(near: Float32s, probes: int) -> Int64s:
    """Return the `probes` lists of the highest products `near` (c,), ascending."""
    return np.sort(np.argpartition(near, len(near) - probes)[len(near) - probes :])


def _ranges(starts: Int64s, stops: Int64s) -> Int64s:
    """Return the numbers from each of `starts` (c,) to before each of `stops`, one range after the other."""
    sizes = stops - starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def grown(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Return `array` with room for `rows` and spare ones, zeros behind its end."""
    # An eighth more, so that a table that grows row by row is copied seldom.
    larger = np.zeros((rows + rows // 8 + 1024, *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def bar(scores: npt.NDArray[np.floating[Any]], allowed: Bools | None) -> None:
    """Write -inf to the `scores` (n_items,) of rows that are not `allowed`: one beyond its end is not."""
    if allowed is not None:
        scores[: len(allowed)][~allowed[: len(scores)]] = -np.inf
        scores[len(allowed) :] = -np.inf


def largest(scores: npt.NDArray[np.floating[Any]], n: int) -> Int64s:
    """Return the positions of the `n` largest of `scores` (m,), best first, ties by position; -inf never
    counts.
    """
    m = len(scores)
    rows = np.arange(m)
    # Maxima of runs first, where that leaves most of the scores unread.
    if m > 4 * _RUN and n * _RUN < m:
        whole = m // _RUN * _RUN
        maxima = np.append(scores[:whole].reshape(-1, _RUN).max(axis=1), scores[whole:].max(initial=-np.inf))
        bound = nth_largest(maxima, n)
        rows = (np.flatnonzero(maxima >= bound)[:, None] * _RUN + np.arange(_RUN)).ravel()
        rows = rows[rows < m]
        rows = rows[scores[rows] >= bound]
    rows = rows[scores[rows] > -np.inf]
    if len(rows) > n:
        # Everything that ties with the n-th stays until the ties are broken by position.
        rows = rows[scores[rows] >= nth_largest(scores[rows], n)]
    order = np.argsort(-scores[rows], kind="stable")
    return rows[order][:n].astype(np.int64)


def nth_largest(values: npt.NDArray[np.floating[Any]], n: int) -> np.floating[Any] | float:
    """Return the n-th largest of `values`, -inf where there are fewer."""
    return np.partition(values, len(values) - n)[len(values) - n] if n <= len(values) else -np.inf
