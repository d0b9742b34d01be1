"""The players that every recommender must beat: random, constant, and the biases of user and item."""

import math

import numpy as np

from environment.client import KnownRatings, Pair
from environment.world import SCALE
from evaluation.players.table import Floats, RatingTable
from factors import Ratings, fit_biases

# Ridge of the biases, in ratings; 1 to 5 give the same error within 1 % on the lecture's world.
DAMPING = 2.0


def clip(rating: float) -> float:
    """`rating`, brought onto the scale."""
    return min(max(float(rating), float(SCALE[0])), float(SCALE[-1]))


class LocalPlayer:
    """Base of the players without a connection: no note, no standard deviation, nothing to close. It knows
    and learns nothing.
    """

    note = ""
    std = math.nan

    async def prepare(self, history: KnownRatings) -> None:
        """Needs no history."""

    async def learn(self, pair: Pair, rating: float) -> None:
        """Learns nothing."""

    async def close(self) -> None:
        """Nothing is held."""


class RandomPlayer(LocalPlayer):
    """Answers a rating of the scale at random."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    async def predict(self, pair: Pair) -> float:
        """Return any rating of the scale."""
        return float(self._random.choice(SCALE))


class ConstantPlayer(LocalPlayer):
    """Answers the middle of the scale."""

    async def predict(self, pair: Pair) -> float:
        """Return the middle of the scale."""
        return float(np.mean(SCALE))


class BiasPlayer(LocalPlayer):
    """Mean plus user bias plus item bias, damped; each rating fits the biases of its pair again."""

    _table: RatingTable
    _user_bias: Floats
    _item_bias: Floats
    mean: float

    async def prepare(self, history: KnownRatings) -> None:
        """Fit the biases of all users and items."""
        self._table = RatingTable(history)
        n_users, n_items = self._table.values.shape
        unknown = np.full(history.rating.size, np.nan)
        ratings = Ratings(
            history.user.astype(np.int32), history.item.astype(np.int32), history.rating, unknown
        )
        biases = fit_biases(ratings, n_users, n_items, user_ridge=DAMPING, item_ridge=DAMPING)
        self.mean = self._table.mean()
        self._user_bias, self._item_bias = biases.user, biases.item

    async def predict(self, pair: Pair) -> float:
        """A user or item that is unknown counts with bias 0."""
        user, item = pair.user, pair.item
        user_bias = self._user_bias[user] if user < self._user_bias.size else 0.0
        item_bias = self._item_bias[item] if item < self._item_bias.size else 0.0
        return clip(self.mean + user_bias + item_bias)

    async def learn(self, pair: Pair, rating: float) -> None:
        """Fit the item's bias, then the user's, each in closed form with all others as they are."""
        user, item = pair.user, pair.item
        self._table.add(user, item, rating)
        # Only these two: a rating moves those of other rows by less than 1e-3 on the lecture's world, and the
        # next rating of such a row fits it again.
        values, seen = self._table.values, self._table.seen
        n_users, n_items = values.shape
        self._user_bias = np.pad(self._user_bias, (0, n_users - self._user_bias.size))
        self._item_bias = np.pad(self._item_bias, (0, n_items - self._item_bias.size))
        column = seen[:, item]
        residual = values[:, item].sum() - column @ (self.mean + self._user_bias)
        self._item_bias[item] = residual / (column.sum() + DAMPING)
        row = seen[user]
        residual = values[user].sum() - row @ (self.mean + self._item_bias)
        self._user_bias[user] = residual / (row.sum() + DAMPING)
