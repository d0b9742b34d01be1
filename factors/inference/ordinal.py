"""Ratings as Gaussian sites, and with the ordinal link as intervals of a latent value: sites and cut points.

Invariant: weights are above 0 and finite for any score, however far from the interval of its rating.

A rating of level `l` says that `z = s + noise` fell between the cut points `c_l` and `c_(l+1)`. As in
expectation propagation (Minka, 2001; Stern, Herbrich and Graepel, 2009, for ratings), a Gaussian site on the
own part of `s` stands for it. The cavity is the posterior without that rating; the site turns its mean and
variance into those of the posterior that has seen the interval. The other side's part of the variance of `s`
acts as noise. Weights come out small where the interval is wide against the noise, which mean field (weight
1 / noise) misses.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx

from factors.model.types import Float64s, Int64s

_ROOT_HALF = math.sqrt(0.5)
# Twice the normal density at 0.
_TWO_DENSITIES = math.sqrt(2.0 / math.pi)
# Approximate cavities can come out negative; no rating may hold more than all but this part of a posterior.
LEAST_CAVITY = 0.02


_NOTHING: Float64s = np.zeros(0)


@dataclass(frozen=True, slots=True)
class Sites:
    """The Gaussian that stands for each rating in a half-step: precision `weight` (n,), and `linear` (n,) =
    precision times its value less all offsets. With the ordinal link also the `mean` and `variance` (n,) of
    its score without the rating itself; empty with the Gaussian link, and where loops are not asked for them.
    """

    weight: Float64s
    linear: Float64s
    mean: Float64s
    variance: Float64s

    @staticmethod
    def of(weight: Float64s, linear: Float64s) -> "Sites":
        """Return sites that do not say what the scores are without their ratings."""
        return Sites(weight, linear, _NOTHING, _NOTHING)


NO_SITES = Sites.of(_NOTHING, _NOTHING)


@dataclass(frozen=True, slots=True)
class EntryScores:
    """Moments of the score of each entry (n,) under a posterior: `mean`; `own_variance`, from the side that
    is being solved; `other_variance`, from all else; `offset`, the part of the mean that the posterior does
    not change.
    """

    mean: Float64s
    own_variance: Float64s
    other_variance: Float64s
    offset: Float64s


@dataclass(frozen=True, slots=True)
class Interval:
    """Intervals mirrored so that their mass is in the lower tail, where it keeps its digits: from `low` to
    `high`, the normal density at either end over the mass, and the mass over half of `exp(-high^2 / 2)`.
    """

    low: Float64s
    high: Float64s
    ratio_low: Float64s
    ratio_high: Float64s
    scaled_mass: Float64s

    @property
    def curvature(self) -> Float64s:
        """Minus the second derivative of the log of the mass along a common shift of both ends."""
        curvature = self.ratio_high - self.ratio_low
        curvature *= curvature
        curvature += self.high * self.ratio_high
        curvature -= self.low * self.ratio_low
        np.maximum(curvature, 1e-9, out=curvature)
        return np.minimum(curvature, 1.0, out=curvature)

    @property
    def log_mass(self) -> Float64s:
        """`log(Phi(high) - Phi(low))`."""
        return np.asarray(np.log(0.5 * self.scaled_mass) - 0.5 * self.high * self.high)


def interval_of(low: Float64s, high: Float64s) -> Interval:
    """Return the intervals from `low` to `high` (n,); `low < high`, infinite bounds allowed."""
    a, b = np.minimum(low, -high), np.minimum(high, -low)
    # Larger numbers have no square in float64, and from 38 deviations on the scaled mass is no number.
    np.maximum(a, -1e100, out=a)
    np.minimum(b, 37.0, out=b)
    # How far the density falls from the near end to the far one. Everything is counted in units of the
    # density at the near end, so that nothing vanishes that is not nothing.
    fall = b - a
    fall *= a + b
    fall *= 0.5
    np.exp(fall, out=fall)
    near = erfcx(b * -_ROOT_HALF)
    a_mass = erfcx(a * -_ROOT_HALF)
    a_mass *= fall
    mass = near - a_mass
    # Intervals so narrow that their mass is lost in rounding have this part of what lies below them.
    near *= 1e-14
    np.maximum(mass, near, out=mass)
    ratio_high = _TWO_DENSITIES / mass
    fall *= ratio_high
    return Interval(a, b, fall, ratio_high, mass)


def interval_derivatives(low: Float64s, high: Float64s) -> tuple[Float64s, Float64s]:
    """Return minus the slope of `log(Phi(high) - Phi(low))` along a common shift of both, and minus its
    second derivative. Elementwise; `low < high`, infinite bounds allowed.
    """
    interval = interval_of(low, high)
    # The density is higher at the end that is nearer to 0.
    slope = interval.ratio_high - interval.ratio_low
    return np.copysign(slope, low + high, out=slope), interval.curvature


def level_bounds(cuts: Float64s, level: Int64s) -> tuple[Float64s, Float64s]:
    """Return the cut points below and above each `level` (n,)."""
    bounds = np.concatenate([[-np.inf], cuts, [np.inf]])
    return bounds[level], bounds[level + 1]


def ordinal_sites(
    bounds: tuple[Float64s, Float64s],
    noise: float,
    scores: EntryScores,
    before: Sites | None,
    *,
    damping: float,
) -> Sites:
    """Return the sites (n,) of ratings whose levels lie between `bounds`, from the moments of their `scores`
    under a posterior that has the sites `before` in it; None stands for the prior. Goes `damping` of the way
    from `before`, and all of it from a site of weight 0, which says nothing yet.
    """
    mean, own = scores.mean, scores.own_variance
    if before is not None:
        # The cavity: each site is taken out of the posterior again.
        shrink = before.weight * own
        np.subtract(1.0, shrink, out=shrink)
        np.maximum(shrink, LEAST_CAVITY, out=shrink)
        taken = before.weight * scores.offset
        taken += before.linear
        taken *= own
        mean = mean - taken
        mean /= shrink
        own = own / shrink
    predicted = own + scores.other_variance
    scale = predicted + noise
    np.sqrt(scale, out=scale)
    low, high = ((bound - mean) / scale for bound in bounds)
    slope, curvature = interval_derivatives(low, high)
    slope /= scale
    scale *= scale
    curvature /= scale
    # The site has the curvature that is left when the part of this side's own variance is taken out.
    weight = curvature * own
    np.subtract(1.0, weight, out=weight)
    np.maximum(weight, LEAST_CAVITY, out=weight)
    np.divide(curvature, weight, out=weight)
    np.maximum(weight, 1e-9 / noise, out=weight)
    np.minimum(weight, 1.0 / noise, out=weight)
    linear = slope
    linear /= curvature
    linear += mean
    linear -= scores.offset
    linear *= weight
    if before is not None:
        part = np.where(before.weight > 0.0, damping, 1.0)
        _damp(weight, before.weight, part)
        _damp(linear, before.linear, part)
    return Sites(weight, linear, mean, predicted)


def _damp(new: Float64s, old: Float64s, damping: Float64s) -> None:
    new -= old
    new *= damping
    new += old


def learn_link(
    cuts: Float64s, noise: float, level: Int64s, mean: Float64s, variance: Float64s
) -> tuple[Float64s, float]:
    """Return cut points and noise variance after one Newton step up `sum log p(level)`; `mean` and `variance`
    (n,): of the scores, each without its own rating (`leave_one_out`).

    The step is halved until the likelihood grows and the order of the cut points stands. Where no step does,
    both stay.
    """
    deviation = math.sqrt(noise)
    unit = deviation + float(cuts[-1] - cuts[0]) / len(cuts)
    point = np.append(cuts, math.log(deviation) * unit)

    def bound(at: Float64s) -> tuple[float, Float64s]:
        if np.any(np.diff(at[:-1]) <= 1e-4 * unit):
            return -math.inf, np.zeros_like(at)
        value, gradient = _likelihood(at[:-1], math.exp(2.0 * at[-1] / unit), level, mean, variance)
        gradient[-1] /= unit
        # A level without ratings says nothing of its cut points: the pull keeps them near where they are.
        pull = (at - point) / (unit * unit)
        return value - 0.5 * float(pull @ (at - point)), gradient - pull

    start, gradient = bound(point)
    h = 1e-4 * unit
    # In (cut points, log noise deviation), by differences of the gradient.
    hessian = np.stack([(bound(point + offset)[1] - gradient) / h for offset in h * np.eye(len(point))])
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    values = np.minimum(values, -1e-6 * np.abs(values).max() - 1e-12)
    step = -vectors @ ((vectors.T @ gradient) / values)
    for halvings in range(8):
        moved = point + step * 0.5**halvings
        if np.abs(moved - point).max() < unit and bound(moved)[0] > start:
            cuts, noise = moved[:-1], math.exp(2.0 * moved[-1] / unit)
            break
    # Without noise each site would be a wall: its deviation is at least a fiftieth of an interval.
    return cuts, max(noise, (0.02 * _distance(cuts, noise)) ** 2)


def fold_in_damping(cuts: Float64s, noise: float) -> float:
    """Return the damping of a fold-in that runs to the end.

    Undamped steps swing where the noise is small against the intervals: a world without noise has no fixed
    point then, while MovieLens is there in 12 steps, to the last digit.
    """
    return min(0.65 + 0.5 * math.sqrt(noise) / _distance(cuts, noise), 1.0)


def _distance(cuts: Float64s, noise: float) -> float:
    """Return mean distance of neighbouring cut points; with one cut point, the noise deviation."""
    return float(cuts[-1] - cuts[0]) / (len(cuts) - 1) if len(cuts) > 1 else math.sqrt(noise)


def _likelihood(
    cuts: Float64s, noise: float, level: Int64s, mean: Float64s, variance: Float64s
) -> tuple[float, Float64s]:
    """Return `sum log p(level)` and its gradient in the cut points and in the log of the noise deviation."""
    scale = 1.0 / np.sqrt(noise + variance)
    low, high = ((bound - mean) * scale for bound in level_bounds(cuts, level))
    interval = interval_of(low, high)
    flipped = low + high > 0
    ratio_low = np.where(flipped, interval.ratio_high, interval.ratio_low)
    ratio_high = np.where(flipped, interval.ratio_low, interval.ratio_high)
    of_low = np.bincount(level, ratio_low * scale, len(cuts) + 2)
    of_high = np.bincount(level + 1, ratio_high * scale, len(cuts) + 2)
    # The same for the mirror image.
    slope_of_scale = interval.low * interval.ratio_low - interval.high * interval.ratio_high
    of_noise = float(np.sum(slope_of_scale * scale * scale)) * noise
    return float(interval.log_mass.sum()), np.append((of_high - of_low)[1:-1], of_noise)
