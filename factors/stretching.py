"""By how much a standard deviation is stretched, by the ratings behind a pair (`calibration` learns it).

Invariant: the same pair is stretched alike, alone or among thousands.
"""

import math

import numpy as np

from factors.parameters import STRETCH_TERMS, Parameters
from factors.tables import Float64s

# No correction goes beyond this factor, either way.
_MOST_STRETCH = math.log(4.0)


def stretch_of(parameters: Parameters, user_count: Float64s, item_count: Float64s) -> Float64s:
    """The factor (m,) of the standard deviations of pairs whose rows have so many ratings."""
    exponent = features_of(user_count, item_count) @ parameters.stretch
    return np.asarray(np.exp(np.minimum(np.maximum(exponent, -_MOST_STRETCH), _MOST_STRETCH)))


def features_of(user_count: Float64s, item_count: Float64s) -> Float64s:
    """What the exponent of the factor is linear in, (m, STRETCH_TERMS)."""
    user, item = 1.0 + user_count, 1.0 + item_count
    features = np.empty((len(user), STRETCH_TERMS))
    features[:, 0] = 1.0
    np.log(user, out=features[:, 1])
    np.log(item, out=features[:, 2])
    np.divide(1.0, user, out=features[:, 3])
    np.divide(1.0, item, out=features[:, 4])
    return features
