"""Top-N, similar and popular items. Invariant: an excluded item is never returned, and whoever ranks does so
over one state of the table.

`top` multiplies a block of users with all items, some thousand items at a time, and keeps the maxima of short
runs of items. The n-th largest of these is a lower bound of the n-th best score, so that only runs that reach
it are looked at again. With an index (`search`) it looks into some lists only.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.inference.posterior_model import PosteriorModel
from factors.model.layout import COUNT, FloatTable, outer, triangle, unpack
from factors.model.links import link_of
from factors.model.types import Float32s, Float64s, Int32s, Int64s, Ranked
from factors.serving.ivf_index import TOP, Index, query_features
from factors.serving.scoring import Scorer

# Items in a run of which the maximum is kept: a few vector registers.
_BLOCK = 128
# Scores in memory at once: these stay in the cache between the product and the maxima.
_SCORES_AT_ONCE = 1 << 19
_MOST_AT_ONCE = 1 << 16
# Rows that are read at once: their covariances stay in the cache while they become floats.
_ROWS_AT_ONCE = 1 << 10
# Scores of one item differ in their last bits between products of different shape.
_SLACK = 1e-5
# Numbers of the table that are read at once for what only `similar` and `popular` need; more are read when
# they are first asked for.
_READ_AT_ONCE = 2_000_000
# One-sided 95 % of a normal.
_LOWER_BOUND = 1.6449


@dataclass(frozen=True, slots=True)
class _Table:
    """One state. `items` (n, item_width): the table. `means` float32 (capacity, dim) by place; `rows` int32
    (capacity,): the row at each place, `places` where each row is: an index puts the rows of a list side by
    side. `starts` (c + 1,): the places of its lists; rows that are newer follow.
    """

    items: Float32s
    scorer: Scorer
    means: Float32s
    rows: Int32s
    places: Int32s
    index: Index | None
    starts: Int64s


@dataclass(frozen=True, slots=True)
class _Loved:
    """What `similar` and `popular` need, by row: `directions` float32 (n, rank), `lower` (n,), `rated`
    (n,).
    """

    directions: Float32s
    lower: Float64s
    rated: npt.NDArray[np.bool_]


class Ranker:
    """Ranks the items of one table for users, for an item, for everybody.

    Reads covariances from `items`, which it does not copy; keeps by item row 2 + dim numbers, and rank + 3
    more once `similar` or `popular` were asked. `update` follows the table and may run beside the others in
    another thread; two updates may not. Ranking is by the score before the link, of which the Gaussian
    expected rating is a monotone function; with the ordinal link the rows found are put in the order of their
    expected ratings.
    """

    def __init__(self, posterior: PosteriorModel, items: Float32s, index: Index | None = None) -> None:
        """`index`: of the first rows of `items` (n, item_width), if there is one."""
        self._posterior = posterior
        self._parameters = posterior.parameters
        layout = self._parameters.items.layout
        users = self._parameters.users
        self._layout = layout
        self._codec = posterior.item_codec
        self._user_layout = users.layout
        self._prior_user = np.append(users.mean[:-1], 1.0)
        self._user_second = users.covariance[:-1, :-1] + np.outer(users.mean[:-1], users.mean[:-1])
        self._preparing = threading.Lock()
        self._loved: _Loved | None = None
        self._table = self._made(items, index)
        if items.size <= _READ_AT_ONCE:
            self._prepared()

    @property
    def n_items(self) -> int:
        """Rows of the table that is ranked."""
        return len(self._table.items)

    @property
    def prepared(self) -> bool:
        """Whether `similar` and `popular` need not read the whole table first."""
        return self._loved is not None

    def share(self, depth: int) -> float:
        """About which part of the table is gone through for the best `depth` items, excluded ones
        included.
        """
        index = self._table.index
        probes = None if index is None else _probes(index, depth)
        return 1.0 if index is None or probes is None else (probes + 1) / len(index.centres)

    def update(self, rows: npt.NDArray[np.integer[Any]], items: Float32s) -> None:
        """Follow `rows` (m,) of `items` (n, item_width), which may have more rows than before; those are read
        too.
        """
        table = self._table
        before, n = len(table.items), len(items)
        changed = np.union1d(np.asarray(rows, dtype=np.int64), np.arange(before, n))
        means, where, places = table.means, table.rows, table.places
        if n > len(means):
            room = n + n // 8 + 1024
            means, where, places = (_grown(array, room) for array in (means, where, places))
            where[len(table.rows) :] = places[len(table.rows) :] = np.arange(len(table.rows), room)
        means[places[changed]] = items[changed][:, self._layout.mean]
        with self._preparing:
            self._loved = self._followed(self._loved, items, changed)
            self._table = _Table(
                items, Scorer(self._posterior, items), means, where, places, table.index, table.starts
            )

    def top(
        self,
        users: FloatTable,
        n: int,
        exclude: Sequence[npt.NDArray[np.integer[Any]]],
        rng: np.random.Generator | None = None,
        *,
        exact: bool = False,
    ) -> list[Ranked]:
        """The best `n` items for each of `users` (b, user_width), without the item rows in `exclude` (b
        arrays).

        `scores` are expected ratings. With `rng` the ranking is by one draw from the posteriors of user and
        items (Thompson sampling), and `scores` are still expected ratings, so not in order. Fewer than `n`
        where the table ends. Excluded rows beyond the table are no error. An index is used where there is one
        and `n` is small, unless `exact`; a draw is always exact.
        """
        table = self._table
        count = len(table.items)
        if n < 1 or count == 0 or len(users) == 0:
            return [Ranked(np.zeros(0, dtype=np.int64), np.zeros(0)) for _ in range(len(users))]
        excluded = []
        for rows in exclude:
            inside = np.asarray(rows, dtype=np.int64)
            excluded.append(inside[(inside >= 0) & (inside < count)])
        if rng is not None:
            found = [self._drawn(table, users[j], n, rows, rng) for j, rows in enumerate(excluded)]
        else:
            features = query_features(self._posterior.model, users)
            out = [np.sort(table.places[rows]).astype(np.int64) for rows in excluded]
            places = [None if exact else _searched(table, features[j], n, out[j]) for j in range(len(users))]
            left = [j for j, some in enumerate(places) if some is None]
            for j, some in zip(left, _best(table, features[left], n, [out[j] for j in left]), strict=True):
                places[j] = some
            found = [table.rows[some].astype(np.int64) for some in places if some is not None]
        return self._expected(table, users, found, in_order=rng is None)

    def similar(self, item_row: int, n: int) -> Ranked:
        """The `n` items whose scores go together with those of `item_row` over the users, among rated items.

        `scores`: the expected product of the two items' latent scores over the user prior, relative to their
        expected squares, uncertainty included: a cosine that shrinks where an item is little known. Empty for
        an item nobody rated.
        """
        loved = self._prepared()
        count = min(self.n_items, len(loved.lower))
        if not 0 <= item_row < count or n < 1 or not loved.rated[item_row]:
            return Ranked(np.zeros(0, dtype=np.int64), np.zeros(0))
        scores = loved.directions[:count] @ loved.directions[item_row]
        scores[~loved.rated[:count]] = -np.inf
        scores[item_row] = -np.inf
        rows = largest(scores, n)
        return Ranked(rows, scores[rows].astype(np.float64))

    def popular(self, n: int) -> Ranked:
        """The `n` rated items with the highest lower confidence bound (95 %) of the average user's rating."""
        loved = self._prepared()
        count = min(self.n_items, len(loved.lower))
        if n < 1 or count == 0:
            return Ranked(np.zeros(0, dtype=np.int64), np.zeros(0))
        lower = loved.lower[:count].copy()
        rows = largest(lower, n)
        rating, _ = link_of(self._parameters).rating_moments(lower[rows], np.zeros(len(rows)))
        return Ranked(rows, rating)

    def _made(self, items: Float32s, index: Index | None) -> _Table:
        n = len(items)
        rows: Int32s = np.arange(n, dtype=np.int32)
        starts: Int64s = np.zeros(1, dtype=np.int64)
        if index is not None and len(index.lists) <= n:
            indexed = len(index.lists)
            rows[:indexed] = np.argsort(index.lists, kind="stable")
            starts = np.zeros(len(index.centres) + 1, dtype=np.int64)
            np.cumsum(np.bincount(index.lists, minlength=len(index.centres)), out=starts[1:])
        else:
            index = None
        places = np.empty_like(rows)
        places[rows] = np.arange(n, dtype=np.int32)
        means: Float32s = np.empty((n, self._layout.dim), dtype=np.float32)
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            means[places[part]] = items[part, self._layout.mean]
        return _Table(items, Scorer(self._posterior, items), means, rows, places, index, starts)

    def _prepared(self) -> _Loved:
        with self._preparing:
            items, loved = self._table.items, self._loved
            if loved is None:
                n = len(items)
                loved = _Loved(
                    np.empty((n, self._layout.rank), dtype=np.float32),
                    np.empty(n),
                    np.empty(n, dtype=np.bool_),
                )
                self._read(loved, items, np.arange(n))
                self._loved = loved
            return loved

    def _followed(self, loved: _Loved | None, items: Float32s, changed: Int64s) -> _Loved | None:
        if loved is None:
            return None
        n = len(items)
        if n > len(loved.lower):
            room = n + n // 8 + 1024
            loved = _Loved(*(_grown(array, room) for array in (loved.directions, loved.lower, loved.rated)))
        self._read(loved, items, changed)
        return loved

    def _read(self, loved: _Loved, items: Float32s, rows: Int64s) -> None:
        """Write `rows` of what `similar` and `popular` need."""
        layout = self._layout
        latent_packed = layout.rank * (layout.rank + 1) // 2
        metric_pairs = np.zeros(layout.packed)
        metric_pairs[:latent_packed] = _packed_metric(self._user_second)
        jitter = 1e-12 * np.trace(self._user_second) * np.eye(layout.rank)
        root = np.linalg.cholesky(self._user_second + jitter)
        user_pairs = outer(self._prior_user[None])[0] * triangle(layout.dim)[2]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            vectors = items[some]
            mean = vectors[:, layout.mean].astype(np.float64)
            latent = mean[:, :-1]
            norm = np.einsum("ij,ij->i", latent @ self._user_second, latent)
            norm += self._codec.quadratic(vectors, metric_pairs)
            loved.directions[some] = (latent @ root) / np.sqrt(np.maximum(norm, 1e-30))[:, None]
            score = (
                self._parameters.mean
                + mean[:, -1]
                + self._parameters.users.mean[-1]
                + latent @ self._prior_user[:-1]
            )
            lower = score - _LOWER_BOUND * np.sqrt(self._codec.quadratic(vectors, user_pairs))
            loved.rated[some] = vectors[:, COUNT] > 0
            loved.lower[some] = np.where(vectors[:, COUNT] > 0, lower, -np.inf)

    def _drawn(
        self, table: _Table, user: FloatTable, n: int, exclude: Int64s, rng: np.random.Generator
    ) -> Int64s:
        """The best rows by one draw: the user from the posterior, then each item's part given the user."""
        layout = self._user_layout
        mean = user[layout.mean].astype(np.float64)
        values, vectors = np.linalg.eigh(unpack(user[None, layout.covariance], layout.dim)[0])
        noise = rng.standard_normal(mean.shape) * np.sqrt(np.maximum(values, 0.0))
        features = mean + vectors @ noise
        features[-1] = 1.0
        pairs = outer(features[None])[0] * triangle(layout.dim)[2]
        features32 = features.astype(np.float32)
        draws: Float32s = np.empty(len(table.items), dtype=np.float32)
        for start in range(0, len(draws), _ROWS_AT_ONCE):
            part = table.items[start : start + _ROWS_AT_ONCE]
            spread = np.sqrt(self._codec.quadratic(part, pairs))
            spread *= rng.standard_normal(len(spread), dtype=np.float32)
            draws[start : start + len(part)] = part[:, self._layout.mean] @ features32 + spread
        draws[exclude] = -np.inf
        return largest(draws, n)

    def _expected(
        self, table: _Table, users: FloatTable, found: Sequence[Int64s], *, in_order: bool
    ) -> list[Ranked]:
        """The rows that were `found` for each of `users`, with the ratings that are expected of them."""
        sizes = [len(rows) for rows in found]
        index = np.repeat(np.arange(len(found)), sizes)
        ratings = table.scorer.rating(users, index, np.concatenate(found))
        ranked = []
        for rows, rating in zip(found, np.split(ratings, np.cumsum(sizes)[:-1]), strict=True):
            order = np.argsort(-rating, kind="stable")
            if not in_order or self._parameters.link == "gaussian":
                order = np.arange(len(rows))
            ranked.append(Ranked(rows[order], rating[order]))
        return ranked


