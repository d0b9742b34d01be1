"""Intervals of an experiment's figures."""

import numpy as np

from factors import Float64s
from featurestore.experiments.definition import GROUPS
from featurestore.experiments.tallies import Figure, new_tally
from service.experiments.figures import positive_rate, rate_difference


def chosen(rng: np.random.Generator, users: int, a: float, b: float) -> Float64s:
    tally, groups = new_tally(), rng.integers(0, GROUPS, users)
    shown = rng.integers(1, 40, users)
    positives = rng.binomial(shown, rng.beta(a, b, users))
    for figure, values in ((Figure.SHOWN, shown), (Figure.POSITIVES, positives)):
        tally[figure] = np.bincount(groups, weights=values, minlength=GROUPS)
    return tally


def test_an_interval_has_the_truth_in_it_and_a_difference_excludes_zero_where_there_is_one() -> None:
    rng = np.random.default_rng(1)
    found = [positive_rate(chosen(rng, 1_500, 2.0, 18.0)) for _ in range(200)]
    hits = [each is not None and each.low <= 0.1 <= each.high for each in found]
    assert 0.91 <= np.mean(hits) <= 0.995
    better = rate_difference(chosen(rng, 4_000, 3.0, 17.0), chosen(rng, 4_000, 2.0, 18.0))
    assert better is not None
    assert better.excludes_zero
    assert better.low < 0.05 < better.high
    assert rate_difference(new_tally(), chosen(rng, 100, 2.0, 18.0)) is None
