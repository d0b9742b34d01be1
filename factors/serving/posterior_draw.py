"""Draws from what is believed of a user and of items, for Thompson sampling. Invariant: one draw of the user
goes with the draws of all items, and the draw of an item does not depend on which others are looked at: a
longer list begins as a shorter one does.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from factors.model.layout import FloatTable, outer, triangle, unpack
from factors.model.types import Float32s, Float64s, Int64s
from factors.posterior.posterior_model import PosteriorModel
from factors.serving.scoring import Scorer

# SplitMix64 (Steele, Lea and Flood 2014), of which number `k` can be told without those before it: what is
# added for each, and shifts and factors that mix.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXED = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST_SHIFT = np.uint64(31)
# As many bits as a uniform number in float64 has.
_SPARE_BITS, _UNIT = np.uint64(11), 2.0**-53


class PosteriorDraw:
    """One draw of `user` (user_width,) from its posterior, and draws of items given it."""

    def __init__(self, posterior: PosteriorModel, user: FloatTable, rng: np.random.Generator) -> None:
        self._posterior = posterior
        layout = posterior.parameters.users.layout
        mean = user[layout.mean].astype(np.float64)
        # By eigenvalues, for a covariance that float32 made slightly indefinite has no Cholesky factor.
        values, vectors = np.linalg.eigh(unpack(user[None, layout.covariance], layout.dim)[0])
        noise = rng.standard_normal(mean.shape) * np.sqrt(np.maximum(values, 0.0))
        self._features = mean + vectors @ noise
        self._offset = posterior.parameters.mean + float(self._features[-1])
        # The user's bias adds the same to every item.
        self._features[-1] = 1.0
        self._key = rng.integers(1 << 64, dtype=np.uint64)
        self._pairs = packed_weights(outer(self._features[None])[0], layout.dim)

    def scores(self, items: Float32s, rows: Int64s) -> Float32s:
        """Return a draw of the part of the score before the link that differs between `items`
        (m, item_width), which are the `rows` (m,) of their table, (m,).
        """
        deviation = np.sqrt(self._posterior.item_codec.quadratic(items, self._pairs))
        deviation *= normals(self._key, rows)
        means = items[:, self._posterior.parameters.items.layout.mean]
        # The items are float32: a product with float64 would copy them.
        return np.asarray(means @ self._features.astype(np.float32) + deviation, np.float32)

    def ratings(self, items: Float32s, rows: Int64s) -> Float64s:
        """Return the expected ratings of `items` (m, item_width), the `rows` (m,), by a draw of their scores,
        (m,).
        """
        scores = self._offset + self.scores(items, rows).astype(np.float64)
        return self._posterior.link.rating_moments(scores, np.zeros(len(scores)))[0]


def rate_by_draw(
    posterior: PosteriorModel, scorer: Scorer, user: FloatTable, rng: np.random.Generator
) -> Callable[[Int64s], Float64s]:
    """Return what rates rows by one draw of the user; a row that is not in the table is an unknown item."""
    draw = PosteriorDraw(posterior, user, rng)

    def rate(rows: Int64s) -> Float64s:
        inside = rows < len(scorer.items)
        items = np.where(inside[:, None], scorer.items[np.where(inside, rows, 0)], posterior.prior_item)
        return draw.ratings(items, rows)

    return rate


def drawn_relevance(relevance: Float64s, events: Float64s, rng: np.random.Generator) -> Float64s:
    """Return a draw of how relevant all items (m,) are to one user, to whom they are expected to be of this
    `relevance`. `events` (m,): how many each has.

    From a Dirichlet process (Ferguson 1973) whose base are the items with events, those of the user's own
    history among them, with the weight of one event: an item with `n` events is with a chance of
    `1 / (1 + n)` as relevant as any of these, else as expected. Of one without events that has attributes
    the relevance by these is where what is drawn lies around.
    """
    keys, known = rng.integers(1 << 64, size=2, dtype=np.uint64), np.flatnonzero(events > 0)
    if not len(known):
        return relevance
    drawn = relevance.copy()
    rows = np.flatnonzero(uniforms(keys[0], np.arange(len(relevance))) * (1.0 + events) < 1.0)
    like = known[(uniforms(keys[1], rows) * len(known)).astype(np.int64)]
    described = (events[rows] == 0) & (relevance[rows] != 0)
    by_attributes = relevance[rows] - relevance[known].mean()
    drawn[rows] = relevance[like] + np.where(described, by_attributes, 0.0)
    return drawn


def normals(key: np.uint64, rows: Int64s) -> Float32s:
    """Return a standard normal number of each of `rows` (m,), which `key` and the row tell."""
    return np.asarray(ndtri(uniforms(key, rows)), np.float32)


def uniforms(key: np.uint64, rows: Int64s) -> Float64s:
    """Return a number between 0 and 1 of each of `rows` (m,), which `key` and the row tell."""
    mixed = key + (rows.astype(np.uint64) + np.uint64(1)) * _STEP
    for shift, factor in _MIXED:
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed ^= mixed >> _LAST_SHIFT
    return np.asarray(((mixed >> _SPARE_BITS).astype(np.float64) + 0.5) * _UNIT)


def packed_weights(packed: Float64s, dim: int) -> npt.NDArray[np.float64]:
    """Return the weights of packed covariances in `f^T S f`, from the packed `f f^T`."""
    return np.asarray(packed * triangle(dim)[2])
