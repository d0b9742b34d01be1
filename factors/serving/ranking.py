"""Top-N, similar and popular items. Invariant: a call ranks one state of the table, and an excluded item is
never returned.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.model.layout import COUNT, FloatTable, outer, triangle
from factors.model.links import NINETY
from factors.model.types import Bools, Float32s, Float64s, Int64s, Ranked
from factors.posterior.posterior_model import PosteriorModel
from factors.serving.ivf_index import Index, query_features
from factors.serving.mean_table import MeanTable, Products, bar, grown, largest
from factors.serving.posterior_draw import PosteriorDraw, packed_weights
from factors.serving.rating_bounds import RatingBounds
from factors.serving.scoring import Scorer

# Rows that are read at once: their covariances stay in the cache while they become floats.
_ROWS_AT_ONCE = 1 << 10
# With the ordinal link: more candidates than are wanted are rated at first, then so many times as many.
_SPARE, _MORE = 50, 8
# So many are rated in some 20 ms at rank 16. A user to whom more may be the best gets the best of these.
_MOST_RATED = 20_000


@dataclass(frozen=True, slots=True)
class _View:
    """What one call ranks: a table `items` (n, item_width) as it was at one moment."""

    items: Float32s
    scorer: Scorer
    means: MeanTable


@dataclass(frozen=True, slots=True)
class _Summaries:
    """What `similar` and `popular` need of each row: `directions` float32 (n, rank), the item's scores over
    the users as a unit vector; `lower` (n,), the lower bound of its score for the average user, -inf for an
    item without ratings; `rated` (n,).
    """

    directions: Float32s
    lower: Float64s
    rated: npt.NDArray[np.bool_]


class Ranker:
    """Ranks the items of one table for a user, for an item, and for the average user.

    Reads covariances from `items`, which it does not copy. Keeps 2 + dim numbers an item row, and rank + 3
    more once `similar` or `popular` were called. `update` follows the table and may run beside the other
    calls in another thread; two updates may not. Users' rankings look for the best scores before the link, of
    which the Gaussian expected rating is a monotone function; with the ordinal link for as many as may have
    the best expected ratings.
    """

    def __init__(self, posterior: PosteriorModel, items: Float32s, index: Index | None = None) -> None:
        """`index`: of the first rows of `items` (n, item_width), if there is one."""
        self._posterior = posterior
        self._layout = posterior.parameters.items.layout
        self._codec = posterior.item_codec
        self._prior = _AverageUser.of(posterior)
        # Held while summaries are made or replaced: an update must not miss those that are being made.
        self._preparing = threading.Lock()
        self._summaries: _Summaries | None = None
        means = MeanTable.of(items, self._layout.mean, index)
        self._state = _View(items, Scorer(posterior, items), means)
        # So many numbers are read in 12 ms. Of a larger table that waits for the first call of `similar` or
        # `popular`, so that it can be ranked for users at once.
        if items.size <= 2_000_000:
            self._prepared()

    @property
    def n_items(self) -> int:
        """Rows of the table that is ranked."""
        return len(self._state.items)

    @property
    def prepared(self) -> bool:
        """Whether `similar` and `popular` need not read the whole table first."""
        return self._summaries is not None

    def multiplications(
        self, depth: int | None = None, *, sampled: bool = False, allowed: Bools | None = None
    ) -> float:
        """Return about how many multiplications one ranking takes. `depth`: items wanted and excluded, None
        where the whole table is read; `sampled`: by a draw; `allowed`: as in `top`.
        """
        dim, n = self._layout.dim, self.n_items
        if sampled:
            return n * (self._layout.packed + dim)
        if depth is None:
            return float(n * dim)
        rated = 0 if self._posterior.link.follows_mean else min(n, _MOST_RATED) * self._layout.packed
        return n * dim * self._state.means.share(depth, allowed) + rated

    def update(self, rows: npt.NDArray[np.integer[Any]], items: Float32s) -> None:
        """Follow `rows` (m,) of `items` (n, item_width), which may have more rows than before; those are read
        too.
        """
        state, n = self._state, len(items)
        changed = np.union1d(np.asarray(rows, dtype=np.int64), np.arange(len(state.items), n))
        means = state.means.updated(items, changed)
        # One assignment makes the new state visible; a call that runs has taken the old one.
        with self._preparing:
            summaries = self._summaries
            if summaries is not None:
                if n > len(summaries.lower):
                    arrays = (summaries.directions, summaries.lower, summaries.rated)
                    summaries = _Summaries(*(grown(array, n) for array in arrays))
                self._summarize(summaries, items, changed)
            self._summaries = summaries
            self._state = _View(items, Scorer(self._posterior, items), means)

    def top(
        self,
        users: FloatTable,
        n: int,
        exclude: Sequence[npt.NDArray[np.integer[Any]]],
        rng: np.random.Generator | None = None,
        *,
        allowed: Bools | None = None,
    ) -> list[Ranked]:
        """Return the best `n` items for each of `users` (b, user_width), without the item rows in `exclude`
        (b arrays).

        `scores` are expected ratings. With `rng` the ranking is by one draw from the posteriors of user and
        items (Thompson sampling), and `scores` are still expected ratings, so not in order. Fewer than `n`
        where the table ends. Excluded rows beyond the table are no error. An index is used where there is one
        and `n` is small; a draw is always exact. With the ordinal link the ratings of at most `_MOST_RATED`
        items are looked at besides those of the highest scores. `allowed` (n_items,): the rows that may be
        returned; one beyond its end may not.
        """
        state = self._state
        count = len(state.items)
        if n < 1 or count == 0 or len(users) == 0:
            return [_nothing() for _ in range(len(users))]
        # Items that are newer than the table may have been rated already.
        excluded = [np.asarray(rows, dtype=np.int64) for rows in exclude]
        excluded = [rows[(rows >= 0) & (rows < count)] for rows in excluded]
        if rng is None:
            follows_mean = self._posterior.link.follows_mean
            features, depth = query_features(self._posterior.model, users), n
            if not follows_mean:
                depth = min(2 * n + _SPARE, count)
            looked_at = state.means.products(features, depth, excluded, allowed=allowed)
            if not follows_mean:
                each = zip(looked_at, users, excluded, strict=True)
                return [self._by_rating(state, *some, n=n, allowed=allowed) for some in each]
            found = [state.means.best_of(products, n) for products in looked_at]
        else:
            pairs = zip(users, excluded, strict=True)
            found = [self._drawn(state.items, *pair, n, rng, allowed=allowed) for pair in pairs]
        sizes = [len(rows) for rows in found]
        index = np.repeat(np.arange(len(found)), sizes)
        ratings = np.split(state.scorer.rating(users, index, np.concatenate(found)), np.cumsum(sizes)[:-1])
        return [Ranked(*each) for each in zip(found, ratings, strict=True)]

    def _by_rating(
        self,
        state: _View,
        products: Products,
        user: Float32s,
        exclude: Int64s,
        *,
        n: int,
        allowed: Bools | None,
    ) -> Ranked:
        """Return the best `n` for one user where a score of smaller variance may give the higher rating.
        `products`: what was looked at for the user.
        """
        bounds = RatingBounds(self._posterior, state.means)
        features, base = bounds.score_of(user)
        some = 2 * n + _SPARE
        while True:
            best = self._rated(state, user, products, n, bounds)
            last = best.scores[-1] if len(best.scores) == n else -np.inf
            if products.rest == -np.inf or some >= _MOST_RATED:
                return best
            if bounds.of_scores(np.array([products.rest]) + base)[0] < last:
                return best
            some *= _MORE
            deeper = features[None], min(some, len(state.items)), [exclude]
            (products,) = state.means.products(*deeper, exact=True, allowed=allowed)

    def _rated(
        self, state: _View, user: Float32s, products: Products, n: int, bounds: RatingBounds
    ) -> Ranked:
        """Return the best `n` of `products`: the highest are rated, and those of the others that may be among
        the best. Of equal ratings the lowest row is first.
        """
        values, first = products.values, largest(products.values, 2 * n + _SPARE)
        rows = state.means.rows_at(products.positions[first])
        ratings = self._ratings(state, user, rows)
        last = np.partition(ratings, len(ratings) - n)[len(ratings) - n] if len(ratings) > n else -np.inf
        able = values > -np.inf
        able[first] = False
        left = np.flatnonzero(able)
        _, base = bounds.score_of(user)
        left = left[bounds.of_scores(values[left].astype(np.float64) + base) >= last]
        more = state.means.rows_at(products.positions[left[largest(values[left], _MOST_RATED)]])
        rows = np.concatenate([rows, more])
        ratings = np.concatenate([ratings, self._ratings(state, user, more)])
        best = np.lexsort((rows, -ratings))[:n]
        return Ranked(rows[best], ratings[best])

    def _ratings(self, state: _View, user: Float32s, rows: Int64s) -> Float64s:
        return state.scorer.rating(user[None], np.zeros(len(rows), dtype=np.int64), rows)

    @property
    def rating_bounds(self) -> RatingBounds:
        """What the expected ratings by the table as it is now do not exceed."""
        return RatingBounds(self._posterior, self._state.means)

    def similar(self, item_row: int, n: int, allowed: Bools | None = None) -> Ranked:
        """Return the `n` rated items whose scores go together with those of `item_row` over the users.

        `scores`: the expected product of the two items' latent scores over the user prior, relative to their
        expected squares, uncertainty included: a cosine that shrinks where an item is little known. Empty for
        an item without ratings. `allowed`: as in `top`.
        """
        summaries = self._prepared()
        count = min(self.n_items, len(summaries.lower))
        if not 0 <= item_row < count or n < 1 or not summaries.rated[item_row]:
            return _nothing()
        # Directions are unit vectors of the expected products, so this is the cosine.
        scores = summaries.directions[:count] @ summaries.directions[item_row]
        scores[~summaries.rated[:count]] = -np.inf
        scores[item_row] = -np.inf
        bar(scores, allowed)
        rows = largest(scores, n)
        return Ranked(rows, scores[rows].astype(np.float64))

    def directions(self, rows: npt.NDArray[np.integer[Any]]) -> Float32s:
        """Return a vector (m, rank) of each of `rows`, as their products tell how alike items are: see
        `similar`.
        """
        return self._directions(self._state.items[rows])[0]

    def popular(self, n: int, allowed: Bools | None = None) -> Ranked:
        """Return the `n` rated items with the highest lower bound (95 %) of the average user's rating.
        `allowed`: as in `top`.
        """
        # A copy: an update may write to the summaries between the ranking and the ratings.
        lower = self._prepared().lower[: self.n_items].copy()
        if n < 1 or len(lower) == 0:
            return _nothing()
        bar(lower, allowed)
        rows = largest(lower, n)
        rating, _ = self._posterior.link.rating_moments(lower[rows], np.zeros(len(rows)))
        return Ranked(rows, rating)

    def average(self, rows: Int64s) -> Float64s:
        """Return what an average user would give each of `rows` (m,): the lower end, the middle and the upper
        end of the central 90 % of the posterior (m, 3).
        """
        words = self._state.items[rows]
        score, std = self._of_average(words, words[:, self._layout.mean].astype(np.float64))
        scores = score[:, None] + std[:, None] * np.array([-NINETY, 0.0, NINETY])
        rating, _ = self._posterior.link.rating_moments(scores.ravel(), np.zeros(scores.size))
        return rating.reshape(scores.shape)

    def _of_average(self, words: Float32s, mean: Float64s) -> tuple[Float64s, Float64s]:
        """Return the score of the average user for stored rows of this `mean` (m, dim), and its deviation,
        both (m,).
        """
        user = self._prior
        score = user.offset + mean[:, -1] + mean[:, :-1] @ user.latent
        return score, np.sqrt(self._codec.quadratic(words, user.pairs))

    def _prepared(self) -> _Summaries:
        with self._preparing:
            if self._summaries is None:
                items = self._state.items
                n, rank = len(items), self._layout.rank
                directions: Float32s = np.empty((n, rank), dtype=np.float32)
                summaries = _Summaries(directions, np.empty(n), np.empty(n, dtype=np.bool_))
                self._summarize(summaries, items, np.arange(n))
                self._summaries = summaries
            return self._summaries

    def _summarize(self, summaries: _Summaries, items: Float32s, rows: Int64s) -> None:
        """Write the summaries of `rows` of `items`."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            words = items[some]
            summaries.directions[some], mean = self._directions(words)
            score, std = self._of_average(words, mean)
            # Above it with 95 %, as the upper end of a central 90 %.
            lower = score - NINETY * std
            rated = words[:, COUNT] > 0
            summaries.rated[some] = rated
            summaries.lower[some] = np.where(rated, lower, -np.inf)

    def _directions(self, words: Float32s) -> tuple[Float32s, Float64s]:
        """Return the directions (m, rank) of stored rows, and their means (m, dim)."""
        user, mean = self._prior, words[:, self._layout.mean].astype(np.float64)
        latent = mean[:, :-1]
        norm = np.einsum("ij,ij->i", latent @ user.second, latent)
        norm += self._codec.quadratic(words, user.latent_pairs)
        # An item whose score is the same for every user has no direction.
        directions = (latent @ user.root) / np.sqrt(np.maximum(norm, 1e-30))[:, None]
        return np.asarray(directions, dtype=np.float32), mean

    def _drawn(
        self,
        items: Float32s,
        user: FloatTable,
        exclude: Int64s,
        n: int,
        rng: np.random.Generator,
        *,
        allowed: Bools | None,
    ) -> Int64s:
        """Return the best rows by one draw: the user from the posterior, then each item's part of the score
        given the user.
        """
        draw = PosteriorDraw(self._posterior, user, rng)
        draws: Float32s = np.empty(len(items), dtype=np.float32)
        for start in range(0, len(draws), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            draws[part] = draw.scores(items[part], np.arange(start, min(part.stop, len(draws))))
        draws[exclude] = -np.inf
        bar(draws, allowed)
        return largest(draws, n)


@dataclass(frozen=True, slots=True)
class _AverageUser:
    """The prior of users, as `similar` and `popular` read it: the mean of its `latent` part (k,), its second
    moment `second` (k, k) with a `root` of that, what mean and bias add to every score (`offset`), and the
    weights of an item's packed covariance in the variance of the latent part and of the whole score.
    """

    latent: Float64s
    second: Float64s
    root: Float64s
    offset: float
    latent_pairs: Float64s
    pairs: Float64s

    @staticmethod
    def of(posterior: PosteriorModel) -> "_AverageUser":
        users = posterior.parameters.users
        layout, latent = users.layout, users.mean[:-1]
        second = users.covariance[:-1, :-1] + np.outer(latent, latent)
        # Keeps the root defined where no user differs from the next in some dimension.
        root = np.linalg.cholesky(second + 1e-12 * np.trace(second) * np.eye(layout.rank))
        rows, columns, _ = triangle(layout.rank)
        latent_pairs = np.zeros(layout.packed)
        latent_pairs[: len(rows)] = packed_weights(second[rows, columns], layout.rank)
        pairs = packed_weights(outer(np.append(latent, 1.0)[None])[0], layout.dim)
        offset = posterior.parameters.mean + float(users.mean[-1])
        return _AverageUser(latent, second, root, offset, latent_pairs, pairs)


def _nothing() -> Ranked:
    return Ranked(np.zeros(0, dtype=np.int64), np.zeros(0))
