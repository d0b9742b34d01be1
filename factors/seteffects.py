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

from factors.histories import Compressed
from factors.tables import Float64s

# Up to here a dense factor of the smaller Gram matrix takes under a second and 70 MB; beyond, conjugate
# gradients.
_DENSE = 3000
_CG_STEPS = 20


class SetEffects:
    """The ridge regression for one side: `data` its histories, `n_others` rows on the other side."""

    def __init__(self, data: Compressed, n_others: int, ridge: float) -> None:
        counts = data.counts
        scale = 1.0 / np.sqrt(np.maximum(counts, 1))
        self._design = sp.csr_array(
            (np.repeat(scale, counts), data.other, data.indptr), shape=(data.rows, n_others)
        )
        self._ridge = ridge
        self._effects: Float64s | None = None
        self._factor: tuple[Float64s, bool] | None = None
        self._by_rows = data.rows <= n_others
        if min(data.rows, n_others) <= _DENSE:
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
            return np.asarray(self._design.T @ scipy.linalg.cho_solve(self._factor, deviations))
        return np.asarray(scipy.linalg.cho_solve(self._factor, np.asarray(self._design.T @ deviations)))

    def offsets(self, effects: Float64s) -> Float64s:
        """What `effects` (n_others, d) add to the prior mean of each row, (rows, d)."""
        return np.asarray(self._design @ effects)

    def _conjugate_gradients(self, deviations: Float64s) -> Float64s:
        """All columns at once, from the effects of the sweep before."""
        target = self._design.T @ deviations
        effects = np.zeros_like(target) if self._effects is None else self._effects
        residual = target - self._normal(effects)
        direction = residual.copy()
        square = (residual * residual).sum(axis=0)
        for _ in range(_CG_STEPS):
            product = self._normal(direction)
            step = square / np.maximum((direction * product).sum(axis=0), 1e-300)
            effects = effects + step * direction
            residual -= step * product
            before, square = square, (residual * residual).sum(axis=0)
            direction = residual + square / np.maximum(before, 1e-300) * direction
        return np.asarray(effects)

    def _normal(self, effects: Float64s) -> Float64s:
        return np.asarray(self._design.T @ (self._design @ effects) + self._ridge * effects)