def _grown(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    grown = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


def _best(table: _Table, features: Float32s, n: int, exclude: Sequence[Int64s]) -> list[Int64s]:
    """The places of the best `n` items for each of `features` (b, dim), without those in `exclude`, which are
    sorted. Exact.
    """
    b, count = len(features), len(table.items)
    if b == 0:
        return []
    maxima: Float32s = np.empty((b, -(-count // _BLOCK)), dtype=np.float32)
    step = max(_BLOCK, min(_MOST_AT_ONCE, _SCORES_AT_ONCE // b) // _BLOCK * _BLOCK)
    for start in range(0, count, step):
        stop = min(start + step, count)
        scores = features @ table.means[start:stop].T
        for row, places in zip(scores, exclude, strict=True):
            first, last = np.searchsorted(places, (start, stop))
            if first < last:
                row[places[first:last] - start] = -np.inf
        whole = (stop - start) // _BLOCK * _BLOCK
        runs = slice(start // _BLOCK, (start + whole) // _BLOCK)
        maxima[:, runs] = scores[:, :whole].reshape(b, -1, _BLOCK).max(axis=2)
        if start + whole < stop:
            maxima[:, -1] = scores[:, whole:].max(axis=1)
    found = []
    for user, most, places in zip(features, maxima, exclude, strict=True):
        bound = np.partition(most, len(most) - n)[len(most) - n] if n <= len(most) else -np.inf
        again = np.flatnonzero(most >= bound - _SLACK * max(1.0, abs(float(bound)))) * _BLOCK
        segments = [(start, min(start + _BLOCK, count)) for start in again.tolist()]
        found.append(_best_of(table, user, n, segments, places))
    return found


def _searched(table: _Table, user: Float32s, n: int, exclude: Int64s) -> Int64s | None:
    """The places of about the best `n` items by the index; None where it is not for this."""
    index = table.index
    if index is None:
        return None
    # What is excluded tends to be what would stand highest.
    probes = _probes(index, n + len(exclude))
    if probes is None:
        return None
    near = index.centres @ user
    lists = np.argpartition(near, len(near) - probes)[len(near) - probes :]
    segments = list(zip(table.starts[lists].tolist(), table.starts[lists + 1].tolist(), strict=True))
    segments.append((len(index.lists), len(table.items)))
    best = _best_of(table, user, n, segments, exclude)
    return best if len(best) == n else None


def _probes(index: Index, depth: int) -> int | None:
    """How many lists to look into for the best `depth`; None where the exact product is as fast."""
    probes = index.probes * max(1, -(-depth // (2 * TOP)))
    return probes if probes * 4 <= len(index.centres) else None


def _best_of(
    table: _Table, user: Float32s, n: int, segments: Sequence[tuple[int, int]], exclude: Int64s
) -> Int64s:
    """The places of the best `n` items at the places in `segments`, best first, ties by row."""
    segments = [(start, stop) for start, stop in segments if start < stop]
    if not segments:
        return np.zeros(0, dtype=np.int64)
    means = table.means
    scores = np.concatenate([means[start:stop] @ user for start, stop in segments])
    starts = np.array([start for start, _ in segments])
    ends = np.cumsum([stop - start for start, stop in segments])
    offsets = np.append(0, ends[:-1])
    if len(exclude):
        order = np.argsort(starts)
        which = order[np.maximum(np.searchsorted(starts[order], exclude, side="right") - 1, 0)]
        there = exclude - starts[which]
        inside = (there >= 0) & (there < ends[which] - offsets[which])
        scores[offsets[which[inside]] + there[inside]] = -np.inf
    best = largest(scores, n)
    which = np.searchsorted(ends, best, side="right")
    places = starts[which] + best - offsets[which]
    order = np.lexsort((table.rows[places], -scores[best]))
    return np.asarray(places[order])


def _packed_metric(second: Float64s) -> Float64s:
    rows, columns, multiplicity = triangle(len(second))
    return np.asarray(second[rows, columns] * multiplicity)


def largest(scores: npt.NDArray[np.floating[Any]], n: int) -> Int64s:
    """Positions of the `n` largest of `scores` (m,), best first, ties by position; -inf never counts.
    Exact.
    """
    m = len(scores)
    if m > 4 * _BLOCK and n * _BLOCK < m:
        whole = m // _BLOCK * _BLOCK
        maxima = scores[:whole].reshape(-1, _BLOCK).max(axis=1)
        maxima = np.append(maxima, scores[whole:].max(initial=-np.inf))
        bound = np.partition(maxima, len(maxima) - n)[len(maxima) - n] if n <= len(maxima) else -np.inf
        candidates = np.flatnonzero(maxima >= bound)[:, None] * _BLOCK + np.arange(_BLOCK)
        rows = candidates.ravel()
        rows = rows[rows < m]
        rows = rows[scores[rows] >= bound]
    else:
        rows = np.arange(m)
    rows = rows[scores[rows] > -np.inf]
    if len(rows) > n:
        # Everything that ties with the n-th stays until the ties are broken by position.
        bound = np.partition(scores[rows], len(rows) - n)[len(rows) - n]
        rows = rows[scores[rows] >= bound]
    order = np.argsort(-scores[rows], kind="stable")
    return rows[order][:n].astype(np.int64)
