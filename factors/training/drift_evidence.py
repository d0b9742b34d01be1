"""Whether users move at all, and how far: the evidence for velocities in what a fit without them left over.

Invariant: it costs less than a sweep, so that ratings that show no drift pay nothing for the question.
"""

from dataclasses import replace

import numpy as np

from factors.inference.drift import start_drift
from factors.inference.half_step import entry_ages
from factors.inference.segments import segment_sums
from factors.inference.side_moments import gather_side_moments
from factors.model.layout import unpack
from factors.model.types import Float64s
from factors.training.sweep import State

# Variances of a velocity, in those of a position: how far rows move within the span of the ratings.
_RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0)
# Evidence in nats, in all and for each rating, below which users stay where they are. A sweep over users that
# move takes two to three times as long: 0.0012 nats (MovieLens 100K) are not worth that, the 0.014 of the
# rating environment whose tastes turn by half a radian cut its squared error in half.
_LEAST_EVIDENCE = 10.0
_LEAST_A_RATING = 0.0025


def best_drift(state: State, residual: Float64s) -> float:
    """The variance of velocities, relative to that of positions, which explains `residual` (n,) best; 0 where
    none does enough. `residual`: by entry of the users' ratings.

    With `s` the variance of the residuals, `a` the ages less their mean of each user (the mean position is
    fitted already), `A = sum a^2 E[f f^T] / s` and `b = sum a f r / s`, velocities N(0, V) have over none the
    evidence `b^T (V^-1 + A)^-1 b / 2 - log det(1 + V A) / 2`, a sum over users.
    """
    parameters, data = state.parameters, state.training.users
    variance = float(np.mean(residual * residual)) if len(residual) else 0.0
    drift = start_drift(parameters.users, data.time)
    if drift is None or variance <= 0.0:
        return 0.0
    age = entry_ages(replace(parameters.users, drift=drift), data)
    if age is None:
        return 0.0
    row = data.row
    age = age - (np.bincount(row, age, data.rows) / np.maximum(data.counts, 1))[row]
    others, index = gather_side_moments(parameters.items, state.item_rows, data)
    dim = parameters.users.layout.dim
    said = unpack(segment_sums(data.indptr, index, age * age / variance, others.second), dim)
    pull = segment_sums(data.indptr, index, age * residual / variance, others.features)
    least = max(_LEAST_EVIDENCE, _LEAST_A_RATING * len(residual))
    best, best_evidence = 0.0, least
    for ratio in _RATIOS:
        root = np.linalg.cholesky(ratio * parameters.users.covariance)
        inner = np.eye(dim) + root.T @ said @ root
        turned = pull @ root
        gain = np.einsum("bd,bd->b", turned, np.linalg.solve(inner, turned[:, :, None])[:, :, 0])
        evidence = 0.5 * float((gain - np.linalg.slogdet(inner)[1]).sum())
        if evidence > best_evidence:
            best, best_evidence = ratio, evidence
    return best
