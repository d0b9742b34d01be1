"""What the posteriors of a fit say of a rating's score once that rating is taken out of both of them.

Invariant: no rating foretells itself. With few ratings a row, most of what its posterior says of a rating is
that rating: cut points, noise and links that are judged by it look far surer than they are.

A rating stands in the posteriors of its user and of its item as a Gaussian site on the score, of precision
`w` and linear term `l`. With `v` the part of the variance of the score that comes from one side, taking the
site out of that side moves the mean of the score, to first order, by `v (w s - l) / (1 - w v)`, and makes
that part `v / (1 - w v)`: the cavity of expectation propagation (Minka, 2001), here of both sides at once.
"""

from dataclasses import dataclass

import numpy as np

from factors.inference.half_step import HalfStep, rows_then
from factors.inference.histories import Compressed, Sessions
from factors.model.layout import Layout, outer, triangle
from factors.model.types import Float64s, Int64s

# A site never holds more than all but this part of a posterior, as in `ordinal`.
_LEAST_CAVITY = 0.02


def leave_one_out_scores(
    layout: Layout,
    user_step: HalfStep,
    item_step: HalfStep,
    users: Compressed,
    *,
    entries: Int64s,
    item_entries: Int64s,
    user_sessions: Sessions | None,
    item_sessions: Sessions | None,
    age: Float64s | None = None,
) -> tuple[Float64s, Float64s]:
    """Mean, beyond the mean of all, and variance (m,) of the scores of `entries` (m,) of `users`, each
    without that rating.

    Both half-steps with the sites that gave their rows, which begin as `layout` says. `item_entries` (m,):
    where the histories of the items have the same ratings. The sessions are those of the half-steps.
    `age` (m,): of these ratings, where users move.
    """
    row = np.searchsorted(users.indptr, entries, side="right") - 1
    own, other = user_step.rows[row], item_step.rows[users.other[entries]]
    if age is not None:
        own = rows_then(layout, user_step, row, age)
    own_part = _part(
        layout, user_step, rows=own, other_rows=other, entries=entries, sessions=user_sessions, age=age
    )
    other_part = _part(
        layout, item_step, rows=other, other_rows=own, entries=item_entries, sessions=item_sessions
    )
    base = own[:, layout.bias] + other[:, layout.bias]
    base += np.einsum("nk,nk->n", own[:, layout.latent], other[:, layout.latent])
    latent_packed = layout.rank * (layout.rank + 1) // 2
    both = own[:, layout.covariance] * other[:, layout.covariance]
    variance = both[:, :latent_packed] @ triangle(layout.dim)[2][:latent_packed]
    mean = base.copy()
    for part in (own_part, other_part):
        shrink = np.maximum(1.0 - part.weight * part.variance, _LEAST_CAVITY)
        mean += part.effect
        mean += part.variance * (part.weight * (base + part.effect) - part.linear) / shrink
        variance += part.variance / shrink
    return mean, variance


@dataclass(frozen=True, slots=True)
class _Part:
    """Of one side, at each entry (m,): its part of the `variance` of the score, the `effect` of its session,
    and the site that it has of the rating, `weight` and `linear`.
    """

    variance: Float64s
    effect: Float64s
    weight: Float64s
    linear: Float64s


def _part(
    layout: Layout,
    step: HalfStep,
    *,
    rows: Float64s,
    other_rows: Float64s,
    entries: Int64s,
    sessions: Sessions | None,
    age: Float64s | None = None,
) -> _Part:
    features = other_rows[:, layout.mean].copy()
    features[:, -1] = 1.0
    loads = outer(features) * triangle(layout.dim)[2]
    variance = np.einsum("nt,nt->n", rows[:, layout.covariance], loads)
    effect = np.zeros(len(entries))
    if sessions is not None and len(step.session_effect):
        group = np.full(int(entries.max(initial=0)) + 1, -1, dtype=np.int64)
        near = sessions.entry < len(group)
        group[sessions.entry[near]] = sessions.group[near]
        group = group[entries]
        has = np.flatnonzero(group >= 0)
        group = group[has]
        effect[has] = step.session_effect[group]
        covariance = step.session_covariance[group]
        if age is not None:
            covariance = covariance[:, : layout.dim] - age[has, None] * covariance[:, layout.dim :]
        shared = np.einsum("nd,nd->n", features[has], covariance)
        variance[has] += step.session_variance[group] + 2.0 * shared
    sites = step.sites
    if sites is None:
        return _Part(variance, effect, np.zeros(len(entries)), np.zeros(len(entries)))
    weight, linear = sites.weight[entries], sites.linear[entries]
    return _Part(variance, effect, weight.astype(np.float64), linear.astype(np.float64))
