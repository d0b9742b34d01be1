"""Intervals of an experiment's figures: how often they have the truth in them."""

import numpy as np
import pytest

from factors import Float64s
from featurestore.experiments.definition import GROUPS
from featurestore.experiments.tallies import Figure, new_tally
from service.experiments.figures import positive_rate, rate_difference

TRIALS = 400


def tally_of(groups: np.ndarray, **figures: np.ndarray) -> Float64s:
    tally = new_tally()
    for name, values in figures.items():
        tally[Figure[name.upper()]] = np.bincount(groups, weights=values, minlength=GROUPS)
    return tally


def chosen(rng: np.random.Generator, users: int, a: float, b: float) -> Float64s:
    """Items shown to users, each with a rate of its own."""
    shown = rng.integers(1, 40, users)
    positives = rng.binomial(shown, rng.beta(a, b, users))
    return tally_of(rng.integers(0, GROUPS, users), shown=shown, positives=positives)


def test_an_interval_of_a_rate_has_the_truth_in_it() -> None:
    rng = np.random.default_rng(1)
    for a, b in ((2.0, 18.0), (0.5, 24.5)):
        found = [positive_rate(chosen(rng, 1_500, a, b)) for _ in range(TRIALS)]
        hits = [each is not None and each.low <= a / (a + b) <= each.high for each in found]
        assert 0.91 <= np.mean(hits) <= 0.995


def test_of_few_items_it_is_wilsons_interval() -> None:
    tally = new_tally()
    tally[Figure.SHOWN, 0], tally[Figure.POSITIVES, 0] = 10, 1
    found = positive_rate(tally)
    assert found is not None
    # Wilson (1927) for 1 of 10.
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.0179, 0.4042), abs=1e-4)
    assert positive_rate(new_tally()) is None


def test_a_difference_excludes_zero_rarely_where_there_is_none_and_mostly_where_there_is() -> None:
    rng = np.random.default_rng(2)
    same = [
        rate_difference(chosen(rng, 1_500, 2.0, 18.0), chosen(rng, 1_500, 2.0, 18.0)) for _ in range(TRIALS)
    ]
    assert np.mean([each is not None and each.excludes_zero for each in same]) <= 0.09
    better = rate_difference(chosen(rng, 4_000, 3.0, 17.0), chosen(rng, 4_000, 2.0, 18.0))
    assert better is not None
    assert better.excludes_zero
    assert better.low < 0.05 < better.high
    assert rate_difference(new_tally(), chosen(rng, 100, 2.0, 18.0)) is None
