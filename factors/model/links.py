"""From a score to a rating: the Gaussian link, and the ordinal one (ordered probit); and the factor of a
standard deviation, by the ratings behind a pair (`factors.training.calibration` learns it).

Invariant: whatever the score, the expected rating lies on the scale and its standard deviation is finite and
above 0; the same pair has the same factor, alone or among thousands.

Ordinal: the rating is the number of cut points `c_1 < ... < c_(L-1)` below `z = s + noise` (McCullagh, 1980),
so that `P(rating > l) = Phi((s - c_l) / sqrt(variance of s + noise))`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
from scipy.special import ndtr, ndtri

from factors.errors import FactorsError
from factors.model.layout import FloatTable
from factors.model.parameters import STD_TERMS, Parameters
from factors.model.scale import MOST_LEVELS, rating_levels, scale_levels, scale_range
from factors.model.types import Float64s

# Means and standard deviations of the table that bounds ordinal ratings, within a hundredth of a level or so.
_MEANS, _DEVIATIONS = 512, 64
# An impossible rating costs 14 nats at most: one such decides nothing.
_LEAST_CHANCE = 1e-6
# So many times the noise: beyond it a score says next to nothing.
_LARGEST_STD = 100.0
# Standard deviations to either side that hold 90 % of a normal.
NINETY = float(ndtri(0.95))
# No correction goes beyond a factor of 4, either way: counts far outside those of the fit stay harmless.
_MOST_LOG_FACTOR = math.log(4.0)


class RatingLink(ABC):
    """The link of a model with these `parameters`. Scores have `mean` and `variance` (m,), without noise.

    `follows_mean`: whether the expected rating depends on the mean of a score alone.
    """

    follows_mean: ClassVar[bool]

    def __init__(self, parameters: Parameters) -> None:
        self._scale, self._noise = parameters.scale, parameters.noise
        self._variance_scale = parameters.variance_scale
        self._levels = scale_levels(parameters.scale)
        # Relative to the range, so that a standard deviation is above 0 on any scale.
        self._min_std = 1e-6 * scale_range(parameters.scale)

    @abstractmethod
    def rating_moments(self, mean: Float64s, variance: Float64s) -> tuple[Float64s, Float64s]:
        """Return expected rating, clipped to the scale, and standard deviation of the rating itself, both
        (m,)."""

    @abstractmethod
    def highest_ratings(self, mean: Float64s) -> Float64s:
        """Return what the expected ratings of scores with this `mean` (m,) do not exceed, whatever the
        variances.
        """

    @property
    @abstractmethod
    def score_range(self) -> tuple[float, float]:
        """From which mean of a score to which one the highest rating changes."""

    @abstractmethod
    def exceedance(self, mean: Float64s, variance: Float64s) -> Float64s:
        """Return P(rating > level) for the levels of the scale but the last, (m, levels - 1)."""

    def rating_distribution(self, mean: Float64s, variance: Float64s) -> Float64s:
        """Return probability of each level of the scale, (m, levels); rows sum to 1. Raises `FactorsError`
        where the scale has no steps.
        """
        if self._levels == 0:
            raise FactorsError("a scale without steps has no probability of each step")
        if self._levels == 1:
            return np.ones((len(mean), 1))
        # Differences of neighbours, with certainty below the lowest level and none above the highest.
        above = self.exceedance(mean, variance)
        bounds = np.concatenate([np.ones((len(mean), 1)), above, np.zeros((len(mean), 1))], axis=1)
        return np.asarray(bounds[:, :-1] - bounds[:, 1:])

    def log_likelihoods(self, value: Float64s, mean: Float64s, variance: Float64s) -> Float64s:
        """Return nats of each rating `value` (m,): of its level where the scale has several, else, and where
        it has many, of its density but for a constant.
        """
        if 1 < self._levels <= MOST_LEVELS:
            level = rating_levels(self._scale, value)
            chance = self.rating_distribution(mean, variance)[np.arange(len(value)), level]
            return np.asarray(np.log(np.maximum(chance, _LEAST_CHANCE)))
        rating, std = self.rating_moments(mean, variance)
        density = -0.5 * ((value - rating) / std) ** 2 - np.log(std)
        return np.asarray(np.maximum(density, math.log(_LEAST_CHANCE / scale_range(self._scale))))


class GaussianLink(RatingLink):
    """The rating is the score with noise."""

    follows_mean = True

    def rating_moments(self, mean: Float64s, variance: Float64s) -> tuple[Float64s, Float64s]:
        """See `RatingLink`."""
        return self.highest_ratings(mean), self._std(variance)

    def highest_ratings(self, mean: Float64s) -> Float64s:
        """See `RatingLink`: the rating itself."""
        return np.minimum(np.maximum(mean, self._scale.low), self._scale.high)

    @property
    def score_range(self) -> tuple[float, float]:
        """See `RatingLink`."""
        return self._scale.low, self._scale.high

    def exceedance(self, mean: Float64s, variance: Float64s) -> Float64s:
        """See `RatingLink`: beyond the middle between two levels."""
        edges = np.linspace(self._scale.low, self._scale.high, self._levels)
        middle = 0.5 * (edges[1:] + edges[:-1])
        return np.asarray(ndtr((mean[:, None] - middle) / self._std(variance)[:, None]))

    def _std(self, variance: Float64s) -> Float64s:
        least = self._min_std * self._min_std
        return np.sqrt(np.maximum(self._variance_scale * (variance + self._noise), least))


class OrdinalLink(RatingLink):
    """The rating is the number of cut points below the score with noise."""

    follows_mean = False

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self._cuts = parameters.cuts
        self._step = (self._scale.high - self._scale.low) / len(parameters.cuts)
        # The square of a level is the sum of these over the levels up to it.
        self._odd_numbers = 2.0 * np.arange(len(parameters.cuts)) + 1.0
        # What ratings of one level differ by, where the scale has more of them than the link.
        finer = self._levels != len(parameters.cuts) + 1
        self._within = self._step * self._step / 12.0 if finer else 0.0

    def rating_moments(self, mean: Float64s, variance: Float64s) -> tuple[Float64s, Float64s]:
        """See `RatingLink`."""
        above = self._above(self._cuts, mean, variance)
        steps = above.sum(axis=1)
        spread = self._step * self._step * np.maximum(above @ self._odd_numbers - steps * steps, 0.0)
        std = np.sqrt(spread + self._within)
        return self._scale.low + self._step * steps, np.maximum(std, self._min_std)

    def highest_ratings(self, mean: Float64s) -> Float64s:
        """See `RatingLink`: from a table, which is made at the first call."""
        return self._scale.low + self._step * self._bounds.at(mean)

    @property
    def score_range(self) -> tuple[float, float]:
        """See `RatingLink`."""
        bounds = self._bounds
        return bounds.start, bounds.start + bounds.width * (len(bounds.steps) - 1)

    def exceedance(self, mean: Float64s, variance: Float64s) -> Float64s:
        """See `RatingLink`: beyond the cut points, or where these lie between some of them."""
        return self._above(self._edges, mean, variance)

    def _above(self, cuts: Float64s, mean: Float64s, variance: Float64s) -> Float64s:
        std = np.sqrt(self._variance_scale * (variance + self._noise))
        return np.asarray(ndtr((mean[:, None] - cuts) / std[:, None]))

    @cached_property
    def _edges(self) -> Float64s:
        """The cut points of the scale's own levels, (levels - 1,)."""
        cuts, own = self._cuts, self._levels - 1
        if not self._within or own < 1:
            return cuts
        # Between cut points, and on beyond the outer two as far apart as the next ones.
        ends = 2 * cuts[:1] - cuts[1:2], 2 * cuts[-1:] - cuts[-2:-1]
        places = np.arange(-0.5, len(cuts) + 1) / len(cuts)
        known = np.concatenate([ends[0], cuts, ends[1]])
        return np.asarray(np.interp((np.arange(own) + 0.5) / own, places, known))

    @cached_property
    def _bounds(self) -> "_OrdinalBounds":
        return _OrdinalBounds.of(self._cuts, math.sqrt(self._variance_scale * self._noise))


