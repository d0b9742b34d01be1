"""The ranking head: which items a user chooses next, from what that user has chosen.

Invariant: a score is a linear function of the user's weighted events, so that its explanation adds up, and
needs nothing of the user but the history. What the values of the ratings are plays no part.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from factors.inference.histories import Compressed, compress
from factors.model.types import Float32s, Float64s, Histories, Int32s, Int64s
from factors.ranking.half_steps import Events, normal_equations, solve_rows
from factors.ranking.neighbours import Neighbours
from factors.ranking.parameters import RankingParameters


@dataclass(frozen=True, slots=True)
class RankingHead:
    """A fitted head of rank r: `parameters`, the factors `items` (n_items, r), and the sparse term."""

    parameters: RankingParameters
    items: Float32s
    neighbours: Neighbours

    def fold_in_users(self, histories: Histories, *, recency: bool = True, threads: int = 1) -> Float64s:
        """Return the vectors (b, r) of users with these histories; that of an empty one is the prior's.

        Repeated, taken back and unknown items may stand in a history, and long ones are thinned. Without
        `recency` all events count the same: so does the fit, and so do the users that items are folded in
        with.
        """
        return self._solved(self._events(histories), recency=recency, threads=threads)

    def fold_in_items(self, users: Float32s, histories: Histories) -> Float32s:
        """Return the factors (m, r) of items that were chosen by these of `users` (u, r); their values in
        `histories` may be any number.

        `users`: folded in without recency.
        """
        data = _known(compress(histories, len(users)))
        prior, events = self.parameters.prior("item", data.counts), Events(data.indptr, data.other)
        return np.asarray(solve_rows(events, users.astype(np.float64), prior), np.float32)

    def scores(self, history: Histories, rows: Int64s | None = None) -> Float64s:
        """Return the relevance of all items (n_items,), or of `rows` (m,), to a user with this one history.

        Factors are multiplied in float32 for all items, in float64 for `rows`.
        """
        data = self._events(history)
        user, weight = self._solved(data)[0], self.parameters.event_weights(data)
        if rows is None:
            scores: Float64s = np.asarray(self.items @ user.astype(np.float32), np.float64)
            self.neighbours.add(scores, data.other, weight)
            return scores
        # A search of the few rows in what the history reaches, not a pass over all items.
        sparse = self.neighbours.added(data.other, weight, rows)
        return np.asarray(self.items[rows].astype(np.float64) @ user + sparse)

    def relevance(self, histories: Histories, *, threads: int = 1) -> Float32s:
        """Return the relevance of all items to each of these users (b, n_items), in float32."""
        data, n_items = self._events(histories), len(self.items)
        users = self._solved(data, threads=threads).astype(np.float32)
        weight = self.parameters.event_weights(data).astype(np.float32)
        chosen = sp.csr_array((weight, data.other, data.indptr), shape=(data.rows, n_items))
        return np.asarray(users @ self.items.T + (chosen @ self.neighbours.matrix()).toarray(), np.float32)

    def explain(self, history: Histories, item_row: int) -> tuple[float, Int32s, Float64s]:
        """Return why `scores(history, [item_row])` is what it is: a base, the items of the history (n,), and
        what each adds (n,).

        The base is what the prior of a user with so many events gives; base and contributions add up to the
        score.
        """
        data = self._events(history)
        weight = self.parameters.event_weights(data)
        chosen, precision = self._precision(data, weight)
        direction = np.linalg.solve(precision, self.items[item_row].astype(np.float64))
        ridge = float(self.parameters.ridges("user", data.counts)[0])
        base = ridge * float(self.parameters.user_mean @ direction)
        sparse = self.neighbours.weights_of(data.other, item_row)
        return base, data.other.astype(np.int32), np.asarray(weight * (chosen @ direction + sparse))

    def reached(self, history: Histories) -> tuple[Int64s, Float64s]:
        """Return the rows (m,), ascending, that the sparse term of this one history adds to, and what it adds
        to the relevance of each (m,).
        """
        data = self._events(history)
        entries, lengths = self.neighbours.entries(data.other)
        added = np.repeat(self.parameters.event_weights(data), lengths) * self.neighbours.weight[entries]
        # Several events reach the same item: one sum for each.
        rows, place = np.unique(self.neighbours.item_row[entries], return_inverse=True)
        return rows.astype(np.int64), np.bincount(place, added, minlength=len(rows)).astype(np.float64)

    def covariance(self, history: Histories) -> Float64s:
        """Return the covariance (r, r) of the user's vector: the inverse of its precision times the noise."""
        data = self._events(history)
        _, precision = self._precision(data, self.parameters.event_weights(data))
        return np.asarray(self.parameters.noise * np.linalg.inv(precision))

    def _precision(self, data: Compressed, weight: Float64s) -> tuple[Float64s, Float64s]:
        """Return the factors (n, r) of what one user chose, and the precision (r, r) of the user's vector."""
        chosen = self.items[data.other].astype(np.float64)
        events = Events(data.indptr, np.arange(len(chosen)), weight)
        precision, _ = normal_equations(
            events, chosen, self.parameters.prior("user", data.counts), np.zeros(1, dtype=np.int64)
        )
        return chosen, np.asarray(precision[0], dtype=np.float64)

    def _events(self, histories: Histories) -> Compressed:
        return _known(compress(histories, len(self.items), whole=False))

    def _solved(self, data: Compressed, *, recency: bool = True, threads: int = 1) -> Float64s:
        # Only rows that are chosen become float64.
        distinct, other = np.unique(data.other, return_inverse=True)
        table = (
            self.items[distinct].astype(np.float64) if len(distinct) else np.zeros((1, self.parameters.rank))
        )
        weight = self.parameters.event_weights(data) if recency else None
        events = Events(data.indptr, other.astype(np.int64), weight)
        return np.asarray(
            solve_rows(events, table, self.parameters.prior("user", data.counts), threads), np.float64
        )


def _known(data: Compressed) -> Compressed:
    """Return the entries of known other rows, each with the `source` that it had."""
    known = data.other >= 0
    if known.all():
        return data
    indptr = np.concatenate([[0], np.cumsum(known)])[data.indptr]
    return Compressed(indptr, data.other[known], data.value[known], data.time[known], data.source[known])
