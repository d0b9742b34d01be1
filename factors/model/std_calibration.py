"""By how much a standard deviation is stretched, by the ratings behind a pair (`calibration` learns it).

Invariant: the same pair is stretched alike, alone or among thousands.
"""

import math

import numpy as np

from factors.model.layout import FloatTable
from factors.model.parameters import STRETCH_TERMS, Parameters
from factors.model.types import Float64s

# No correction goes beyond this factor, either way.
_MOST_STRETCH = math.log(4.0)


def stretch_of(parameters: Parameters, counts: FloatTable) -> Float64s:
    """The factor (m,) of the standard deviations of pairs; `counts` (2, m): ratings of user and item."""
    exponent = parameters.stretch @ _features(counts)
    return np.asarray(np.exp(np.minimum(np.maximum(exponent, -_MOST_STRETCH), _MOST_STRETCH)))


def features_of(user_count: Float64s, item_count: Float64s) -> Float64s:
    """What the exponent of the factor is linear in, (m, STRETCH_TERMS)."""
    return _features(np.stack([user_count, item_count])).T


def _features(counts: FloatTable) -> Float64s:
    ratings = np.add(counts, 1.0, dtype=np.float64)
    features = np.empty((STRETCH_TERMS, counts.shape[1]))
    features[0] = 1.0
    np.log(ratings, out=features[1:3])
    np.divide(1.0, ratings, out=features[3:5])
    return features