@dataclass(frozen=True, slots=True)
class _OrdinalBounds:
    """At most so many `steps` (k,) above the lowest level are expected of a score whose mean is not above
    `start` plus so many times `width`, whatever its variance.
    """

    start: float
    width: float
    steps: Float64s

    @classmethod
    def of(cls, cuts: Float64s, least_std: float) -> "_OrdinalBounds":
        """Return the bounds for scores whose standard deviation with noise is at least `least_std`."""
        # Beyond four deviations from the outer cuts a score is as good as at the end of the scale.
        means = np.linspace(cuts[0] - 4 * least_std, cuts[-1] + 4 * least_std, _MEANS)
        # As the deviation grows, cuts below the mean are exceeded less likely, those above it more likely: of
        # all deviations between two, the smaller bounds the former and the larger the latter.
        deviations = np.append(least_std * np.geomspace(1.0, _LARGEST_STD, _DEVIATIONS), np.inf)
        apart, steps = means[:, None] - cuts, np.zeros(_MEANS)
        for smaller, larger in pairwise(deviations.tolist()):
            above = ndtr(apart / np.where(apart > 0, smaller, larger)).sum(axis=1)
            steps = np.maximum(steps, above)
        # Beyond the last mean.
        return cls(float(means[0]), float(means[1] - means[0]), np.append(steps, float(len(cuts))))

    def at(self, mean: Float64s) -> Float64s:
        """Return the bounds (m,) of scores with this `mean` (m,)."""
        place = np.ceil((mean - self.start) / self.width)
        return self.steps[np.clip(place, 0, len(self.steps) - 1).astype(np.int64)]


def link_of(parameters: Parameters) -> RatingLink:
    """Return the link of a model with these parameters."""
    return GaussianLink(parameters) if parameters.link == "gaussian" else OrdinalLink(parameters)


def std_factors(parameters: Parameters, counts: FloatTable) -> Float64s:
    """Return the factor (m,) of the std of each pair; `counts` (2, m): ratings of its user and its item."""
    exponent = parameters.std_calibration @ calibration_features(counts)
    # For a single pair in two thirds of the time of `np.clip`.
    return np.asarray(np.exp(np.minimum(np.maximum(exponent, -_MOST_LOG_FACTOR), _MOST_LOG_FACTOR)))


def calibration_features(counts: FloatTable) -> Float64s:
    """Return the features (STD_TERMS, m) in which the logarithm of the factor is linear."""
    ratings = np.add(counts, 1.0, dtype=np.float64)
    features = np.empty((STD_TERMS, counts.shape[1]))
    features[0] = 1.0
    np.log(ratings, out=features[1:3])
    np.divide(1.0, ratings, out=features[3:5])
    return features
