"""What expected ratings do not exceed, read off means alone. Invariant: no rating is above its bound."""

from dataclasses import dataclass

import numpy as np

from factors.model.layout import FloatTable
from factors.model.types import Float32s, Float64s, Int64s
from factors.posterior.posterior_model import PosteriorModel
from factors.serving.mean_table import MeanTable

# More than float32 rounds off of a score, in proportion to it.
ROUNDED = 1e-4


@dataclass(frozen=True, slots=True)
class RatingBounds:
    """Bounds by the `means` of a table of items, which lie closer together than its rows."""

    posterior: PosteriorModel
    means: MeanTable

    def score_of(self, user: Float32s) -> tuple[Float32s, float]:
        """Return the features (dim,) of a `user` (user_width,), and what a score is besides their product
        with an item's means.
        """
        parameters = self.posterior.parameters
        features = user[parameters.users.layout.mean].astype(np.float32)
        # The item's bias counts once, the user's for all of them.
        base = parameters.mean + float(features[-1])
        features[-1] = 1.0
        return features, base

    def highest(self, user: Float32s, rows: Int64s) -> Float64s:
        """Return what the expected ratings of `rows` (m,) by `user` (user_width,) do not exceed."""
        features, base = self.score_of(user)
        score = self.means.of_rows(features, np.minimum(rows, self.means.n_items - 1)) + base
        # Nothing is known of what is not in the table.
        return np.where(rows < self.means.n_items, self.of_scores(score), self.posterior.model.scale.high)

    def of_scores(self, score: FloatTable) -> Float64s:
        """Return what the expected ratings with these scores (m,), products in float32, do not exceed."""
        return self.posterior.link.highest_ratings(score + ROUNDED * (1.0 + np.abs(score)))
