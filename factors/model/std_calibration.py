"""By how much a standard deviation is stretched, by the ratings behind a pair (`calibration` learns it).

Invariant: the same pair is stretched alike, alone or among thousands.
"""

import math

import numpy as np

from factors.model.layout import FloatTable
from factors.model.parameters import STD_TERMS, Parameters
from factors.model.types import Float64s

# No correction goes beyond this factor, either way.
_MOST_LOG_FACTOR = math.log(4.0)


def std_factors(parameters: Parameters, counts: FloatTable) -> Float64s:
    """The factor (m,) of the standard deviations of pairs; `counts` (2, m): ratings of user and item."""
    exponent = parameters.std_calibration @ _features(counts)
    return np.asarray(np.exp(np.minimum(np.maximum(exponent, -_MOST_LOG_FACTOR), _MOST_LOG_FACTOR)))


def calibration_features(user_count: Float64s, item_count: Float64s) -> Float64s:
    """What the exponent of the factor is linear in, (m, STD_TERMS)."""
    return _features(np.stack([user_count, item_count])).T


def _features(counts: FloatTable) -> Float64s:
    ratings = np.add(counts, 1.0, dtype=np.float64)
    features = np.empty((STD_TERMS, counts.shape[1]))
    features[0] = 1.0
    np.log(ratings, out=features[1:3])
    np.divide(1.0, ratings, out=features[3:5])
    return features
