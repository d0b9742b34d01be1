"""The ranking head: which items a user chooses next, from what that user has chosen.

Invariant: a score is a linear function of the user's weighted events, so that its explanation adds up, and
needs nothing of the user but the history. What the values of the ratings are plays no part; events of other
types count as `factors/ranking/type_weights.py` says.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from factors.inference.histories import Compressed, compress
from factors.model.types import Bools, Float32s, Float64s, Histories, Int32s, Int64s
from factors.ranking.half_steps import Events, Solve, normal_equations, row_blocks, solve_round, solve_rows
from factors.ranking.neighbours import Neighbours
from factors.ranking.parameters import Counts, RankingParameters
from factors.ranking.type_weights import TypeTable, compress_types, event_counts, kept

# Keeps users where the prior has them, whatever they have chosen.
_RIGID = 1e9
# Of so many events at rank 64 the rows are 2 MB, as much as a core's cache holds.
_FEW_EVENTS = 4096


def popular_factors(counts: Float64s, n_users: int) -> Float32s:
    """Return the factors (m, 1), in a head of popularity, of items that `counts` (m,) of `n_users` chose."""
    return np.asarray(counts[:, None] / max(n_users, 1), np.float32)


@dataclass(frozen=True, slots=True)
class RankingHead:
    """A fitted head of rank r: `parameters`, the factors `items` (n_items, r), and the sparse term."""

    parameters: RankingParameters
    items: Float32s
    neighbours: Neighbours

    @classmethod
    def of_popularity(cls, counts: Float64s, n_users: int) -> "RankingHead":
        """Return a head of rank 1 that knows no taste: an item is as relevant as its share of `n_users`.
        `counts` (n_items,): how many have chosen each item. Ratings have no part: beside popularity they
        find more of what is held out on some sets and less on others.
        """
        n_items, no_pairs = len(counts), np.zeros((1, 1))
        parameters = RankingParameters(
            background=1.0,
            user_power=0.0,
            item_power=0.0,
            user_unit=1.0,
            item_unit=1.0,
            n_users=n_users,
            n_items=n_items,
            # No event moves a user from the mean.
            ridge=_RIGID,
            recency_span=1.0,
            recency_boost=0.0,
            gamma=0.0,
            negatives=n_users * n_items / max(float(counts.sum()), 1.0),
            neighbours=0.0,
            neighbour_ridge=0.0,
            sparse_weight=0.0,
            decided=0.0,
            noise=0.0,
            user_mean=np.ones(1),
            user_gram=no_pairs,
            item_gram=no_pairs,
        )
        nothing = Neighbours(np.zeros(n_items + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
        return cls(parameters, popular_factors(counts, n_users), nothing)

    def with_recency(self, boost: float | None) -> "RankingHead":
        """Return the head with another `recency_boost` for the users that it folds in; None: its own."""
        if boost is None or boost == self.parameters.recency_boost:
            return self
        return replace(self, parameters=replace(self.parameters, recency_boost=boost))

    def fold_in_users(self, histories: Histories, *, recency: bool = True, threads: int = 1) -> Float64s:
        """Return the vectors (b, r) of users with these histories; that of an empty one is the prior's.

        Repeated, taken back and unknown items may stand in a history, and long ones are thinned. Without
        `recency` all events count the same: so does the fit, and so do the users that items are folded in
        with.
        """
        solve = partial(solve_rows, threads=threads)
        return self._solved(self._events(histories), recency=recency, solve=solve)

    def fold_in_events(
        self, histories: Histories, solve: Solve
    ) -> tuple[Float64s, list[tuple[Int64s, Float64s]]]:
        """Return the vectors (b, r) of users with these histories, and of each the items (n,) that it chose
        and how much each says for others (n,). `solve`: as `solve_rows`.
        """
        data = self._events(histories)
        said, borders = self._said(data), pairwise(data.compressed.indptr.tolist())
        other = data.compressed.other
        return self._solved(data, solve=solve), [(other[a:b], said[a:b]) for a, b in borders]

    def fold_in_spread(self, histories: Histories, spread: Float64s) -> tuple[Float64s, Float64s]:
        """Return the vectors (b, r) of users with these histories, without recency, and how uncertain they
        are where items are spread so: the trace of `spread` (r, r) times each covariance (b,).
        """
        data = self._events(histories)
        events, table = self._chosen(data, recency=False)
        prior = self.parameters.prior("user", data.counts)
        vectors, variances = np.empty((len(events.counts), table.shape[1])), np.empty(len(events.counts))
        for rows in row_blocks(events.counts, table.shape[1]):
            precision, linear = normal_equations(events, table, prior, rows)
            inverse = np.linalg.inv(precision)
            vectors[rows] = (inverse @ linear[:, :, None])[:, :, 0]
            variances[rows] = self.parameters.noise * np.einsum("uij,ij->u", inverse, spread)
        return vectors, variances

    def fold_in_items(
        self, users: Float32s, histories: Histories, expected: Float32s | None = None
    ) -> tuple[Float32s, Bools]:
        """Return the factors (m, r) of items that were chosen by these of `users` (u, r), and whether they
        were chosen (m,); their values in `histories` may be any number.

        `users`: folded in without recency. `expected` (m, r): what attributes say of the items, 0 where they
        say nothing: what was not chosen has these factors.
        """
        data = self._events(histories, len(users), whole=True)
        compressed = data.compressed
        events = Events(compressed.indptr, compressed.other, data.weight, data.target)
        counts, table = np.asarray(data.counts, np.float64), users.astype(np.float64)
        prior = self.parameters.prior("item", data.counts)
        if expected is None:
            return np.asarray(solve_rows(events, table, prior), np.float32), counts > 0
        start = self.parameters.unknown(counts)[:, None] * expected
        found = np.asarray(solve_round(start, events, table, prior), np.float32)
        return np.where((counts > 0)[:, None], found, expected), counts > 0

    def scores(self, history: Histories, rows: Int64s | None = None) -> Float64s:
        """Return the relevance of all items (n_items,), or of `rows` (m,), to a user with this one history.

        Factors are multiplied in float32 for all items, in float64 for `rows`.
        """
        data = self._events(history)
        user, weight, other = self._solved(data)[0], self._said(data), data.compressed.other
        if rows is None:
            scores: Float64s = np.asarray(self.items @ user.astype(np.float32), np.float64)
            self.neighbours.add(scores, other, weight)
            return scores
        # A search of the few rows in what the history reaches, not a pass over all items.
        sparse = self.neighbours.added(other, weight, rows)
        return np.asarray(self.items[rows].astype(np.float64) @ user + sparse)

    def relevance(self, histories: Histories, *, threads: int = 1) -> Float32s:
        """Return the relevance of all items to each of these users (b, n_items), in float32."""
        data, n_items = self._events(histories), len(self.items)
        rows, said = data.compressed, self._said(data).astype(np.float32)
        events = Events(rows.indptr, rows.other, self._weights(data), data.target)
        # As the fit solves them, in half the time of float64: lists are compared, no answer is given.
        users = solve_rows(events, self.items, self.parameters.prior("user", data.counts), threads)
        chosen = sp.csr_array((said, rows.other, rows.indptr), shape=(rows.rows, n_items))
        sparse = np.asarray((chosen @ self.neighbours.matrix()).toarray(), np.float32)
        return np.asarray(users @ self.items.T, np.float32) + sparse

    def explain(self, history: Histories, item_row: int) -> tuple[float, Int32s, Float64s]:
        """Return why `scores(history, [item_row])` is what it is: a base, the items of the history (n,), and
        what each adds (n,).

        The base is what the prior of a user with so many events gives; base and contributions add up to the
        score.
        """
        base, rated, parts = self.contributions(history, np.array([item_row]))
        return float(base[0]), rated, parts[:, 0]

    def contributions(self, history: Histories, item_rows: Int64s) -> tuple[Float64s, Int32s, Float64s]:
        """Return the same of several items (m,): bases (m,), the items of the history (n,), and what each
        adds (n, m).
        """
        data = self._events(history)
        chosen, precision = self._precision(data)
        directions = np.linalg.solve(precision, self.items[item_rows].astype(np.float64).T)
        ridge = float(self.parameters.ridges("user", data.counts)[0])
        base = ridge * np.asarray(self.parameters.user_mean @ directions, np.float64)
        other = data.compressed.other
        parts = chosen @ directions + self.neighbours.weights_between(other, item_rows)
        return base, other.astype(np.int32), np.asarray(self._said(data)[:, None] * parts)

    def covariance(self, history: Histories) -> Float64s:
        """Return the covariance (r, r) of the user's vector: the inverse of its precision times the noise."""
        data = self._events(history)
        _, precision = self._precision(data)
        return np.asarray(self.parameters.noise * np.linalg.inv(precision))

    def _precision(self, data: "_Weighted") -> tuple[Float64s, Float64s]:
        """Return the factors (n, r) of what one user chose, and the precision (r, r) of the user's vector."""
        rows = data.compressed
        chosen = self.items[rows.other].astype(np.float64)
        events = Events(rows.indptr, np.arange(len(chosen)), self._weights(data), data.target)
        precision, _ = normal_equations(
            events, chosen, self.parameters.prior("user", data.counts), np.zeros(1, dtype=np.int64)
        )
        return chosen, np.asarray(precision[0], dtype=np.float64)

    def _events(
        self, histories: Histories, n_other: int | None = None, *, whole: bool = False
    ) -> "_Weighted":
        n_other = len(self.items) if n_other is None else n_other
        if histories.type_code is None:
            rows = compress(histories, n_other, whole=whole)
            return _Weighted(kept(rows, rows.other >= 0))
        table = TypeTable.of(self.parameters.types)
        rows = compress_types(histories, n_other, table)
        rows = rows if whole else rows.thinned()
        rows = kept(rows, rows.other >= 0)
        return _Weighted(rows, *table.weights(histories.type_code, rows))

    def _weights(self, data: "_Weighted") -> Float64s:
        """Return how much each event (n,) counts, by type and recency."""
        recency = self.parameters.event_weights(data.compressed)
        return recency if data.weight is None else recency * data.weight

    def _said(self, data: "_Weighted") -> Float64s:
        """Return how much each event (n,) says for other items: nothing where it was not wanted."""
        weight = self._weights(data)
        return weight if data.target is None else weight * data.target

    def _solved(
        self,
        data: "_Weighted",
        *,
        recency: bool = True,
        solve: Solve = solve_rows,
    ) -> Float64s:
        events, table = self._chosen(data, recency=recency)
        prior = self.parameters.prior("user", data.counts)
        return np.asarray(solve(events, table, prior), np.float64)

    def _chosen(self, data: "_Weighted", *, recency: bool) -> tuple[Events, Float64s]:
        """Return the events of rows, and the factors (m, r) that they are of."""
        # Only rows that are chosen become float64; of a few events finding those that repeat takes longer.
        rows = data.compressed
        distinct, other = rows.other, np.arange(len(rows.other))
        if len(distinct) > _FEW_EVENTS:
            distinct, other = np.unique(distinct, return_inverse=True)
        table = (
            self.items[distinct].astype(np.float64) if len(distinct) else np.zeros((1, self.parameters.rank))
        )
        weight = self._weights(data) if recency else data.weight
        return Events(rows.indptr, other.astype(np.int64), weight, data.target), table


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Events of rows, one for each pair; `weight` and `target` float64 (n,) by their types, None where all
    are ratings.
    """

    compressed: Compressed
    weight: Float64s | None = None
    target: Float64s | None = None

    @property
    def counts(self) -> Counts:
        """Events of each row (b,), or the weight of those that were wanted."""
        return event_counts(self.compressed, self.weight, self.target)
