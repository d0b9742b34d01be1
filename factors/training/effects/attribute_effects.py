"""Attribute effects: what the attributes of a row say of its prior mean (Macau: Simm et al., 2017, in closed
form).

Invariant: rows without ratings say nothing, and a ridge so high that nothing is left is the limit of
attributes that say nothing.

With `A` (n, c) the columns of the rated rows and `D` (n, d) their posterior means less what else the prior
mean has, the effects are the ridge regression `W = (A^T A + ridge I)^-1 A^T D`: the posterior mean under a
prior of covariance (side covariance / ridge) for each column. The ridge is the one of highest evidence
(MacKay, 1992): the number of columns that the rows determine over the squares of `W`, in units of the side's
precision. It costs c^2 a sweep, as the eigenvectors of `A^T A` are found once.
"""

import math

import numpy as np

from factors.model.columns import Columns
from factors.model.types import Bools, Float64s, Int64s

# From the ridge of one column as large as a row's deviation; steps of the fixed point move it by less than a
# hundredth at the end.
_ROUNDS = 30
# Beyond this ridge for each unit of the largest eigenvalue nothing is left of an effect.
_HIGHEST = 1e6
# Rows that are left out one by one: of these a standard error is known well.
_LEFT_OUT = 20_000


class NoAttributeEffects:
    """A side without attributes, or without use for them."""

    def offsets(self, effects: Float64s | None) -> float:
        """See `AttributeEffects.offsets`."""
        _ = effects
        return 0.0

    def learn(self, deviations: Float64s, precision: Float64s) -> None:
        """See `AttributeEffects.learn`."""
        _ = deviations, precision


class AttributeEffects:
    """The ridge regression on `columns` of n rows, of which those `rated` (n,) count."""

    def __init__(self, columns: Columns, rated: Bools) -> None:
        self.columns = columns
        self._rated = rated
        # Cut out once, and not in each sweep.
        self._known = columns.take(rated)
        values, self._vectors = np.linalg.eigh(self._known.gram())
        # Rounding may leave an eigenvalue of nearly 0 below it.
        self._values = np.maximum(values, 0.0)

    def offsets(self, effects: Float64s | None) -> Float64s | float:
        """Return what `effects` (c, d) add to the prior mean of each row, (n, d)."""
        return 0.0 if effects is None else self.columns.times(effects)

    def learn(self, deviations: Float64s, precision: Float64s) -> Float64s:
        """Return effects (c, d) from `deviations` (n, d) whose rows have the prior `precision` (d, d)."""
        target, ridge = self._fitted(deviations, precision)
        return np.asarray(self._vectors @ (target / (self._values + ridge)[:, None]))

    def _fitted(self, deviations: Float64s, precision: Float64s) -> tuple[Float64s, float]:
        """Return the target (c, d) along the eigenvectors, and the ridge."""
        sums = self._known.transposed_times(deviations[self._rated])
        target, ridge = np.asarray(self._vectors.T @ sums), 1.0
        # Of each eigenvector its square, in units of the precision.
        squares = np.einsum("cd,de,ce->c", target, precision, target)
        highest = _HIGHEST * max(float(self._values.max(initial=0.0)), 1.0)
        for _ in range(_ROUNDS):
            determined = float((self._values / (self._values + ridge)).sum()) * len(precision)
            explained = float((squares / (self._values + ridge) ** 2).sum())
            ridge = min(highest, max(determined, 1e-12) / max(explained, 1e-300))
        return target, ridge

    def helps(self, deviations: Float64s, precision: Float64s) -> bool:
        """Return whether a row that is left out is nearer to what the others say of it than to 0, by more
        than the standard error of the mean gain.
        """
        target, ridge = self._fitted(deviations, precision)
        rows: Int64s = np.flatnonzero(self._rated & self.columns.described)
        if len(rows) <= self.columns.width // len(precision) or len(rows) < 2:
            return False
        if len(rows) > _LEFT_OUT:
            # At random, the same each time: rows may follow an order of their own.
            rows = np.sort(np.random.default_rng(len(rows)).choice(rows, _LEFT_OUT, replace=False))
        axes = self.columns.take(rows).times(self._vectors)
        shrunk = 1.0 / (self._values + ridge)
        # A row that is left out is off by more, as it has drawn the others towards it (PRESS; Allen, 1974).
        leverage = (axes * axes) @ shrunk
        rest = (deviations[rows] - (axes * shrunk) @ target) / np.maximum(1.0 - leverage, 1e-3)[:, None]
        gain = _squares(deviations[rows], precision) - _squares(rest, precision)
        return bool(gain.mean() > gain.std() / math.sqrt(len(gain)))


def _squares(deviations: Float64s, precision: Float64s) -> Float64s:
    return np.asarray(np.einsum("nd,de,ne->n", deviations, precision, deviations))
