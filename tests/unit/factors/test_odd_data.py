"""Each kind of odd data fits by `auto`: finite, on the scale, and of use on ratings that were not seen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from factors import FitSettings, Fitted, Ratings, Scorer, Scores, all_finite_items, fit, fit_biases
from factors.training import model_selection
from tests.support.odd_data import ODD_DATA, OddData

# As the gate of the trainer has it: where ratings follow little of a pattern, factors may be a little worse.
WORSE = 1.05
# Of fewer held out chance decides who predicts better.
LEAST_HELD_OUT = 50


def fitted_of(data: OddData, ratings: Ratings, start: Fitted | None = None) -> Fitted:
    """A fit with all defaults, whose tables are finite."""
    settings, rng = FitSettings(data.scale), np.random.default_rng(0)
    fitted = fit(ratings, data.n_users, data.n_items, settings=settings, rng=rng, start=start)
    assert np.isfinite(fitted.users).all()
    assert all_finite_items(fitted.model, fitted.items)
    return fitted


def scores_of(fitted: Fitted, of: Ratings) -> Scores:
    scorer = Scorer(fitted.posterior, fitted.items)
    return scorer.score(fitted.users, of.user_row, of.item_row, of.time)


def rmse(predicted: np.ndarray, of: Ratings) -> float:
    return float(np.sqrt(np.mean((predicted - of.value) ** 2)))


@pytest.fixture(params=["numpy", "compiled"])
def half_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes the fit, where the number of ratings would choose it."""
    n = 1 if request.param == "compiled" else 10_000_000
    monkeypatch.setattr("factors.inference.compiled.backend.MANY_RATINGS", n)
    return str(request.param)


@pytest.fixture
def odd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OddData:
    # A smaller sample for the choice of terms: most of the data go beyond it, as large ones do.
    monkeypatch.setattr(model_selection, "_MOST_RATINGS", 1_000)
    monkeypatch.setattr(model_selection, "_MOST_OF_USER", 25)
    make: Callable[[], OddData] = ODD_DATA[request.param]
    return make()


@pytest.mark.usefixtures("half_step")
@pytest.mark.parametrize("odd", ODD_DATA, indirect=True)
def test_a_fit_is_finite_and_predicts_no_worse_than_biases(odd: OddData) -> None:
    n = len(odd.ratings.value)
    # What is superseded is no rating that could be asked for.
    asked = (
        odd.superseded + np.random.default_rng(5).permutation(n - odd.superseded)[: (n - odd.superseded) // 5]
    )
    known = np.ones(n, dtype=bool)
    known[asked] = False
    if odd.superseded:
        known[asked - odd.superseded] = False
    learned, held_out = odd.ratings.take(known), odd.ratings.take(np.sort(asked))
    fitted = fitted_of(odd, learned)
    # The next fit goes on from it.
    again = scores_of(fitted_of(odd, odd.ratings, fitted), held_out)
    assert np.isfinite(again.rating + again.std).all()
    scale = odd.scale
    for of in (learned, held_out, replace(held_out, time=np.full(len(held_out.time), np.nan))):
        found = scores_of(fitted, of)
        assert np.isfinite(found.std).all()
        assert (found.std > 0).all()
        assert ((found.rating >= scale.low) & (found.rating <= scale.high)).all()
        if odd.constant is not None:
            np.testing.assert_allclose(found.rating, odd.constant, atol=0.01 * (scale.high - scale.low))
    if len(held_out.value) < LEAST_HELD_OUT or odd.constant is not None:
        return
    last = odd.ratings.take(known & (np.arange(n) >= odd.superseded))
    baseline = fit_biases(last, odd.n_users, odd.n_items, user_ridge=15, item_ridge=10)
    biases = rmse(baseline.predict(held_out.user_row, held_out.item_row), held_out)
    assert rmse(scores_of(fitted, held_out).rating, held_out) <= WORSE * biases
