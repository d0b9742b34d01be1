"""Top-N, similar and popular items, exact over the whole table. Invariant: an excluded item is never
returned.

`top` scores a block of users against all items in one product. The n-th largest of the maxima of item blocks
is a lower bound of the n-th best score, so that only blocks that reach it are looked at again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from factors.links import rating_moments
from factors.packing import COUNT, FloatTable, outer, triangle, unpack
from factors.parameters import from_model
from factors.scoring import Scorer
from factors.tables import Float32s, Float64s, Int64s, Model, Ranked

# Items in a block of maxima: near the square root of a large catalogue, and a whole number of vector
# registers.
_BLOCK = 512
# Scores in memory at once, 64 MB in float32.
_SCORES_AT_ONCE = 1 << 24
# One-sided 95 % of a normal.
_LOWER_BOUND = 1.6449


class Ranker:
    """Ranks the items of one table for users, for an item, for everybody.

    Keeps its own arrays by item row (2 d + d (d + 1) / 2 float32 numbers an item); `update` follows the
    table. Ranking is by the score before the link, of which the Gaussian expected rating is a monotone
    function; with the ordinal link the rows found are put in the order of their expected ratings.
    """

    def __init__(self, model: Model, items: FloatTable) -> None:
        self._parameters = from_model(model)
        self._model = model
        layout = self._parameters.items.layout
        users = self._parameters.users
        self._rank = layout.rank
        self._layout = layout
        self._user_layout = users.layout
        self._prior_user = np.append(users.mean[:-1], 1.0)
        self._user_second = users.covariance[:-1, :-1] + np.outer(users.mean[:-1], users.mean[:-1])
        self._items: Float32s = np.zeros((0, layout.width), dtype=np.float32)
        self._directions: Float32s = np.zeros((0, layout.rank), dtype=np.float32)
        self._lower: Float64s = np.zeros(0)
        self.update(np.arange(len(items)), items)

    @property
    def n_items(self) -> int:
        """Rows of the table that is ranked."""
        return len(self._items)

    def update(self, rows: npt.NDArray[np.integer[Any]], vectors: FloatTable) -> None:
        """Replace `rows` (m,) by `vectors` (m, item_width); a row beyond the table makes it grow (rows
        between: prior).
        """
        if len(rows) == 0:
            return
        grown = int(rows.max()) + 1 - len(self._items)
        if grown > 0:
            scorer = Scorer(self._model, self._items)
            self._items = np.concatenate([self._items, np.repeat(scorer.prior_item[None], grown, axis=0)])
            self._directions = np.concatenate(
                [self._directions, np.zeros((grown, self._rank), dtype=np.float32)]
            )
            self._lower = np.concatenate([self._lower, np.full(grown, -np.inf)])
        self._items[rows] = vectors
        layout = self._layout
        mean = vectors[:, layout.mean].astype(np.float64)
        covariance = vectors[:, layout.covariance].astype(np.float64)
        latent = mean[:, :-1]
        latent_packed = layout.rank * (layout.rank + 1) // 2
        metric_packed = _packed_metric(self._user_second)
        norm = (
            np.einsum("ij,jk,ik->i", latent, self._user_second, latent)
            + covariance[:, :latent_packed] @ metric_packed
        )
        root = np.linalg.cholesky(
            self._user_second + 1e-12 * np.trace(self._user_second) * np.eye(self._rank)
        )
        self._directions[rows] = (latent @ root) / np.sqrt(np.maximum(norm, 1e-30))[:, None]
        score = (
            self._parameters.mean
            + mean[:, -1]
            + self._parameters.users.mean[-1]
            + latent @ self._prior_user[:-1]
        )
        spread = (covariance * outer(self._prior_user[None])) @ triangle(layout.dim)[2]
        lower = score - _LOWER_BOUND * np.sqrt(np.maximum(spread, 0.0))
        self._lower[rows] = np.where(vectors[:, COUNT] > 0, lower, -np.inf)

    def top(
        self,
        users: FloatTable,
        n: int,
        exclude: Sequence[npt.NDArray[np.integer[Any]]],
        rng: np.random.Generator | None = None,
    ) -> list[Ranked]:
        """The best `n` items for each of `users` (b, user_width), without the item rows in `exclude` (b
        arrays).

        `scores` are expected ratings. With `rng` the ranking is by one draw from the posteriors of user and
        items (Thompson sampling), and `scores` are still expected ratings, so not in order. Fewer than `n`
        where the table ends. Excluded rows beyond the table are no error.
        """
        if n < 1 or self.n_items == 0:
            return [Ranked(np.zeros(0, dtype=np.int64), np.zeros(0)) for _ in range(len(users))]
        block = max(1, _SCORES_AT_ONCE // self.n_items)
        ranked: list[Ranked] = []
        for start in range(0, len(users), block):
            part = users[start : start + block]
            scores = self._draws(part, rng) if rng is not None else self._means(part)
            for j, row in enumerate(scores):
                excluded = np.asarray(exclude[start + j], dtype=np.int64)
                excluded = excluded[(excluded >= 0) & (excluded < self.n_items)]
                row[excluded] = -np.inf
                ranked.append(self._expected(part, j, largest(row, n), in_order=rng is None))
        return ranked

    def similar(self, item_row: int, n: int) -> Ranked:
        """The `n` items whose scores go together with those of `item_row` over the users, among rated items.

        `scores`: the expected product of the two items' latent scores over the user prior, relative to their
        expected squares, uncertainty included: a cosine that shrinks where an item is little known. Empty for
        an item nobody rated.
        """
        empty = Ranked(np.zeros(0, dtype=np.int64), np.zeros(0))
        if not 0 <= item_row < self.n_items or self._items[item_row, COUNT] <= 0 or n < 1:
            return empty
        scores = self._directions @ self._directions[item_row]
        scores[self._items[:, COUNT] <= 0] = -np.inf
        scores[item_row] = -np.inf
        rows = largest(scores, n)
        return Ranked(rows, scores[rows].astype(np.float64))

    def popular(self, n: int) -> Ranked:
        """The `n` rated items with the highest lower confidence bound (95 %) of the average user's rating."""
        if n < 1 or self.n_items == 0:
            return Ranked(np.zeros(0, dtype=np.int64), np.zeros(0))
        rows = largest(self._lower.copy(), n)
        bound = self._lower[rows]
        rating, _ = rating_moments(self._parameters, bound, np.zeros(len(rows)))
        return Ranked(rows, rating)

    def _means(self, users: FloatTable) -> Float32s:
        features = users[:, self._user_layout.mean].astype(np.float32)
        features[:, -1] = 1.0
        return np.asarray(features @ self._items[:, self._layout.mean].T)

    def _draws(self, users: FloatTable, rng: np.random.Generator) -> Float32s:
        """Scores (b, n_items) of one draw: users from their posterior, then each item's part given the
        user.
        """
        layout = self._user_layout
        mean = users[:, layout.mean].astype(np.float64)
        values, vectors = np.linalg.eigh(unpack(users[:, layout.covariance], layout.dim))
        noise = rng.standard_normal(mean.shape) * np.sqrt(np.maximum(values, 0.0))
        features = mean + np.einsum("bij,bj->bi", vectors, noise)
        features[:, -1] = 1.0
        pairs = (outer(features) * triangle(layout.dim)[2]).astype(np.float32)
        variance = pairs @ self._items[:, self._layout.covariance].T
        draws = features.astype(np.float32) @ self._items[:, self._layout.mean].T
        draws += np.sqrt(np.maximum(variance, 0.0)) * rng.standard_normal(variance.shape, dtype=np.float32)
        return np.asarray(draws)

    def _expected(self, users: FloatTable, position: int, rows: Int64s, *, in_order: bool) -> Ranked:
        index = np.full(len(rows), position)
        rating = Scorer(self._model, self._items).score(users, index, rows).rating
        if in_order and self._parameters.link == "ordinal":
            order = np.argsort(-rating, kind="stable")
            rows, rating = rows[order], rating[order]
        return Ranked(rows, rating)


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
