"""The rating scale: which scales are valid, their levels and their range.

Invariant: a scale that passes `check_scale` can be kept in float32 rows.
"""

import math

import numpy as np

from factors.errors import FitRefused
from factors.model.layout import FloatTable
from factors.model.types import Int64s, Scale

# What is half-way between two levels is the upper one, whatever rounding has left of it: in float64, in
# float32, and with a factor in place of a quotient.
HALF = 0.5001
# The ordinal link learns a cut point between each two levels: a bound on its work, chosen and not measured.
# Where there are more, or none, so many stand for those next to them, which adds a 7,000th of the square of
# the range to the variance of a rating.
MOST_LEVELS = 25


def check_scale(scale: Scale) -> None:
    """Raise `FitRefused` where `scale` is no rating scale. `low == high` is one, with a single value."""
    if not (math.isfinite(scale.low) and math.isfinite(scale.high) and scale.low <= scale.high):
        raise FitRefused(f"a scale needs finite low <= high, not {scale.low!r} and {scale.high!r}")
    if scale.high - scale.low > 1e9 or max(abs(scale.low), abs(scale.high)) > 1e9:
        raise FitRefused("a scale wider than 1e9 cannot be kept in float32 rows")
    if scale.step is None:
        return
    if not (math.isfinite(scale.step) and scale.step > 0):
        raise FitRefused(f"the step of a scale must be above 0, not {scale.step!r}")
    steps = (scale.high - scale.low) / scale.step
    # Steps such as 0.1 are no exact floats.
    if abs(steps - round(steps)) > 1e-6:
        raise FitRefused(
            f"step {scale.step!r} does not divide the scale from {scale.low!r} to {scale.high!r}"
        )


def scale_levels(scale: Scale) -> int:
    """Return how many values the scale has; 0 where it is continuous."""
    if scale.step is None:
        return 1 if scale.low == scale.high else 0
    return round((scale.high - scale.low) / scale.step) + 1


def ordinal_levels(scale: Scale) -> int:
    """Return how many levels the ordinal link has, equally far apart: the scale's, or the most that it may
    have.
    """
    levels = scale_levels(scale)
    return levels if 1 <= levels <= MOST_LEVELS else MOST_LEVELS


def scale_range(scale: Scale) -> float:
    """Return the range of the scale, 1 where it has a single value: the unit of every default."""
    return (scale.high - scale.low) or 1.0


def rating_levels(scale: Scale, value: FloatTable) -> Int64s:
    """Return the level (0 to `ordinal_levels` - 1) nearest to each rating, of two the upper one."""
    last = ordinal_levels(scale) - 1
    level = np.floor((value - scale.low) * (last / (scale.high - scale.low)) + HALF)
    return np.asarray(np.clip(level, 0, last), dtype=np.int64)
