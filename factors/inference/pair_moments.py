"""Mean and variance of the scores of (user, item) pairs, before the link.

Invariant: one pair gets one number, alone or among thousands.

The score `s = mu + b_u + b_i + p_u . q_i` has, with both posteriors independent, variance

    f_i^T S_u f_i + f_u^T S_i f_u + trace(S_u[latent] S_i[latent]),    f = [latent, 1]

to which the sessions and the noise add theirs. All parts are sums over packed vectors; the scale of an item's
covariance (`quantized_rows`) comes last. Pairs are the columns of what is computed here: each step then works
on whole rows of memory, and adds up each pair in the same order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from factors.inference.context import shift_rows
from factors.inference.motion import means_at
from factors.inference.side_moments import match_sessions, prior_rows
from factors.model.layout import COUNT, MEAN, FloatTable, triangle
from factors.model.parameters import Parameters
from factors.model.quantized_rows import item_codec
from factors.model.types import Float32s, Float64s

Rows = npt.NDArray[np.integer]

# Pairs in a block, however wide: with fewer the calls into numpy cost more than the work.
_FEWEST = 64


class PairMoments:
    """Moments of scores against one item table. Cheap to build; reads the stored rows `items` (n_items,
    item_width) at each call, copies nothing.

    Safe to share between threads. A user or item row that is negative or beyond its table counts as unknown.
    """

    def __init__(self, parameters: Parameters, items: Float32s) -> None:
        self.items = items
        self._mean = parameters.mean
        layout = parameters.users.layout
        self._dim = layout.dim
        self._core = MEAN + layout.dim + layout.packed
        self._codec = item_codec(parameters)
        rows, columns, multiplicity = triangle(layout.dim)
        # Where the factors of the packed products stand in a row.
        self._pair_rows, self._pair_columns = MEAN + rows, MEAN + columns
        # A triangle of numbers is a rectangle of so many.
        factors = (layout.dim, (layout.dim + 1) // 2)
        if layout.dim % 2 == 0:
            factors = (layout.dim + 1, layout.dim // 2)
        self._rectangle = (2, *factors, -1)
        # What a product of an item's code with something of the user counts, and one of a user's covariance.
        weights = np.stack([multiplicity * self._codec.units, multiplicity]).reshape(2, *factors)
        self._weights: dict[np.dtype[Any], npt.NDArray[np.floating[Any]]] = {
            np.dtype(np.float32): weights.astype(np.float32),
            np.dtype(np.float64): weights,
        }
        self._latent_packed = layout.rank * (layout.rank + 1) // 2
        # Some packed intermediate results of this size fit the second-level cache of a core together.
        self._block = max(_FEWEST, (1 << 15) // layout.packed)
        self._sides = (parameters.users, parameters.items)
        self._has_sessions = any(side.has_sessions for side in self._sides)
        self._moves = parameters.moves
        self._context = parameters.context
        self._prior_session_variance = parameters.users.effect_variance + parameters.items.effect_variance
        prior_user: Float32s = prior_rows(parameters.users, 1)[0].astype(np.float32)
        self._priors = (prior_user, self._codec.encode(prior_rows(parameters.items, 1))[0])

    def means(self, users: FloatTable, user_index: Rows, item_rows: Rows) -> Float64s:
        """Return the means of `moments` alone (m,), without a look at covariances or times."""
        stop = MEAN + self._dim
        sides = (users, user_index), (self.items, item_rows)
        means = np.empty((2, self._dim, len(item_rows)))
        for side, (table, rows) in enumerate(sides):
            means[side] = self._gather(side, table[:, :stop], rows)[:, MEAN:].T
        return self._means(means)

    def moments(
        self,
        users: FloatTable,
        user_index: Rows | None,
        item_rows: Rows,
        time: Float64s | None,
        context: Float32s | None = None,
    ) -> tuple[Float64s, Float64s, FloatTable]:
        """Return mean and variance (without noise) of the scores of the pairs (m,), and how many ratings
        stand behind user and item (2, m).

        Pairs are (`users[user_index[j]]`, `items[item_rows[j]]`); without `user_index` each pair has its row
        in `users`, which is cheaper. `time` (m,): seconds since 1970 or NaN; without it sessions and drift do
        not count. `context` (m, fields): as given with each question.
        """
        m = len(item_rows)
        if context is not None and self._context is not None:
            known = users if user_index is None else self._gather(0, users, user_index)
            users, user_index = shift_rows(self._sides[0].layout, known, self._context, context), None
        if m == 1:
            # Numpy adds up a single column in another order than it adds up columns.
            table = users.repeat(2, axis=0) if user_index is None else users
            index = None if user_index is None else user_index.repeat(2)
            mean, variance, counts = self._block_latent(table, index, item_rows.repeat(2))
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
        if self._prior_session_variance:
            variance += self._prior_session_variance
        if time is not None:
            own = (users, np.arange(m) if user_index is None else user_index)
            if self._has_sessions:
                self._add_sessions(mean, variance, own, item_rows, time)
            if self._moves:
                mean += self._change_at(own, item_rows, time)
        return mean, variance, counts

    def _block_latent(
        self, users: FloatTable, user_index: Rows | None, item_rows: Rows
    ) -> tuple[Float64s, Float64s, FloatTable]:
        # Each call into numpy costs about as much as it takes for a hundred pairs: both sides go together.
        core, last, latent = self._core, MEAN + self._dim - 1, self._latent_packed
        both = np.empty((2, core, len(item_rows)), dtype=users.dtype)
        both[0] = (users if user_index is None else self._gather(0, users, user_index))[:, :core].T
        words = self._gather(1, self.items, item_rows)
        item = both[1]
        item[: last + 1] = words[:, : last + 1].T
        item[last + 1 :] = self._codec.codes_of(words).T
        mean = self._means(both[:, MEAN : last + 1].astype(np.float64))
        both[:, last] = 1.0
        covariances = both[:, last + 1 :]
        products = both.take(self._pair_rows, axis=1)
        products *= both.take(self._pair_columns, axis=1)
        own = products[0, :latent]
        own += covariances[0, :latent]
        # In two steps: each adds up fewer numbers than one would, and rounds less.
        sums = np.einsum(
            "zfsm,zfsm,zfs->zsm",
            products.reshape(self._rectangle),
            covariances[::-1].reshape(self._rectangle),
            self._weights[products.dtype],
        )
        of_item, variance = np.add.reduce(sums, axis=1)
        of_item *= words[:, last + 1]
        variance += of_item
        # Of a posterior of variance 0 rounding could leave less than 0.
        return mean, np.maximum(variance, 0.0).astype(np.float64), both[:, COUNT]

    def _means(self, means: Float64s) -> Float64s:
        """Return means (m,) of the scores of columns `[latent, bias]` of users and items (2, dim, m). Writes
        into them.
        """
        user, item = means
        biases = user[-1]
        biases += item[-1]
        item[-1] = 1.0
        user *= item
        mean: Float64s = np.add.reduce(user, axis=0, initial=self._mean)
        return mean

    def _gather(self, side: int, table: FloatTable, rows: Rows) -> FloatTable:
        if not _all_within(rows, len(table)):
            known = np.flatnonzero((rows >= 0) & (rows < len(table)))
            gathered = np.repeat(self._priors[side][None, : table.shape[1]], len(rows), axis=0)
            gathered[known] = table[rows[known]]
            return gathered
        # It would copy a table that does not lie in one piece.
        return table.take(rows, axis=0) if table.flags.c_contiguous else table[rows]

    def _gathered(self, side: int, table: FloatTable, rows: Rows) -> FloatTable:
        """Return rows (m,) of a table, all but their covariances."""
        found = self._gather(side, table, rows)
        return self._codec.decode(found.astype(np.float32, copy=False), covariance=False) if side else found

    def _add_sessions(
        self,
        mean: Float64s,
        variance: Float64s,
        own: tuple[FloatTable, Rows],
        item_rows: Rows,
        time: Float64s,
    ) -> None:
        for number, (table, rows) in enumerate((own, (self.items, item_rows))):
            side = self._sides[number]
            if side.has_sessions:
                known = self._gathered(number, table, rows)
                effect, effect_variance = match_sessions(side, known, np.arange(len(rows)), time)
                mean += effect
                variance += effect_variance - side.effect_variance

    def _change_at(self, own: tuple[FloatTable, Rows], item_rows: Rows, time: Float64s) -> Float64s:
        """Return the scores (m,) of where rows stood at `time` (m,) less those of where they stand now."""
        now, then = [], []
        for number, (table, rows) in enumerate((own, (self.items, item_rows))):
            side, known = self._sides[number], self._gathered(number, table, rows)
            now.append(known[:, side.layout.mean].astype(np.float64))
            then.append(means_at(side, known, time))
        scores = [
            np.einsum("md,md->m", user[:, :-1], item[:, :-1]) + user[:, -1] + item[:, -1]
            for user, item in (now, then)
        ]
        return np.asarray(scores[1] - scores[0])


def _all_within(rows: Rows, size: int) -> bool:
    """Return whether each of `rows` (m,) is one of a table of `size`."""
    if len(rows) <= _FEWEST:
        # Takes half as long as one call into numpy.
        few = rows.tolist()
        return not few or (min(few) >= 0 and max(few) < size)
    # A row below 0 is a very large one without its sign: one pass for both ends.
    return int(rows.astype(np.int64, copy=False).view(np.uint64).max()) < size
