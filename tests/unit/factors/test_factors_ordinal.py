"""The ordered probit: derivatives, cut points, and scores that stay on the scale."""

import numpy as np
import pytest
from scipy.stats import norm

from factors.inference.ordinal import (
    EntryScores,
    interval_derivatives,
    interval_of,
    learn_link,
    level_bounds,
    ordinal_sites,
)
from factors.model.scale import rating_levels
from factors.model.types import Float64s, Scale


def log_masses(low: Float64s, high: Float64s) -> Float64s:
    """`log(Phi(high) - Phi(low))`."""
    return interval_of(low, high).log_mass


@pytest.mark.parametrize(
    ("low", "high"), [(-np.inf, 0.3), (-1.0, 0.5), (2.0, 2.2), (-9.0, -8.0), (1.0, np.inf)]
)
def test_derivatives_are_those_of_the_interval(low: float, high: float) -> None:
    def log_mass(shift: float) -> float:
        return float(log_masses(np.array([low - shift]), np.array([high - shift]))[0])

    value, (slope, curvature) = log_mass(0.0), interval_derivatives(np.array([low]), np.array([high]))
    h = 1e-4
    assert slope[0] == pytest.approx((log_mass(h) - log_mass(-h)) / (2 * h), rel=1e-5, abs=1e-6)
    assert curvature[0] == pytest.approx(
        -(log_mass(h) + log_mass(-h) - 2 * value) / (h * h), rel=1e-2, abs=1e-4
    )
    if low > -5 and high < 5:
        assert value == pytest.approx(np.log(norm.cdf(high) - norm.cdf(low)))


@pytest.mark.parametrize("width", [1e-9, 0.1, 30.0, 1e4, np.inf])
def test_derivatives_are_finite_far_from_the_interval(width: float) -> None:
    edges = np.array([-1e12, -1e3, -40.0, -37.0, 0.0, 37.0, 40.0, 1e3, 1e12])
    for below, above in ((edges, edges + width), (edges - width, edges)):
        wide = below < above
        low, high = below[wide], above[wide]
        assert np.isfinite(log_masses(low, high)).all()
        assert (log_masses(low, high) < 1e-12).all()
        slope, curvature = interval_derivatives(low, high)
        assert np.isfinite(slope).all()
        assert ((curvature > 0) & (curvature <= 1)).all()
        # A score above its interval is pulled down, one below it up.
        assert (slope[high < 0] < 0).all()
        assert (slope[low > 0] > 0).all()


@pytest.mark.parametrize("before", [False, True])
def test_weights_are_above_0_and_finite_for_any_score(before: bool) -> None:
    cuts, score = np.array([-1.0, 0.5, 1.0]), np.array([-1e15, -1e6, -300.0, 0.0, 300.0, 1e6, 1e15])
    for noise in (1e-6, 1.0):
        for level in range(4):
            bounds = level_bounds(cuts, np.full(len(score), level))
            scores = EntryScores(score, np.full(7, 0.3), np.full(7, 0.1), np.zeros(7))
            sites = ordinal_sites(bounds, noise, scores, None, damping=0.7)
            if before:
                sites = ordinal_sites(bounds, noise, scores, sites, damping=0.7)
            assert ((sites.weight > 0) & np.isfinite(sites.weight)).all()
            assert np.isfinite(sites.linear).all()


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


def test_a_level_that_was_never_given_keeps_its_place() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1.0, 500)
    level = np.where(score > 0, 3, 0)
    found, noise = np.array([-1.0, 0.0, 1.0]), 0.5
    for _ in range(20):
        found, noise = learn_link(found, noise, level, score, np.full(500, 0.1))
        assert np.all(np.diff(found) > 0)
        assert noise > 0
        scale = np.sqrt(noise + 0.1)
        low, high = ((bound - score) / scale for bound in level_bounds(found, level))
        assert np.isfinite(log_masses(low, high)).all()


def test_levels_of_scales() -> None:
    np.testing.assert_array_equal(rating_levels(Scale(0.5, 5.0, 0.5), np.array([0.5, 3.0, 5.0])), [0, 5, 9])
    np.testing.assert_array_equal(
        rating_levels(Scale(-10.0, 10.0, 1.0), np.array([-10.0, 0.2, 10.0])), [0, 10, 20]
    )
