"""The drift of users in a fit: whether they move, the prior of their velocities, and how wide it should be.

Invariant: the question whether users move costs less than a sweep, so that ratings that show no drift pay
nothing for it.

Mean field takes velocities for surer than they are, and so learns too narrow a prior of them. By how much
(`Drift.widening`) is chosen by held-out ratings, and made up for in the model that rows are folded in with:
sweeps that did so would feed on themselves.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from factors.inference.half_step import HalfStep
from factors.inference.histories import Compressed
from factors.inference.motion import ages, anchor_times
from factors.inference.ordinal import LEAST_CAVITY
from factors.inference.segments import segment_sums
from factors.inference.side_moments import SideMoments, gather_side_moments
from factors.model.layout import COUNT, pack, triangle, unpack
from factors.model.parameters import Drift, Parameters, Side
from factors.model.types import Float64s, Int64s
from factors.training.priors import shrunk_covariance
from factors.training.settings import WORTH

# Ratings whose gains are computed at once: 50 MB of moments at rank 8.
_BLOCK = 1 << 17


def start_drift(side: Side, time: Float64s, ratio: float = 1.0) -> Drift | None:
    """Return a drift to begin to learn from, for ratings at these times (n,): the prior of velocities is that
    of the positions of `side`, with `ratio` times the variance. None where the times do not differ.
    """
    known = time[np.isfinite(time)]
    if len(known) == 0:
        return None
    # A few times may be nonsense: the outermost do not count for the span.
    ends = 0.02
    low, high = np.quantile(known, [ends, 1.0 - ends])
    with np.errstate(over="ignore"):
        unit = float((high - low) / (1.0 - 2.0 * ends))
    if not 0.0 < unit < np.inf:
        return None
    return Drift(float(low), unit, ratio * side.covariance, side.precision / ratio)


def best_drift(parameters: Parameters, item_rows: Float64s, by_user: Compressed, residual: Float64s) -> float:
    """Return the variance of velocities, relative to that of positions, which explains `residual` (n,) best;
    0 where none is worth it. `residual`: what items with `item_rows` left over of each entry of `by_user`.

    With `s` the variance of the residuals, `a` the ages less their mean of each user (the mean position is
    fitted already), `A = sum a^2 E[f f^T] / s` and `b = sum a f r / s`, velocities N(0, V) have over none the
    evidence `b^T (V^-1 + A)^-1 b / 2 - log det(1 + V A) / 2`, a sum over users. Those of highest evidence
    are worth it where they surely, by two standard errors, make a rating that is not learned likelier by more
    than `WORTH` (`left_out_gain`).
    """
    variance = float(np.mean(residual * residual)) if len(residual) else 0.0
    drift = start_drift(parameters.users, by_user.time)
    if drift is None or variance <= 0.0:
        return 0.0
    row = by_user.row
    age = ages(drift, anchor_times(drift, by_user)[row], by_user.time)
    # The mean position is fitted already.
    age = age - (np.bincount(row, age, by_user.rows) / np.maximum(by_user.counts, 1))[row]
    items = gather_side_moments(parameters.items, item_rows, by_user)
    dim = parameters.users.layout.dim
    precision = unpack(segment_sums(by_user.indptr, items.columns, age * age / variance, items.second), dim)
    pull = segment_sums(by_user.indptr, items.columns, age * residual / variance, items.features)
    # Evidence of so many nats no chance makes.
    best, best_evidence, velocities = 0.0, 10.0, None
    # Variances of a velocity, in those of a position: how far rows move within the span of the ratings.
    for ratio in (0.01, 0.03, 0.1, 0.3, 1.0):
        # With V = R R^T everything is symmetric, and V^-1 is not needed.
        root = np.linalg.cholesky(ratio * parameters.users.covariance)
        inner = np.eye(dim) + root.T @ precision @ root
        turned = pull @ root
        gain = np.einsum("bd,bd->b", turned, np.linalg.solve(inner, turned[:, :, None])[:, :, 0])
        evidence = 0.5 * float((gain - np.linalg.slogdet(inner)[1]).sum())
        if evidence > best_evidence:
            best, best_evidence = ratio, evidence
            covariance = root @ np.linalg.solve(inner, np.broadcast_to(root.T, inner.shape))
            velocities = np.einsum("bij,bj->bi", covariance, pull), pack(covariance)
    if velocities is None:
        return 0.0
    gain = left_out_gain(*(items, by_user, age, residual), velocity=velocities[0], covariance=velocities[1])
    # Errors of one user are alike, so each user counts as one draw.
    spread = np.bincount(row, gain - gain.mean(), by_user.rows)
    error = math.sqrt(float(spread @ spread)) / len(gain)
    # A sweep over users that move takes two to three times as long: nineteen in twenty that it is worth it.
    return best if gain.mean() - 2.0 * error > WORTH else 0.0


def left_out_gain(
    items: SideMoments,
    by_user: Compressed,
    age: Float64s,
    residual: Float64s,
    *,
    velocity: Float64s,
    covariance: Float64s,
) -> Float64s:
    """Return by how many nats `velocity` (b, d) of the users, of packed `covariance`, make each `residual`
    (n,) at its `age` likelier, had it not been learned.

    With `h` the variance that the velocity leaves to a score, in those of the residuals, leaving the rating
    out divides both its error and its variance by `1 - h` (Hoaglin and Welsch, 1978).
    """
    row, variance, dim = by_user.row, float(np.mean(residual * residual)), velocity.shape[1]
    gain, weights = np.empty(len(residual)), covariance * triangle(dim)[2]
    for start in range(0, len(gain), _BLOCK):
        part = slice(start, start + _BLOCK)
        index = items.rows_of(np.arange(part.start, min(part.stop, len(gain))))
        moved = age[part] * np.einsum("nd,nd->n", items.features[index], velocity[row[part]])
        spread = np.einsum("nt,nt->n", items.second[index], weights[row[part]])
        rest = np.maximum(1.0 - spread * age[part] ** 2 / variance, LEAST_CAVITY)
        square = residual[part] ** 2 - (residual[part] - moved) ** 2 / rest
        gain[part] = 0.5 * (square / variance + np.log(rest))
    return gain


def latest(by_user: Compressed, share: float) -> Int64s:
    """Return the entries of `by_user` that are the latest `share` of their row, ascending; the time of all of
    them is known.
    """
    time = np.where(np.isfinite(by_user.time), by_user.time, -np.inf)
    order = np.lexsort((time, by_user.row))
    position = np.arange(len(order)) - np.repeat(by_user.indptr[:-1], by_user.counts)
    last = order[position >= np.repeat(by_user.counts - np.floor(share * by_user.counts), by_user.counts)]
    return np.sort(last[np.isfinite(by_user.time[last])])


def widened(parameters: Parameters) -> Parameters:
    """Return `parameters` to fold in with: the variance of velocities `widening` times what the sweeps
    learned."""
    return _with_drift(parameters, lambda drift: drift.scaled(drift.widening))


def narrowed(parameters: Parameters) -> Parameters:
    """Return `parameters` to sweep with: `widened` undone."""
    return _with_drift(parameters, lambda drift: drift.scaled(1.0 / drift.widening))


def with_widening(parameters: Parameters, widening: float) -> Parameters:
    """Return `parameters` of a fit that goes on, with this `widening` for when it ends."""
    return _with_drift(parameters, lambda drift: replace(drift, widening=widening))


def _with_drift(parameters: Parameters, change: Callable[[Drift], Drift]) -> Parameters:
    """Return `parameters` with the drift of users changed; the same where users stand still."""
    users = parameters.users.with_drift(change)
    return parameters if users is parameters.users else replace(parameters, users=users)


def learn_drift(side: Side, step: HalfStep) -> Side:
    """Return `side` with the prior of velocities that its posteriors in `step` speak for; itself where it
    stands still.
    """

    def learned(drift: Drift) -> Drift:
        # A single rating says nothing of a velocity.
        rated, layout = step.rows[:, COUNT] > 1, side.layout
        velocity = step.rows[rated][:, layout.velocity]
        if len(velocity) == 0:
            return drift
        covariance = unpack(step.posterior.covariance[rated][:, 2 * layout.packed :], layout.dim)
        scatter = velocity.T @ velocity + covariance.sum(axis=0)
        prior = shrunk_covariance(scatter, len(velocity), drift.covariance)
        return replace(drift, covariance=prior, precision=np.asarray(np.linalg.inv(prior)))

    return side.with_drift(learned)
