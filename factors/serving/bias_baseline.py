"""The baseline that every model must beat: mean + user effect + item effect (Koren, 2010, section 2.1)."""

from dataclasses import dataclass

import numpy as np

from factors.model.types import Float64s, Int32s, Ratings


@dataclass(frozen=True, slots=True)
class BiasBaseline:
    """`mean` of all ratings; `user` (n_users,), `item` (n_items,): effects, 0 for a row without ratings."""

    mean: float
    user: Float64s
    item: Float64s

    def predict(self, user_row: Int32s, item_row: Int32s) -> Float64s:
        """Return the ratings (m,) of pairs, not clipped to any scale."""
        return np.asarray(self.mean + self.user[user_row] + self.item[item_row])


def fit_biases(
    ratings: Ratings,
    n_users: int,
    n_items: int,
    *,
    user_ridge: float,
    item_ridge: float,
    rounds: int = 10,
) -> BiasBaseline:
    """Fit the effects by ridge regression of each side in turn, items first.

    A ridge counts in ratings: so many of 0 effect are added to each row; an infinite one keeps a side at 0.
    After three `rounds` effects move by less than 1e-3 of a rating.
    """
    mean = float(ratings.value.mean()) if len(ratings.value) else 0.0
    user, item = np.zeros(n_users), np.zeros(n_items)
    residual = ratings.value - mean
    for _ in range(rounds):
        item = _shrunk_means(ratings.item_row, residual - user[ratings.user_row], n_items, item_ridge)
        user = _shrunk_means(ratings.user_row, residual - item[ratings.item_row], n_users, user_ridge)
    return BiasBaseline(mean, user, item)


def _shrunk_means(rows: Int32s, values: Float64s, size: int, ridge: float) -> Float64s:
    """Mean value of each row, (size,), shrunk by `ridge` values of 0; 0 for a row without any."""
    count = np.bincount(rows, minlength=size) + ridge
    total = np.bincount(rows, values, minlength=size)
    return np.asarray(np.divide(total, count, out=np.zeros(size), where=count > 0))
