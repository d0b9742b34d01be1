"""What a list is ordered by: relevance and expected rating in one number. Invariant: an item that is not
relevant has the score 0, however well it would be rated, and stands behind every item that is.
"""

from typing import TypeVar

import numpy as np

from factors.model.types import Float32s, Float64s, Int64s, Scale

Floats = TypeVar("Floats", Float64s, Float32s)

# Where a scale begins at 0 or below it, ratings are counted from a quarter of its length below its lowest:
# from 0, as they stand, on 1 to 5.
_BELOW = 0.25


def blended(relevance: Floats, rating: Floats, gamma: float, scale: Scale) -> Floats:
    """Return `max(relevance, 0) * rating ^ gamma` (m,) of items with this relevance and expected rating, each
    (m,), in their precision; it falls with neither.
    """
    return np.asarray(np.maximum(relevance, 0.0) * rating_factors(rating, gamma, scale))


def highest_scores(relevance: Float64s, gamma: float, scale: Scale) -> Float64s:
    """Return the highest score that an item with this relevance (m,) may have, whatever its rating."""
    return np.asarray(np.maximum(relevance, 0.0) * rating_factors(np.array(scale.high), gamma, scale))


def best_first(scores: Float64s, relevance: Float64s, rating: Float64s, rows: Int64s) -> Int64s:
    """Return the order (m,) of items: by score, those of one score by relevance, then by rating, then by
    row.
    """
    return np.lexsort((rows, -rating, -relevance, -scores))


def rating_factors(rating: Floats, gamma: float, scale: Scale) -> Floats:
    """Return what ratings (m,) count in a score: their power."""
    start = 0.0 if scale.low > 0 else scale.low - _BELOW * (scale.high - scale.low)
    return np.asarray((rating - start) ** gamma)
