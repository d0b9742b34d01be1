"""The ordered probit: derivatives, cut points, and scores that stay on the scale."""

import numpy as np
import pytest
from scipy.stats import norm

from factors.ordinal import interval_derivatives, learn_link, level_derivatives, rating_levels
from factors.tables import Scale


@pytest.mark.parametrize(
    ("low", "high"), [(-np.inf, 0.3), (-1.0, 0.5), (2.0, 2.2), (-9.0, -8.0), (1.0, np.inf)]
)
def test_derivatives_are_those_of_the_interval(low: float, high: float) -> None:
    def log_mass(shift: float) -> float:
        return float(interval_derivatives(np.array([low - shift]), np.array([high - shift]))[0][0])

    value, slope, curvature = interval_derivatives(np.array([low]), np.array([high]))
    h = 1e-4
    assert slope[0] == pytest.approx((log_mass(h) - log_mass(-h)) / (2 * h), rel=1e-5, abs=1e-6)
    assert curvature[0] == pytest.approx(
        -(log_mass(h) + log_mass(-h) - 2 * value[0]) / (h * h), rel=1e-2, abs=1e-4
    )
    if low > -5 and high < 5:
        assert value[0] == pytest.approx(np.log(norm.cdf(high) - norm.cdf(low)))


def test_derivatives_are_finite_far_from_the_interval() -> None:
    edges = np.array([-1e3, -40.0, 40.0, 1e3])
    for part in interval_derivatives(edges, edges + 0.1):
        assert np.isfinite(part).all()
    for part in interval_derivatives(np.full(4, -np.inf), edges):
        assert np.isfinite(part).all()


def test_cut_points_and_noise_are_found_again() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1.0, 20_000)
    cuts = np.array([-0.9, -0.1, 0.8])
    level = np.searchsorted(cuts, score + rng.normal(0, 0.4, len(score)))
    found, noise = np.array([-1.0, 0.0, 1.0]), 1.0
    for _ in range(30):
        found, noise = learn_link(found, noise, level, score, np.zeros(len(score)))
    np.testing.assert_allclose(found, cuts, atol=0.05)
    assert noise == pytest.approx(0.16, rel=0.15)


def test_a_level_that_nobody_gave_keeps_its_place() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1.0, 500)
    level = np.where(score > 0, 3, 0)
    found, noise = np.array([-1.0, 0.0, 1.0]), 0.5
    for _ in range(20):
        found, noise = learn_link(found, noise, level, score, np.full(500, 0.1))
        assert np.all(np.diff(found) > 0)
        assert noise > 0
        assert np.isfinite(level_derivatives(found, noise, level, score, np.full(500, 0.1))[0]).all()


def test_levels_of_scales() -> None:
    np.testing.assert_array_equal(rating_levels(Scale(0.5, 5.0, 0.5), np.array([0.5, 3.0, 5.0])), [0, 5, 9])
    np.testing.assert_array_equal(
        rating_levels(Scale(-10.0, 10.0, 1.0), np.array([-10.0, 0.2, 10.0])), [0, 10, 20]
    )
