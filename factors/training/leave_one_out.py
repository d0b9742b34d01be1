"""The score of a rating under the posteriors of a fit once that rating is taken out of both of them.

Invariant: no rating predicts itself. With few ratings a row, most of what its posterior says of a rating is
that rating: cut points, noise and links that are judged by it look far surer than they are.

A rating stands in the posteriors of its user and of its item as a Gaussian site on the score, of precision
`w` and linear term `l`. With `v` the part of the variance of the score that comes from one side, taking the
site out of that side moves the mean of the score, to first order, by `v (w s - l) / (1 - w v)`, and makes
that part `v / (1 - w v)`: the cavity of expectation propagation (Minka, 2001), here of both sides at once.
"""

from dataclasses import dataclass

import numpy as np

from factors.inference.half_step import HalfStep
from factors.inference.motion import Motion
from factors.inference.ordinal import LEAST_CAVITY
from factors.model.layout import Layout, outer, triangle
from factors.model.types import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class StepEntries:
    """Some `entries` (m,) of a half-step, with the `row` (m,) of each, the motion of these, and the `session`
    (m,) that each was in, -1 for none. `shift` (m, d): what contexts add to the rows, None for nothing.
    """

    layout: Layout
    step: HalfStep
    motion: Motion
    session: Int64s
    row: Int64s
    entries: Int64s
    shift: Float64s | None = None

    def rows(self) -> Float64s:
        """Return the rows (m, width) as they were at their entries."""
        step = self.step
        at = np.arange(len(self.entries))
        rows = self.motion.rows_at(step.rows, step.posterior.covariance, self.row, at)
        if self.shift is not None:
            rows[:, self.layout.mean] += self.shift
        return rows

    def timed(self) -> tuple[Int64s, Int64s]:
        """Return the positions in `entries` of those with a session, and the session of each."""
        timed = np.flatnonzero(self.session >= 0)
        return timed, self.session[timed]


def leave_one_out_scores(users: StepEntries, items: StepEntries) -> tuple[Float64s, Float64s]:
    """Return mean, beyond the mean of all, and variance (m,) of the scores of ratings, each without that
    rating; `users` and `items` have the same ratings in the same order.
    """
    layout, own, other = users.layout, users.rows(), items.rows()
    base = own[:, layout.bias] + other[:, layout.bias]
    base += np.einsum("nk,nk->n", own[:, layout.latent], other[:, layout.latent])
    latent_packed = layout.rank * (layout.rank + 1) // 2
    both = own[:, layout.covariance] * other[:, layout.covariance]
    variance = both[:, :latent_packed] @ triangle(layout.dim)[2][:latent_packed]
    mean = base.copy()
    for side, rows, other_rows in ((users, own, other), (items, other, own)):
        effect, own_variance = _side_moments(side, rows, other_rows)
        sites = side.step.sites
        weight = sites.weight[side.entries].astype(np.float64)
        linear = sites.linear[side.entries].astype(np.float64)
        shrink = np.maximum(1.0 - weight * own_variance, LEAST_CAVITY)
        mean += effect
        mean += own_variance * (weight * (base + effect) - linear) / shrink
        variance += own_variance / shrink
    return mean, variance


def _side_moments(side: StepEntries, rows: Float64s, other_rows: Float64s) -> tuple[Float64s, Float64s]:
    """Of one side the effect of the session at each entry (m,), and its part of the variance of the score."""
    layout, effects = side.layout, side.step.posterior.effects
    features = other_rows[:, layout.mean].copy()
    features[:, -1] = 1.0
    loads = outer(features) * triangle(layout.dim)[2]
    variance = np.einsum("nt,nt->n", rows[:, layout.covariance], loads)
    effect = np.zeros(len(side.entries))
    timed, session = side.timed()
    if len(timed):
        effect[timed] = effects.mean[session]
        covariance = side.motion.covariance_at(effects.covariance[session], timed)
        shared = np.einsum("nd,nd->n", features[timed], covariance)
        variance[timed] += effects.variance[session] + 2.0 * shared
    return effect, variance
