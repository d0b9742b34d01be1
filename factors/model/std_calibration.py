"""The factor of a standard deviation, by the ratings behind a pair (`factors.training.calibration` learns
it).

Invariant: the same pair has the same factor, alone or among thousands.
"""

import math

import numpy as np
from scipy.special import ndtri

from factors.model.layout import FloatTable
from factors.model.parameters import STD_TERMS, Parameters
from factors.model.types import Float64s

# Standard deviations to either side that hold 90 % of a normal.
NINETY = float(ndtri(0.95))
# No correction goes beyond a factor of 4, either way: counts far outside those of the fit stay harmless.
_MOST_LOG_FACTOR = math.log(4.0)


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
