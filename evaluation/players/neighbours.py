"""Item-based neighbours with means: an item is rated like the items that the same users rate alike."""

import asyncio

import numpy as np

from environment.client import KnownRatings, Pair
from evaluation.players.baselines import LocalPlayer, clip
from evaluation.players.table import Floats, RatingTable

# The usual number (Koren 2010; Surprise's default); 20 to 60 differ by 1 % on the lecture's world.
NEIGHBOURS = 40
SHRINKAGE = 10.0  # common raters at which a correlation counts half
REFRESH_RATINGS = 100  # all similarities of the lecture's world take 4 ms; their cost grows with its square


class NeighboursPlayer(LocalPlayer):
    """Weighted mean of how the user's ratings of the most similar items deviate from those items' means.

    Similarity is Pearson's correlation over common raters, shrunk by their number. Each rating counts at
    once; similarities follow every `REFRESH_RATINGS` ratings.
    """

    _table: RatingTable
    _similarity: Floats

    async def prepare(self, history: KnownRatings) -> None:
        """Compute all similarities."""
        self._table = RatingTable(history)
        self._new_ratings = 0
        await self._refresh()

    async def predict(self, pair: Pair) -> float:
        """Return the prediction; the item's mean where the user has rated nothing similar."""
        user, item = pair.user, pair.item
        values, seen = self._table.values, self._table.seen
        n_users, n_items = values.shape
        mean = self._table.mean()
        if item >= n_items:
            return clip(mean)
        # One rating of the overall mean is added: an item that is rated once has not that rating as its mean.
        item_means = (values.sum(0) + mean) / (seen.sum(0) + 1.0)
        if user >= n_users or item >= len(self._similarity):
            return clip(item_means[item])
        similar = self._similarity[item] * seen[user, : len(self._similarity)]
        if np.count_nonzero(similar) > NEIGHBOURS:
            similar[np.argpartition(np.abs(similar), -NEIGHBOURS)[:-NEIGHBOURS]] = 0.0
        weight = np.abs(similar).sum()
        if weight == 0.0:
            return clip(item_means[item])
        known = len(self._similarity)
        deviations = values[user, :known] - item_means[:known]
        return clip(item_means[item] + similar @ deviations / weight)

    async def learn(self, pair: Pair, rating: float) -> None:
        """Enter the rating, which counts in the next answer; now and then compute similarities again."""
        self._table.add(pair.user, pair.item, rating)
        self._new_ratings += 1
        if self._new_ratings % REFRESH_RATINGS == 0:
            await self._refresh()

    async def _refresh(self) -> None:
        # Copies: the tables are changed by ratings that come while the thread computes.
        self._similarity = await asyncio.to_thread(
            similarities, self._table.values.copy(), self._table.seen.copy()
        )


def similarities(values: Floats, seen: Floats) -> Floats:
    """Return shrunk correlations between items, (n_items, n_items); 0 on the diagonal and for items without
    a common rater.
    """
    centred = (values - (values.sum(0) + values.sum() / max(seen.sum(), 1.0)) / (seen.sum(0) + 1.0)) * seen
    common = seen.T @ seen
    squares = (centred**2).T @ seen  # [i, j]: item i's squared deviations, over those who also rated j
    scale = np.sqrt(squares * squares.T)
    correlation: Floats = np.divide(centred.T @ centred, scale, out=np.zeros_like(scale), where=scale > 0.0)
    correlation *= common / (common + SHRINKAGE)
    np.fill_diagonal(correlation, 0.0)
    return correlation
