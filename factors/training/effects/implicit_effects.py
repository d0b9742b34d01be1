"""Implicit effects: what having a row in one's history says of the other side's prior mean (the idea of
SVD++, in closed form).

Invariant: the prior mean of a row is its side's mean plus `sum over its history of effect_j / sqrt(count)`,
here as in the half-step.

With `X` (rows, others) the rated sets, each row divided by the square root of its count, and `D` the
posterior means less the side's mean, the effects are the ridge regression `(X^T X + ridge I)^-1 X^T D`: the
posterior mean under a prior of covariance (side covariance / ridge) for each effect.
"""

import numpy as np
import scipy.linalg

from factors.inference.backend import RatedSets, set_matrix
from factors.inference.histories import Compressed
from factors.model.types import Float64s


class NoImplicitEffects:
    """A model without these effects."""

    def offsets(self, effects: Float64s) -> float:
        """See `ImplicitEffects.offsets`."""
        _ = effects
        return 0.0

    def learn(self, deviations: Float64s, before: Float64s) -> Float64s:
        """See `ImplicitEffects.learn`."""
        _ = deviations
        return before


class ImplicitEffects:
    """The ridge regression for one side: `data` its histories, `others` those of the other side, that is the
    same ratings, which `sets` multiplies with.
    """

    def __init__(self, data: Compressed, others: Compressed, ridge: float, sets: RatedSets) -> None:
        self._sets, self._ridge = sets, ridge
        # That of X^T X: what conjugate gradients are preconditioned by.
        self._diagonal = ridge + sets.transposed_times(1.0 / np.sqrt(np.maximum(data.counts, 1))[:, None])
        self._by_rows = data.rows <= others.rows
        self._factor: tuple[Float64s, bool] | None = None
        # A dense factor of this size takes as long as the conjugate gradients of all sweeps, and 8 MB; one of
        # 3,000 rows 1.3 s of a core.
        if min(data.rows, others.rows) <= 1000:
            matrix = set_matrix(data, others.rows)
            transposed = matrix.T.tocsr()
            gram = (matrix @ transposed if self._by_rows else transposed @ matrix).toarray()
            gram[np.diag_indices(len(gram))] += ridge
            self._factor = scipy.linalg.cho_factor(gram, overwrite_a=True)

    def learn(self, deviations: Float64s, before: Float64s) -> Float64s:
        """Return effects (n_others, d) from posterior means less the side's mean, `deviations` (rows, d);
        `before`: those of the sweep before.
        """
        if self._factor is None:
            return self._conjugate_gradients(deviations, before)
        if self._by_rows:
            return self._sets.transposed_times(np.asarray(scipy.linalg.cho_solve(self._factor, deviations)))
        return np.asarray(scipy.linalg.cho_solve(self._factor, self._sets.transposed_times(deviations)))

    def offsets(self, effects: Float64s) -> Float64s:
        """Return what `effects` (n_others, d) add to the prior mean of each row, (rows, d)."""
        return self._sets.times(effects)

    def _conjugate_gradients(self, deviations: Float64s, effects: Float64s) -> Float64s:
        """Solve for all columns at once, from `effects` on, preconditioned by the diagonal."""
        target = self._sets.transposed_times(deviations)
        residual = target - self._normal(effects)
        inverse = 1.0 / self._diagonal
        # A hundredth of the target, as a norm: sweeps go on from each other, and with a thousandth a fit of a
        # million ratings takes half as many steps more for the same errors.
        limit = 1e-4 * (target * inverse * target).sum(axis=0)
        direction = inverse * residual
        square = (residual * direction).sum(axis=0)
        # From one sweep to the next effects move little, and the steps go on from there.
        for _ in range(20):
            if (square <= limit).all():
                break
            product = self._normal(direction)
            step = square / np.maximum((direction * product).sum(axis=0), 1e-300)
            effects = effects + step * direction
            residual = residual - step * product
            conditioned = inverse * residual
            before, square = square, (residual * conditioned).sum(axis=0)
            direction = conditioned + square / np.maximum(before, 1e-300) * direction
        return np.asarray(effects)

    def _normal(self, effects: Float64s) -> Float64s:
        return self._sets.transposed_times(self._sets.times(effects)) + self._ridge * effects
