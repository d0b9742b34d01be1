"""Draws from the posteriors of a user and of items, for Thompson sampling. Invariant: one draw of the user
goes with the draws of all items.
"""

import numpy as np
import numpy.typing as npt

from factors.model.layout import FloatTable, outer, triangle, unpack
from factors.model.types import Float32s, Float64s
from factors.posterior.posterior_model import PosteriorModel


class PosteriorDraw:
    """One draw of `user` (user_width,) from its posterior, and draws of items given it."""

    def __init__(self, posterior: PosteriorModel, user: FloatTable, rng: np.random.Generator) -> None:
        self._posterior, self._rng = posterior, rng
        layout = posterior.parameters.users.layout
        mean = user[layout.mean].astype(np.float64)
        # By eigenvalues, for a covariance that float32 made slightly indefinite has no Cholesky factor.
        values, vectors = np.linalg.eigh(unpack(user[None, layout.covariance], layout.dim)[0])
        noise = rng.standard_normal(mean.shape) * np.sqrt(np.maximum(values, 0.0))
        self._features = mean + vectors @ noise
        self._offset = posterior.parameters.mean + float(self._features[-1])
        # The user's bias adds the same to every item.
        self._features[-1] = 1.0
        self._pairs = packed_weights(outer(self._features[None])[0], layout.dim)

    def scores(self, items: Float32s) -> Float32s:
        """Return a draw of the part of the score before the link that differs between `items`
        (m, item_width), (m,).
        """
        deviation = np.sqrt(self._posterior.item_codec.quadratic(items, self._pairs))
        deviation *= self._rng.standard_normal(len(deviation), dtype=np.float32)
        means = items[:, self._posterior.parameters.items.layout.mean]
        # The items are float32: a product with float64 would copy them.
        return np.asarray(means @ self._features.astype(np.float32) + deviation, np.float32)

    def ratings(self, items: Float32s) -> Float64s:
        """Return the expected ratings of `items` (m, item_width) by a draw of their scores, (m,)."""
        scores = self._offset + self.scores(items).astype(np.float64)
        return self._posterior.link.rating_moments(scores, np.zeros(len(scores)))[0]


def packed_weights(packed: Float64s, dim: int) -> npt.NDArray[np.float64]:
    """Return the weights of packed covariances in `f^T S f`, from the packed `f f^T`."""
    return np.asarray(packed * triangle(dim)[2])
