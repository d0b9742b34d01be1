"""What having a row in one's history says of the other side's prior mean (the idea of SVD++, in closed form).

Invariant: the prior mean of a row is its side's mean plus `sum over its history of effect_j / sqrt(count)`,
here as in the half-step.

With `X` (rows, others) the rated sets, each row divided by the square root of its count, and `D` the
posterior means less the side's mean, the effects are the ridge regression `(X^T X + ridge I)^-1 X^T D`: the
posterior mean under a prior of covariance (side covariance / ridge) for each effect.
"""

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg

from factors.inference.backend_numba import Compiled
from factors.inference.histories import Compressed
from factors.model.types import Float64s

# Up to here a dense factor of the smaller Gram matrix takes under a second and 70 MB; beyond, conjugate
# gradients.
_DENSE = 3000
_CG_STEPS = 20
# Of the residual that a step begins with: the sweeps go on from each other, and so do the gradients.
_CG_TOLERANCE = 1e-3


class ImplicitEffects:
    """The ridge regression for one side: `data` its histories, `others` those of the other side, that is the
    same ratings; `compiled`: see `Training`.
    """

    def __init__(
        self, data: Compressed, others: Compressed, ridge: float, compiled: Compiled | None = None
    ) -> None:
        counts, n_others = data.counts, others.rows
        scale = 1.0 / np.sqrt(np.maximum(counts, 1))
        self._data, self._others = data, others
        self._scale, self._compiled = scale, compiled
        share = scale * scale
        self._diagonal = np.bincount(data.other, np.repeat(share, counts), n_others) + ridge
        self._ridge = ridge
        self._effects: Float64s | None = None
        self._factor: tuple[Float64s, bool] | None = None
        self._by_rows = data.rows <= n_others
        self._design: sp.csr_array | None = None
        dense = min(data.rows, n_others) <= _DENSE
        if dense or compiled is None:
            self._design = sp.csr_array(
                (np.repeat(scale, counts), data.other, data.indptr), shape=(data.rows, n_others)
            )
        if dense and self._design is not None:
            transposed = self._design.T.tocsr()
            gram = (self._design @ transposed if self._by_rows else transposed @ self._design).toarray()
            gram += np.diag(np.full(len(gram), ridge))
            self._factor = scipy.linalg.cho_factor(gram, overwrite_a=True)

    def learn(self, deviations: Float64s) -> Float64s:
        """Effects (n_others, d) from posterior means less the side's mean, `deviations` (rows, d)."""
        if self._factor is None:
            self._effects = self._conjugate_gradients(deviations)
            return self._effects
        if self._by_rows:
            return self._transposed(np.asarray(scipy.linalg.cho_solve(self._factor, deviations)))
        return np.asarray(scipy.linalg.cho_solve(self._factor, self._transposed(deviations)))

    def offsets(self, effects: Float64s) -> Float64s:
        """What `effects` (n_others, d) add to the prior mean of each row, (rows, d)."""
        if self._compiled:
            return self._compiled.sum_rows(self._data.indptr, self._data.other, effects, self._scale)
        return np.asarray(self._design @ effects) if self._design is not None else effects

    def _transposed(self, deviations: Float64s) -> Float64s:
        if self._compiled:
            others, ones = self._others, np.ones(self._others.rows)
            scaled = deviations * self._scale[:, None]
            return self._compiled.sum_rows(others.indptr, others.other, scaled, ones)
        return np.asarray(self._design.T @ deviations) if self._design is not None else deviations

    def _conjugate_gradients(self, deviations: Float64s) -> Float64s:
        """All columns at once, from the effects of the sweep before, preconditioned by the diagonal."""
        target = self._transposed(deviations)
        effects = np.zeros_like(target) if self._effects is None else self._effects
        residual = target - self._normal(effects) if self._effects is not None else target
        inverse = 1.0 / self._diagonal[:, None]
        limit = _CG_TOLERANCE**2 * (target * inverse * target).sum(axis=0)
        direction = inverse * residual
        square = (residual * direction).sum(axis=0)
        for _ in range(_CG_STEPS):
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
        return self._transposed(self.offsets(effects)) + self._ridge * effects
