"""Scores of (user, item) pairs with their uncertainty. Invariant: one pair gets one number, alone or among
thousands.

The score `s = mu + b_u + b_i + p_u . q_i` has, with both posteriors independent, variance

    f_i^T S_u f_i + f_u^T S_i f_u + trace(S_u[latent] S_i[latent]),    f = [latent, 1]

to which the periods and the noise add theirs. All parts are sums over packed vectors. Pairs are the columns
of what is computed here: each step then works on whole rows of memory, and adds up each pair in the same
order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from factors.drift import means_then
from factors.links import rating_distribution, rating_moments
from factors.others import match_periods, prior_rows
from factors.packing import COUNT, MEAN, RATING_MEAN, FloatTable, triangle
from factors.parameters import from_model
from factors.stretching import stretch_of
from factors.tables import Float64s, ItemStatistics, Model, Scores

Rows = npt.NDArray[np.integer]
Basis = npt.NDArray[np.uint8]

# Numbers of one packed intermediate result: some of them fit the second-level cache of a core together.
_BLOCK_NUMBERS = 1 << 15
_FEWEST = 64


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
        # Where the factors of the packed products stand in a row.
        self._pair_rows, self._pair_columns = MEAN + rows, MEAN + columns
        self._multiplicity: dict[np.dtype[Any], npt.NDArray[np.floating[Any]]] = {
            np.dtype(np.float32): multiplicity.astype(np.float32)[:, None],
            np.dtype(np.float64): multiplicity[:, None],
        }
        self._latent_packed = layout.rank * (layout.rank + 1) // 2
        self._block = max(_FEWEST, _BLOCK_NUMBERS // layout.packed)
        self._sides = (parameters.users, parameters.items)
        self._timed = tuple(side.layout.slots > 0 and side.period_variance > 0 for side in self._sides)
        self._prior_period_variance = parameters.users.period_variance + parameters.items.period_variance
        self.prior_item, self.prior_user = (
            prior_rows(side, 1)[0].astype(items.dtype) for side in self._sides[::-1]
        )
        self._priors = (self.prior_user, self.prior_item)
        self._stretched = bool(parameters.stretch.any())

    def score(
        self, users: FloatTable, user_index: Rows | None, item_rows: Rows, time: Float64s | None = None
    ) -> Scores:
        """Scores of the pairs (`users[user_index[j]]`, `items[item_rows[j]]`), all arrays (m,).

        `users` (u, user_width); without `user_index` each pair has its row there, which is cheaper. `time`
        (m,): seconds since 1970 or NaN, when the rating would be given; a period that the rows know then
        counts.
        """
        mean, variance, counts = self._latent(users, user_index, item_rows, time)
        rating, std = rating_moments(self._parameters, mean, variance)
        if self._stretched:
            std *= stretch_of(self._parameters, counts)
        return Scores(rating, std, _basis(counts))

    def rating(self, users: FloatTable, user_index: Rows, item_rows: Rows) -> Float64s:
        """The ratings of `score` alone (m,); with the Gaussian link covariances are not read for them."""
        if self._parameters.link != "gaussian" or len(user_index) == 1:
            return self.score(users, user_index, item_rows).rating
        stop = MEAN + self._dim
        own = self._columns(0, users, user_index, stop)[MEAN:]
        other = self._columns(1, self.items, item_rows, stop)[MEAN:]
        mean = self._means(own.astype(np.float64), other.astype(np.float64))
        return rating_moments(self._parameters, mean, np.zeros(len(mean)))[0]

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
    ) -> tuple[Float64s, Float64s, Basis]:
        """Mean and variance (without noise) of the scores before the link, and the basis; all (m,)."""
        mean, variance, counts = self._latent(users, user_index, item_rows, time)
        return mean, variance, _basis(counts)

    def _latent(
        self, users: FloatTable, user_index: Rows | None, item_rows: Rows, time: Float64s | None
    ) -> tuple[Float64s, Float64s, FloatTable]:
        """The same with how many ratings stand behind user and item, (2, m), in place of the basis."""
        m = len(item_rows)
        if m == 1:
            # Numpy adds up a single column in another order than it adds up columns.
            twice = np.zeros(2, dtype=np.int64) if user_index is None else np.repeat(user_index, 2)
            mean, variance, counts = self._block_latent(users, twice, np.repeat(item_rows, 2))
            mean, variance, counts = mean[:1], variance[:1], counts[:, :1]
        elif m <= self._block + 1:
            mean, variance, counts = self._block_latent(users, user_index, item_rows)
        else:
            mean, variance, counts = np.empty(m), np.empty(m), np.empty((2, m), dtype=np.float32)
            start = 0
            while start < m:
                # No block of one is left over.
                stop = m if m - start <= self._block + 1 else start + self._block
                part = slice(start, stop)
                table, index = (users[part], None) if user_index is None else (users, user_index[part])
                mean[part], variance[part], counts[:, part] = self._block_latent(
                    table, index, item_rows[part]
                )
                start = stop
        own = (users, np.arange(m) if user_index is None else user_index)
        if self._prior_period_variance:
            self._add_periods(mean, variance, own, item_rows, time)
        if time is not None and any(side.drift is not None for side in self._sides):
            mean += self._way_back(own, item_rows, time)
        return mean, variance, counts

    def _block_latent(
        self, users: FloatTable, user_index: Rows | None, item_rows: Rows
    ) -> tuple[Float64s, Float64s, FloatTable]:
        # Each call into numpy costs about as much as it takes for a hundred pairs: both sides go together.
        core, last = self._core, MEAN + self._dim - 1
        both = np.empty((2, core, len(item_rows)), dtype=np.promote_types(users.dtype, self.items.dtype))
        both[0] = (users if user_index is None else self._gather(0, users, user_index))[:, :core].T
        both[1] = self._gather(1, self.items, item_rows)[:, :core].T
        counts = both[:, COUNT]
        mean = self._means(*both[:, MEAN : last + 1].astype(np.float64))
        both[:, last] = 1.0
        spread = both[:, last + 1 :]
        products = both.take(self._pair_rows, axis=1)
        products *= both.take(self._pair_columns, axis=1)
        products[1, : self._latent_packed] += spread[1, : self._latent_packed]
        products *= spread[::-1]
        total = products[1]
        total += products[0]
        total *= self._multiplicity[total.dtype]
        # Of a posterior without spread rounding could leave less than nothing.
        variance = np.maximum(np.add.reduce(total, axis=0), 0.0).astype(np.float64)
        return mean, variance, counts

    def _means(self, user_mean: Float64s, item_mean: Float64s) -> Float64s:
        """Means (m,) of the scores of columns `[latent, bias]` (dim, m). Writes into `user_mean`."""
        biases = user_mean[-1] + item_mean[-1]
        user_mean *= item_mean
        user_mean[-1] = biases
        mean = np.asarray(np.add.reduce(user_mean, axis=0))
        mean += self._parameters.mean
        return mean

    def _columns(self, side: int, table: FloatTable, rows: Rows, width: int) -> FloatTable:
        """The first `width` numbers of `rows` (m,) of a table, as columns (width, m), to be written to."""
        return np.ascontiguousarray(self._gather(side, table[:, :width], rows).T)

    def _gather(self, side: int, table: FloatTable, rows: Rows) -> FloatTable:
        # A row below 0 is a very large one without its sign: one pass for both ends.
        if len(rows) and int(rows.astype(np.int64, copy=False).view(np.uint64).max()) >= len(table):
            known = np.flatnonzero((rows >= 0) & (rows < len(table)))
            gathered = np.repeat(self._priors[side][None, : table.shape[1]], len(rows), axis=0)
            gathered[known] = table[rows[known]]
            return gathered
        # It would copy a table that does not lie in one piece.
        return table.take(rows, axis=0) if table.flags.c_contiguous else table[rows]

    def _add_periods(
        self,
        mean: Float64s,
        variance: Float64s,
        own: tuple[FloatTable, Rows],
        item_rows: Rows,
        time: Float64s | None,
    ) -> None:
        variance += self._prior_period_variance
        if time is None:
            return
        for number, (table, rows) in enumerate((own, (self.items, item_rows))):
            side = self._sides[number]
            if self._timed[number]:
                known = self._gather(number, table, rows)
                effect, spread = match_periods(side, known, np.arange(len(rows)), time)
                mean += effect
                variance += spread - side.period_variance

    def _way_back(self, own: tuple[FloatTable, Rows], item_rows: Rows, time: Float64s) -> Float64s:
        """What to add to the scores (m,) where a row that moves was elsewhere at `time` (m,)."""
        now, then = [], []
        for number, (table, rows) in enumerate((own, (self.items, item_rows))):
            side, known = self._sides[number], self._gather(number, table, rows)
            now.append(known[:, side.layout.mean].astype(np.float64))
            then.append(means_then(side, known, time))
        scores = [
            np.einsum("md,md->m", user[:, :-1], item[:, :-1]) + user[:, -1] + item[:, -1]
            for user, item in (now, then)
        ]
        return np.asarray(scores[1] - scores[0])


def _basis(counts: FloatTable) -> Basis:
    known = (counts > 0).view(np.uint8)
    basis: Basis = known[0]
    basis += basis
    basis += known[1]
    return basis


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
