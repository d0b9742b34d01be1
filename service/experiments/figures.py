"""What the tallies of an experiment say: rates and differences, each with a 95 % interval.

Invariant: pure arithmetic on tallies. An interval takes the users of an arm for independent, not what
they do: how much groups of users differ says how sure a figure is (the delete-a-group jackknife: Kott, 2001).
Wilson's interval of the items alone holds the truth in 80 of 100 experiments with 1,500 users an arm.
"""

import math

import msgspec
import numpy as np

from factors import Float64s
from featurestore.experiments import Figure

# Two-sided 95 % quantile of Student's t with 31 degrees of freedom, as there are 32 groups.
_T = 2.0395
# The same of the normal distribution, as Wilson's interval has it.
_Z = 1.9600
# Fewer groups with any item shown say nothing of how much users differ.
_LEAST_GROUPS = 8


class Estimate(msgspec.Struct, frozen=True):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(msgspec.Struct, frozen=True):
    """By how much a figure is above that of the first arm, with a 95 % interval."""

    value: float
    low: float
    high: float
    excludes_zero: bool


def positive_rate(tally: Float64s) -> Estimate | None:
    """Return the share of the items shown that got a positive event, by Wilson's interval; None of no items.

    Items shown to one user are alike: where groups differ by more than chance, they count for fewer (the
    design effect).
    """
    positives, shown = float(tally[Figure.POSITIVES].sum()), float(tally[Figure.SHOWN].sum())
    if not shown:
        return None
    rate = min(1.0, positives / shown)
    found = _jackknife(tally[Figure.POSITIVES], tally[Figure.SHOWN])
    by_chance = rate * (1.0 - rate) / shown
    effect = 1.0 if found is None or not by_chance else max(1.0, found[1] ** 2 / by_chance)
    return wilson(rate, shown / effect)


def wilson(rate: float, n: float) -> Estimate:
    """Return a share of `n` with Wilson's interval (1927), which is right for small shares, too."""
    middle = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n * n))
    return Estimate(rate, max(0.0, middle - half), min(1.0, middle + half))


def rate_difference(tally: Float64s, first: Float64s) -> Difference | None:
    """Return by how much the positive rate of an arm is above that of the first; None where one is not
    known.
    """
    one, other = (_jackknife(each[Figure.POSITIVES], each[Figure.SHOWN]) for each in (tally, first))
    if one is None or other is None:
        return None
    # No user is in two arms.
    value, half = one[0] - other[0], _T * math.hypot(one[1], other[1])
    return Difference(value, value - half, value + half, abs(value) > half)


def _jackknife(sums: Float64s, counts: Float64s) -> tuple[float, float] | None:
    """Return the mean, and its standard deviation by leaving out one group after the other; None where too
    few groups have any. `sums`, `counts` (groups,).
    """
    used = counts > 0
    groups = int(np.count_nonzero(used))
    if groups < _LEAST_GROUPS:
        return None
    sums, counts = sums[used], counts[used]
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    variance = (groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum())
    return float(sums.sum() / counts.sum()), math.sqrt(variance)
