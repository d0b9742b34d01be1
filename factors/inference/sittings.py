"""Effects of sittings, hours in which the sessions of a row lie: of a row's ratings those of one time err
alike, and those of about that time somewhat.

Invariant: posterior and effects are those of the joint Gaussian; where a side has no sittings nothing here is
called.

A sitting is one more session of its row, without entries. The effect of a session is `N(E, t)` round the
effect `E` of its sitting, which is `N(0, T)`. With `a`, `n`, `s` of its sessions (`session_effects`) and
`r = 1 / (t n)`, a sitting has

    a = sum r a_j        n = 1 / T + sum (1 - r_j) / t        s = sum r s_j

so that the row is solved as if it were a session (a Schur complement of the Schur complements); afterwards
the effect of a session is what it would be without sittings, and `r E`.
"""

from dataclasses import dataclass

import numpy as np

from factors.model.parameters import Side
from factors.model.types import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class Sittings:
    """The sessions of some rows, `inner` (m,), and the sitting of each, `outer` (m,): positions among them
    all; sessions of one sitting stand side by side, `first` (k,) among the m begins each.
    """

    inner: Int64s
    outer: Int64s
    first: Int64s
    variance: float
    sitting_variance: float

    @staticmethod
    def of(side: Side, sitting: Int64s) -> "Sittings":
        """Return those of `sitting` (G,): of each session its sitting, -1 of sittings."""
        inner = np.flatnonzero(sitting >= 0)
        outer = sitting[inner]
        first = np.flatnonzero(np.diff(outer, prepend=-1))
        return Sittings(inner, outer, first, side.session_variance, side.sitting_variance)

    def shares(self, scale: Float64s) -> Float64s:
        """Return `r` (m,) of the sessions, from their `scale` (G,)."""
        return np.asarray(1.0 / (self.variance * scale[self.inner]))

    def add_sums(self, load: Float64s, scale: Float64s, total: Float64s) -> None:
        """Write `load` (G, D), `scale` and `total` (G,) of the sittings, from those of the sessions."""
        if len(self.inner) == 0:
            return
        # Of what a session says it keeps a part to itself, the more the fewer ratings it has.
        share, at = self.shares(scale), self.outer[self.first]
        load[at] = np.add.reduceat(share[:, None] * load[self.inner], self.first)
        total[at] = np.add.reduceat(share * total[self.inner], self.first)
        known = np.add.reduceat((1.0 - share) / self.variance, self.first)
        scale[at] = 1.0 / self.sitting_variance + known

    def add_effects(
        self, load: Float64s, scale: Float64s, mean: Float64s, variance: Float64s, covariance: Float64s
    ) -> tuple[Float64s, Float64s]:
        """Add to the effects of sessions, `mean` and `variance` (G,) and `covariance` (G, D) with the row,
        what their sittings add, and to the variance of a sitting that of a session in it. Return
        mean and variance (G,) of what each is beyond what it lies in.
        """
        own_mean, own_variance = mean.copy(), variance.copy()
        if len(self.inner) == 0:
            return own_mean, own_variance
        share, inner, outer = self.shares(scale), self.inner, self.outer
        # Minus the covariance of sitting and session, were the session beside it.
        shared = np.einsum("gd,gd->g", load[inner], covariance[outer]) / scale[inner]
        around, rest = mean[outer], 1.0 - share
        # Beyond its sitting a session is what it would be without one, less the rest of the sitting's effect.
        own_mean[inner] -= rest * around
        own_variance[inner] += rest * rest * variance[outer] + 2.0 * rest * shared
        variance[inner] += share * share * variance[outer] - 2.0 * share * shared
        mean[inner] += share * around
        covariance[inner] += share[:, None] * covariance[outer]
        # A slot of a sitting is read for sessions that are not kept.
        variance[np.unique(outer)] += self.variance
        return own_mean, own_variance

    def shifts(self, shift: Float64s, scale: Float64s) -> Float64s:
        """Return by how much each session moves the linear term of its row with a unit of its sum, (G, D),
        from `load / scale`, `shift` (G, D).
        """
        whole = shift.copy()
        whole[self.inner] += self.shares(scale)[:, None] * shift[self.outer]
        return whole
