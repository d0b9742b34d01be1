"""Tastes that move: rows with a velocity.

Invariant: a row depends on the times of its own ratings, never on the clock.

A row that moves was at `x - a v` when it gave a rating of age `a`, counted back from its latest rating in
units of about the span of the training ratings: `x` is where it stood then, `v` its velocity, N(0, V) with
`V` by empirical Bayes. Both follow from one history in closed form, with `[f, -a f]` in place of the features
`f` of a half-step, so that what was said long ago counts as much as it still says of now. Ages end at
`MOST_AGE`: what is older, or of a nonsensical time, was said by whoever that was. An unknown time is now.

Mean field takes velocities for surer than they are, and so learns too narrow a prior of them. By how much is
chosen by ratings that were held out (`widening`), and made up for in the model that rows are folded in with:
sweeps that did so would feed on themselves.

A row keeps `x` with its covariance, the mean of `v`, and when it stood at `x`. So the other side reads it
where it was at each rating, with the spread of `x`. (Keeping the joint covariance makes a row twice as long,
and the error in a drifting rating environment 0.244 in place of 0.247.)
"""

from dataclasses import replace

import numpy as np

from factors.inference.histories import Compressed
from factors.model.layout import FloatTable
from factors.model.parameters import Drift, Parameters, Side
from factors.model.types import Float64s, Int64s

MOST_AGE = 2.0
# Beyond these many units float32 could not tell moments apart, and no age depends on it.
_FAR = 1e5
# Of the times, so much at both ends does not count for the span: a few may be nonsense.
_ENDS = 0.02


def start_drift(side: Side, time: Float64s, ratio: float = 1.0) -> Drift | None:
    """A drift to begin to learn from, for ratings at these times (n,): velocities spread as the positions of
    `side` are, with `ratio` times the variance. None where the times do not differ.
    """
    known = time[np.isfinite(time)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [_ENDS, 1.0 - _ENDS])
    with np.errstate(over="ignore"):
        unit = float((high - low) / (1.0 - 2.0 * _ENDS))
    if not 0.0 < unit < np.inf:
        return None
    return Drift(float(low), unit, ratio * side.covariance, side.precision / ratio)


def anchor_times(drift: Drift, data: Compressed) -> Float64s:
    """When the latest rating of each row was made, (b,); 0 for a row whose times are unknown."""
    known = np.isfinite(data.time)
    latest = np.full(data.rows, -np.inf)
    np.maximum.at(latest, data.row[known], data.time[known])
    latest[np.isinf(latest)] = drift.origin
    return _counted(drift, latest)


def ages(drift: Drift, anchor_time: FloatTable, time: Float64s) -> Float64s:
    """How long before `anchor_time` (n,) each `time` (n,) was, 0 to `MOST_AGE`; 0 where it is unknown."""
    known = np.isfinite(time)
    age = np.where(known, anchor_time - _counted(drift, np.where(known, time, drift.origin)), 0.0)
    np.maximum(age, 0.0, out=age)
    return np.minimum(age, MOST_AGE, out=age)


def _counted(drift: Drift, time: Float64s) -> Float64s:
    with np.errstate(over="ignore"):
        counted: Float64s = (time - drift.origin) / drift.unit
    np.maximum(counted, -_FAR, out=counted)
    return np.minimum(counted, _FAR, out=counted)


def means_then(side: Side, rows: FloatTable, time: Float64s) -> Float64s:
    """Where `rows` (n, width) stood at `time` (n,): means (n, d). After its latest rating a row stays where
    that left it.
    """
    layout = side.layout
    mean = rows[:, layout.mean].astype(np.float64)
    if side.drift is not None:
        mean -= ages(side.drift, rows[:, layout.anchor_time], time)[:, None] * rows[:, layout.velocity]
    return mean


def latest(data: Compressed, share: float) -> Int64s:
    """The entries of `data` that are the latest `share` of their row, ascending; the time of all of them is
    known.
    """
    time = np.where(np.isfinite(data.time), data.time, -np.inf)
    order = np.lexsort((time, data.row))
    place = np.arange(len(order)) - np.repeat(data.indptr[:-1], data.counts)
    last = order[place >= np.repeat(data.counts - np.floor(share * data.counts), data.counts)]
    return np.sort(last[np.isfinite(data.time[last])])


def widened(parameters: Parameters) -> Parameters:
    """`parameters` to fold in with: velocities spread by their `widening` more than the sweeps learned."""
    drift = parameters.users.drift
    return parameters if drift is None else _spread(parameters, drift, drift.widening)


def narrowed(parameters: Parameters) -> Parameters:
    """`parameters` to sweep with: what `widened` did undone."""
    drift = parameters.users.drift
    return parameters if drift is None else _spread(parameters, drift, 1.0 / drift.widening)


def with_widening(parameters: Parameters, widening: float) -> Parameters:
    """`parameters` of a fit that goes on, with this `widening` for when it ends."""
    drift = parameters.users.drift
    if drift is None:
        return parameters
    return replace(parameters, users=replace(parameters.users, drift=replace(drift, widening=widening)))


def _spread(parameters: Parameters, drift: Drift, factor: float) -> Parameters:
    spread = replace(drift, covariance=drift.covariance * factor, precision=drift.precision / factor)
    return replace(parameters, users=replace(parameters.users, drift=spread))


def learn_drift(drift: Drift, mean: Float64s, covariance: Float64s) -> Drift:
    """`drift` with the prior that the posterior velocities, `mean` (n, d) and `covariance` (n, d, d), speak
    for. The old one counts as a tenth of d + 1 further rows.
    """
    n, dim = mean.shape
    if n == 0:
        return drift
    strength = 0.1 * (dim + 1.0)
    scatter = mean.T @ mean + covariance.sum(axis=0)
    learned = (scatter + strength * drift.covariance) / (n + strength)
    learned = 0.5 * (learned + learned.T)
    learned += 1e-9 * np.trace(learned) / dim * np.eye(dim)
    return replace(drift, covariance=learned, precision=np.asarray(np.linalg.inv(learned)))
