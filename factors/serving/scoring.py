"""Ratings of (user, item) pairs with their uncertainty. Invariant: one pair gets one number, alone or among
thousands.
"""

import numpy as np
import numpy.typing as npt

from factors.inference.pair_moments import PairMoments, Rows
from factors.inference.side_moments import rests_on_attributes
from factors.model.layout import COUNT, RATING_MEAN, FloatTable
from factors.model.links import std_factors
from factors.model.types import Float32s, Float64s, ItemStatistics, Scores
from factors.posterior.posterior_model import PosteriorModel

Basis = npt.NDArray[np.uint8]
# The bits of `BASIS`.
_ITEM_ATTRIBUTES, _USER_ATTRIBUTES = np.uint8(4), np.uint8(8)


class Scorer:
    """Scores against one item table. Cheap to build: it reads the stored rows `items` (n_items, item_width)
    at each call and copies nothing.

    Safe to share between threads. A user or item row that is negative or beyond its table counts as unknown.
    """

    def __init__(self, posterior: PosteriorModel, items: Float32s) -> None:
        self.items = items
        self._parameters = parameters = posterior.parameters
        self._link = posterior.link
        self._pairs = PairMoments(parameters, items)
        self._std_calibrated = bool(parameters.std_calibration.any())
        self._items_described = rests_on_attributes(parameters.items)
        self._users_described = rests_on_attributes(parameters.users)

    def score(
        self,
        users: FloatTable,
        user_index: Rows | None,
        item_rows: Rows,
        time: Float64s | None = None,
        context: Float32s | None = None,
    ) -> Scores:
        """Return the scores of the pairs (`users[user_index[j]]`, `items[item_rows[j]]`), all arrays (m,).

        `users` (u, user_width); without `user_index` the j-th user row is that of pair j, which is cheaper.
        `time` (m,): seconds since 1970 or NaN, when the rating would be given; a session effect that the rows
        keep for that time then counts. `context` (m, fields): what is given with each pair, as in `Ratings`.
        """
        mean, variance, counts = self._pairs.moments(users, user_index, item_rows, time, context)
        rating, std = self._link.rating_moments(mean, variance)
        # A fit of few ratings has no calibration: its factor would be 1, at a third of the time of one pair.
        if self._std_calibrated:
            std *= std_factors(self._parameters, counts)
        return Scores(rating, std, self._basis(counts, users, user_index, item_rows))

    def rating(self, users: FloatTable, user_index: Rows, item_rows: Rows) -> Float64s:
        """Return the ratings of `score` alone (m,). Where they follow from means no covariance is read."""
        # One pair goes through `score`, which adds up in the order that gives one pair one number.
        if not self._link.follows_mean or len(user_index) == 1:
            return self.score(users, user_index, item_rows).rating
        mean = self._pairs.means(users, user_index, item_rows)
        return self._link.rating_moments(mean, np.zeros(len(mean)))[0]

    def distribution(
        self,
        users: FloatTable,
        user_index: Rows,
        item_rows: Rows,
        time: Float64s | None = None,
        context: Float32s | None = None,
    ) -> Float64s:
        """Return the probability of each step of the scale, (m, levels). Raises `FactorsError` where the
        scale has no steps.
        """
        mean, variance, _ = self._pairs.moments(users, user_index, item_rows, time, context)
        return self._link.rating_distribution(mean, variance)

    def latent(
        self,
        users: FloatTable,
        user_index: Rows,
        item_rows: Rows,
        time: Float64s | None = None,
        context: Float32s | None = None,
    ) -> tuple[Float64s, Float64s, Basis]:
        """Return mean and variance (without noise) of the scores before the link, and the basis; all (m,)."""
        mean, variance, counts = self._pairs.moments(users, user_index, item_rows, time, context)
        return mean, variance, self._basis(counts, users, user_index, item_rows)

    def basis(self, users: FloatTable, user_index: Rows, item_rows: Rows) -> Basis:
        """Return what the scores of pairs rest on, as `score` does, without the scores; (m,)."""
        counts = np.zeros((2, len(item_rows)))
        counts[0] = users[user_index, COUNT]
        known = np.flatnonzero((item_rows >= 0) & (item_rows < len(self.items)))
        counts[1, known] = self.items[item_rows[known], COUNT]
        return self._basis(counts, users, user_index, item_rows)

    def _basis(
        self, counts: FloatTable, users: FloatTable, user_index: Rows | None, item_rows: Rows
    ) -> Basis:
        known = counts.astype(np.bool_).view(np.uint8)
        # Twice the user's bit plus the item's, in place: a call of numpy costs more than a pair.
        basis: Basis = known[0]
        basis += basis
        basis += known[1]
        if self._items_described:
            unrated = np.flatnonzero(known[1] == 0)
            basis[unrated] += _described(self.items, item_rows[unrated]) * _ITEM_ATTRIBUTES
        if self._users_described:
            unrated = np.flatnonzero(counts[0] == 0)
            rows = unrated if user_index is None else user_index[unrated]
            basis[unrated] += _described(users, rows) * _USER_ATTRIBUTES
        return basis


def _described(table: FloatTable, rows: Rows) -> Basis:
    """Return 1 for each of `rows` (m,) without ratings whose mean rests on attributes, 0 for the others."""
    found = np.zeros(len(rows), dtype=np.uint8)
    known = np.flatnonzero((rows >= 0) & (rows < len(table)))
    found[known] = table[rows[known], RATING_MEAN] > 0
    return found


def item_statistics(items: Float32s) -> ItemStatistics:
    """Return count and mean of the ratings behind each of `items` (n, item_width)."""
    count = np.rint(items[:, COUNT]).astype(np.int64)
    mean = np.where(count > 0, items[:, RATING_MEAN], np.nan).astype(np.float64)
    return ItemStatistics(count, mean)
