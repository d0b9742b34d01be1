"""Scores of (user, item) pairs with their uncertainty. Invariant: one pair gets one number, alone or among
thousands.

The score `s = mu + b_u + b_i + p_u . q_i` has, with both posteriors independent, variance

    f_i^T S_u f_i + f_u^T S_i f_u + trace(S_u[latent] S_i[latent]),    f = [latent, 1]

to which the periods and the noise add theirs. All parts are products of packed vectors, so that a batch of
any size is the same few numpy calls.
"""

import numpy as np
import numpy.typing as npt

from factors.links import rating_distribution, rating_moments
from factors.others import match_periods, prior_rows
from factors.packing import COUNT, MEAN, RATING_MEAN, FloatTable, triangle
from factors.parameters import from_model
from factors.tables import Float64s, ItemStatistics, Model, Scores

Rows = npt.NDArray[np.integer]


class Scorer:
    """Scores against one item table. Cheap to build; reads `items` (n_items, item_width) at each call, copies
    nothing.

    Safe to share between threads. A user or item row that is negative or beyond its table counts as unknown.
    """

    def __init__(self, model: Model, items: FloatTable) -> None:
        self.model = model
        self.items = items
        self._parameters = parameters = from_model(model)
        layout = parameters.users.layout
        self._dim = layout.dim
        self._core = MEAN + layout.dim + layout.packed
        rows, columns, multiplicity = triangle(layout.dim)
        self._pair_rows, self._pair_columns = rows, columns
        self._multiplicity = multiplicity
        latent_packed = layout.rank * (layout.rank + 1) // 2
        self._latent = np.zeros(layout.packed)
        self._latent[:latent_packed] = 1.0
        self._sides = (parameters.users, parameters.items)
        self._timed = tuple(side.layout.slots > 0 and side.period_variance > 0 for side in self._sides)
        self._prior_period_variance = parameters.users.period_variance + parameters.items.period_variance
        self.prior_item, self.prior_user = (
            prior_rows(side, 1)[0].astype(items.dtype) for side in self._sides[::-1]
        )
        self._priors = (self.prior_user, self.prior_item)

    def score(
        self, users: FloatTable, user_index: Rows, item_rows: Rows, time: Float64s | None = None
    ) -> Scores:
        """Scores of the pairs (`users[user_index[j]]`, `items[item_rows[j]]`), all arrays (m,).

        `users` (u, user_width). `time` (m,): seconds since 1970 or NaN, when the rating would be given; a
        period that the rows know then counts.
        """
        mean, variance, basis = self.latent(users, user_index, item_rows, time)
        rating, std = rating_moments(self._parameters, mean, variance)
        return Scores(rating, std, basis)

    def distribution(
        self, users: FloatTable, user_index: Rows, item_rows: Rows, time: Float64s | None = None
    ) -> Float64s:
        """Probability of each step of the scale, (m, levels). Raises `FactorsError` where the scale has no
        steps.
        """
        mean, variance, _ = self.latent(users, user_index, item_rows, time)
        return rating_distribution(self._parameters, mean, variance)

    def latent(
        self, users: FloatTable, user_index: Rows, item_rows: Rows, time: Float64s | None = None
    ) -> tuple[Float64s, Float64s, npt.NDArray[np.uint8]]:
        """Mean and variance (without noise) of the scores before the link, and the basis; all (m,)."""
        core, dim = self._core, self._dim
        own = self._gather(0, users, user_index)
        other = self._gather(1, self.items, item_rows)
        user_mean, item_mean = (
            own[:, MEAN : MEAN + dim].astype(np.float64),
            other[:, MEAN : MEAN + dim].astype(np.float64),
        )
        mean = user_mean[:, -1] + item_mean[:, -1]
        user_mean[:, -1] = item_mean[:, -1] = 1.0
        mean += (user_mean * item_mean).sum(axis=1)
        mean += self._parameters.mean - 1.0
        user_pairs = user_mean[:, self._pair_rows] * user_mean[:, self._pair_columns]
        item_pairs = item_mean[:, self._pair_rows] * item_mean[:, self._pair_columns]
        user_spread, item_spread = own[:, MEAN + dim : core], other[:, MEAN + dim : core]
        item_pairs += item_spread * self._latent
        variance = (user_spread * item_pairs + item_spread * user_pairs) @ self._multiplicity
        basis = (own[:, COUNT] > 0) * np.uint8(2) + (other[:, COUNT] > 0)
        if self._prior_period_variance:
            self._add_periods(mean, variance, (own, other), time)
        return mean, variance, basis

    def _gather(self, side: int, table: FloatTable, rows: Rows) -> FloatTable:
        if len(rows) and (rows.min() < 0 or rows.max() >= len(table)):
            known = np.flatnonzero((rows >= 0) & (rows < len(table)))
            gathered = np.repeat(self._priors[side][None], len(rows), axis=0)
            gathered[known] = table[rows[known]]
            return gathered
        return table[rows]

    def _add_periods(
        self,
        mean: Float64s,
        variance: Float64s,
        gathered: tuple[FloatTable, FloatTable],
        time: Float64s | None,
    ) -> None:
        variance += self._prior_period_variance
        if time is None:
            return
        for side, rows, timed in zip(self._sides, gathered, self._timed, strict=True):
            if timed:
                effect, spread = match_periods(side, rows, np.arange(len(rows)), time)
                mean += effect
                variance += spread - side.period_variance


def score(
    model: Model,
    users: FloatTable,
    items: FloatTable,
    user_index: Rows,
    item_rows: Rows,
    *,
    time: Float64s | None = None,
) -> Scores:
    """`Scorer(model, items).score(...)`, for one call."""
    return Scorer(model, items).score(users, user_index, item_rows, time)


def distribution(
    model: Model,
    users: FloatTable,
    items: FloatTable,
    user_index: Rows,
    item_rows: Rows,
    *,
    time: Float64s | None = None,
) -> Float64s:
    """`Scorer(model, items).distribution(...)`, for one call."""
    return Scorer(model, items).distribution(users, user_index, item_rows, time)


def item_statistics(model: Model, items: FloatTable) -> ItemStatistics:
    """Count and mean of the ratings behind each of `items` (n, item_width), as their rows say."""
    _ = model
    count = np.rint(items[:, COUNT]).astype(np.int64)
    mean = np.where(count > 0, items[:, RATING_MEAN], np.nan).astype(np.float64)
    return ItemStatistics(count, mean)
