"""Ratings as intervals of a latent value: the ordered probit's sites and its cut points.

Invariant: weights are above 0 and finite for any score, however far from the interval that was seen.

A rating of level `l` says that `z = s + noise` fell between the cut points `c_l` and `c_(l+1)`. As in
expectation propagation (Minka, 2001; Stern, Herbrich and Graepel, 2009, for ratings), it is replaced by a
Gaussian site on the own part of `s`: what the posterior says without that rating is taken as foretold, and
the site is what turns its mean and variance into those of the posterior that has seen the interval. The other
side's part of the variance of `s` acts as noise. Weights come out small where the interval is wide against
the noise, which mean field (weight 1 / noise) misses.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from factors.settings import scale_levels
from factors.tables import Float64s, Int64s, Scale

_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
# Ratings from which the cut points are learned in one sweep: more do not move them.
RATINGS_FOR_CUTS = 10_000
# Undamped steps towards the fixed point swing where the noise is small against the intervals (MovieLens,
# where it is not: 12 steps to the last digit; a world without noise: none at all). So the damping follows the
# noise.
_LEAST_DAMPING, _DAMPING_SLOPE = 0.65, 0.5
# Approximate cavities can come out negative; no rating may hold more than all but this part of a posterior.
_LEAST_CAVITY = 0.02
# Smallest noise deviation, in mean distances of cut points: without noise each site would be a wall.
_LEAST_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Sites:
    """What each rating says to a half-step: precision `weight` (n,), and `linear` (n,) = precision times its
    value less all offsets. With the ordinal link also the `mean` and `variance` (n,) that all but the rating
    itself foretell of its score.
    """

    weight: Float64s
    linear: Float64s
    mean: Float64s
    variance: Float64s


@dataclass(frozen=True, slots=True)
class EntryScores:
    """What a posterior says of the score of each entry (n,): `mean`; `own_variance`, from the side that is
    being solved; `other_variance`, from all else; `offset`, the part of the mean that is given.
    """

    mean: Float64s
    own_variance: Float64s
    other_variance: Float64s
    offset: Float64s


def rating_levels(scale: Scale, value: Float64s) -> Int64s:
    """The level (0 to levels - 1) nearest to each rating."""
    last = scale_levels(scale) - 1
    level = np.rint((value - scale.low) * (last / (scale.high - scale.low)))
    return np.clip(level, 0, last).astype(np.int64)


def _interval(low: Float64s, high: Float64s) -> tuple[Float64s, Float64s, Float64s]:
    """`log(Phi(high) - Phi(low))`, and the normal density at `low` and at `high` over that mass."""
    # The mirror image has its mass in the lower tail, where differences of Phi keep their digits.
    flip = low + high > 0
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    log_a, log_b = log_ndtr(a), log_ndtr(b)
    log_mass = log_b + np.log1p(-np.exp(np.minimum(log_a - log_b, -1e-14)))
    ratio_low = np.exp(-0.5 * low * low - _LOG_ROOT_TWO_PI - log_mass)
    ratio_high = np.exp(-0.5 * high * high - _LOG_ROOT_TWO_PI - log_mass)
    return log_mass, ratio_low, ratio_high


def interval_derivatives(low: Float64s, high: Float64s) -> tuple[Float64s, Float64s, Float64s]:
    """Of `log(Phi(high) - Phi(low))`: itself, minus its slope along a common shift of both, and minus its
    second derivative along that shift. Elementwise; `low < high`, infinite bounds allowed.
    """
    log_mass, ratio_low, ratio_high = _interval(low, high)
    slope = ratio_low - ratio_high
    curvature = slope * slope
    curvature += np.where(np.isfinite(high), high, 0.0) * ratio_high
    curvature -= np.where(np.isfinite(low), low, 0.0) * ratio_low
    return log_mass, slope, np.clip(curvature, 1e-9, 1.0)


def ordinal_sites(
    cuts: Float64s, noise: float, level: Int64s, scores: EntryScores, before: Sites | None, *, damping: float
) -> Sites:
    """Sites (n,) of ratings of `level`, from what the posterior says of their scores, the sites in it
    (`before`) taken out again. None stands for a posterior without them, the prior. Goes `damping` of the way
    from `before`.
    """
    mean, own = scores.mean, scores.own_variance
    if before is not None:
        shrink = np.maximum(1.0 - before.weight * own, _LEAST_CAVITY)
        mean = (mean - own * (before.linear + before.weight * scores.offset)) / shrink
        own = own / shrink
    foreseen = own + scores.other_variance
    _, slope, curvature = level_derivatives(cuts, noise, level, mean, foreseen)
    # What is left of the curvature of the whole when the part of this side's own spread is taken out.
    weight = curvature / np.maximum(1.0 - curvature * own, _LEAST_CAVITY)
    weight = np.clip(weight, 1e-9 / noise, 1.0 / noise)
    linear = weight * (mean - scores.offset + slope / curvature)
    if before is not None:
        weight = before.weight + damping * (weight - before.weight)
        linear = before.linear + damping * (linear - before.linear)
    return Sites(weight, linear, mean, foreseen)


def level_derivatives(
    cuts: Float64s, noise: float, level: Int64s, mean: Float64s, variance: Float64s
) -> tuple[Float64s, Float64s, Float64s]:
    """`log p(level)`, its slope in the mean and minus its curvature, (n,), for scores N(mean, variance)."""
    bounds = np.concatenate([[-np.inf], cuts, [np.inf]])
    scale = 1.0 / np.sqrt(noise + variance)
    low, high = (bounds[level] - mean) * scale, (bounds[level + 1] - mean) * scale
    log_mass, slope, curvature = interval_derivatives(low, high)
    return log_mass, slope * scale, curvature * scale * scale


def start_cuts(scale: Scale) -> Float64s:
    """Cut points for scores in units of the ratings: half-way between the levels."""
    levels = np.linspace(scale.low, scale.high, scale_levels(scale))
    return np.asarray(0.5 * (levels[1:] + levels[:-1]))


def learn_link(
    cuts: Float64s, noise: float, level: Int64s, mean: Float64s, variance: Float64s
) -> tuple[Float64s, float]:
    """Cut points and noise variance one Newton step further up `sum log p(level)` of scores foretold, each
    without its own rating (`leftout`).

    The Hessian in (cut points, log noise deviation) is that of differences of the gradient; the step is
    halved until the bound grows and the order of the cut points stands. Where no step does, both stay.
    """
    deviation = math.sqrt(noise)
    unit = deviation + float(cuts[-1] - cuts[0]) / len(cuts)
    point = np.append(cuts, math.log(deviation) * unit)

    def bound(at: Float64s) -> tuple[float, Float64s]:
        if np.any(np.diff(at[:-1]) <= 1e-4 * unit):
            return -math.inf, np.zeros_like(at)
        value, gradient = _likelihood(at[:-1], math.exp(2.0 * at[-1] / unit), level, mean, variance)
        gradient[-1] /= unit
        # A level that nobody gave has no say in its cut points: the pull keeps them near where they are.
        pull = (at - point) / (unit * unit)
        return value - 0.5 * float(pull @ (at - point)), gradient - pull

    start, gradient = bound(point)
    h = 1e-4 * unit
    hessian = np.stack([(bound(point + offset)[1] - gradient) / h for offset in h * np.eye(len(point))])
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    values = np.minimum(values, -1e-6 * np.abs(values).max() - 1e-12)
    step = -vectors @ ((vectors.T @ gradient) / values)
    for halvings in range(8):
        moved = point + step * 0.5**halvings
        if np.abs(moved - point).max() < unit and bound(moved)[0] > start:
            cuts, noise = moved[:-1], math.exp(2.0 * moved[-1] / unit)
            break
    return cuts, max(noise, (_LEAST_NOISE * _distance(cuts, noise)) ** 2)


def fold_in_damping(cuts: Float64s, noise: float) -> float:
    """How far a step of a fold-in goes towards where it points."""
    return min(_LEAST_DAMPING + _DAMPING_SLOPE * math.sqrt(noise) / _distance(cuts, noise), 1.0)


def _distance(cuts: Float64s, noise: float) -> float:
    """Mean distance of neighbouring cut points; with one cut point, the noise deviation."""
    return float(cuts[-1] - cuts[0]) / (len(cuts) - 1) if len(cuts) > 1 else math.sqrt(noise)


def _likelihood(
    cuts: Float64s, noise: float, level: Int64s, mean: Float64s, variance: Float64s
) -> tuple[float, Float64s]:
    """`sum log p(level)` and its gradient in the cut points and in the log of the noise deviation."""
    bounds = np.concatenate([[-np.inf], cuts, [np.inf]])
    scale = 1.0 / np.sqrt(noise + variance)
    low, high = (bounds[level] - mean) * scale, (bounds[level + 1] - mean) * scale
    log_mass, ratio_low, ratio_high = _interval(low, high)
    of_low = np.bincount(level, ratio_low * scale, len(bounds))
    of_high = np.bincount(level + 1, ratio_high * scale, len(bounds))
    with np.errstate(invalid="ignore"):
        stretch = np.where(np.isfinite(low), low, 0.0) * ratio_low
        stretch -= np.where(np.isfinite(high), high, 0.0) * ratio_high
    of_noise = float(np.sum(stretch * scale * scale)) * noise
    return float(log_mass.sum()), np.append((of_high - of_low)[1:-1], of_noise)
