"""From a score to a rating: the Gaussian link, and the ordinal one (ordered probit).

Invariant: whatever the score, the expected rating lies on the scale and its standard deviation is finite and
above 0.

Ordinal: the rating is the number of cut points `c_1 < ... < c_(L-1)` below `z = s + noise` (McCullagh, 1980),
so that `P(rating > l) = Phi((s - c_l) / sqrt(variance of s + noise))`.
"""

import numpy as np
from scipy.special import ndtr

from factors.errors import FactorsError
from factors.model.parameters import Parameters
from factors.model.scale import scale_levels, scale_range
from factors.model.types import Float64s

# A rating is known no better than this fraction of the range (or of 1, on a scale with one value): std stays
# above 0.
MIN_STD = 1e-6


def exceedance(parameters: Parameters, mean: Float64s, variance: Float64s) -> Float64s:
    """P(rating > level l) for the levels but the last: (m, L - 1), from scores with `mean` and `variance`
    (m,).
    """
    spread = np.sqrt(parameters.variance_scale * (variance + parameters.noise))
    return np.asarray(ndtr((mean[:, None] - parameters.cuts) / spread[:, None]))


def rating_moments(parameters: Parameters, mean: Float64s, variance: Float64s) -> tuple[Float64s, Float64s]:
    """Expected rating, clipped to the scale, and standard deviation of the rating itself, both (m,)."""
    scale = parameters.scale
    floor = MIN_STD * scale_range(scale)
    if parameters.link == "gaussian":
        rating = np.minimum(np.maximum(mean, scale.low), scale.high)
        return rating, np.sqrt(
            np.maximum(parameters.variance_scale * (variance + parameters.noise), floor * floor)
        )
    above = exceedance(parameters, mean, variance)
    steps = above.sum(axis=1)
    square = above @ (2.0 * np.arange(above.shape[1]) + 1.0)
    step = (scale.high - scale.low) / above.shape[1]
    std = step * np.sqrt(np.maximum(square - steps * steps, 0.0))
    return scale.low + step * steps, np.maximum(std, floor)


def rating_distribution(parameters: Parameters, mean: Float64s, variance: Float64s) -> Float64s:
    """Probability of each level of the scale, (m, levels); rows sum to 1. Raises where the scale has no
    steps.
    """
    scale = parameters.scale
    levels = scale_levels(scale)
    if levels == 0:
        raise FactorsError("a scale without steps has no probability of each step")
    if levels == 1:
        return np.ones((len(mean), 1))
    if parameters.link == "gaussian":
        floor = MIN_STD * (scale.high - scale.low)
        spread = np.sqrt(np.maximum(parameters.variance_scale * (variance + parameters.noise), floor * floor))
        edges = np.linspace(scale.low, scale.high, levels)
        above = ndtr((mean[:, None] - 0.5 * (edges[1:] + edges[:-1])) / spread[:, None])
    else:
        above = exceedance(parameters, mean, variance)
    bounds = np.concatenate([np.ones((len(mean), 1)), above, np.zeros((len(mean), 1))], axis=1)
    return np.asarray(bounds[:, :-1] - bounds[:, 1:])
