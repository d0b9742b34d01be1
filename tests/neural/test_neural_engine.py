"""The neural engine: its users are fold-ins like any other's, seeded, growing, and honest about strangers."""

import os
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from factors import (
    FitDiverged,
    FitSettings,
    Fitted,
    Histories,
    Ratings,
    Scale,
    Scorer,
    all_finite_items,
    explain,
    from_bytes,
    held_out_metrics,
    posterior_of,
    to_bytes,
)
from factors.model.layout import COUNT
from tests.unit.factors.factors_world import STARS, histories_of, ratings_of
from trainer.engines import make_engine
from trainer.engines.base import FitTask
from trainer.engines.variational import bias_errors

# Where they were asked for, they fail without.
ABSENT = find_spec("torch") is None and os.environ.get("FOLDIN_TEST_NEURAL") != "1"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(ABSENT, reason="needs torch: the extra `neural`")]


def fitted(
    ratings: Ratings,
    n_users: int = 40,
    n_items: int = 30,
    *,
    start: Fitted | None = None,
    scale: Scale = STARS,
    seed: int = 1,
) -> Fitted:
    engine = make_engine("neural", FitSettings(scale, rank=3))
    return engine.fit(FitTask(ratings, n_users, n_items, np.random.default_rng(seed), start))


@pytest.fixture(scope="module")
def fit() -> Fitted:
    return fitted(ratings_of(3))


def of_user(ratings: Ratings, user: int) -> Histories:
    mine = ratings.take(ratings.user_row == user)
    return histories_of(replace(mine, user_row=np.zeros_like(mine.user_row)), 1)


def test_users_and_items_are_folded_in_scored_and_explained_as_the_fit_has_them(fit: Fitted) -> None:
    ratings = ratings_of(3)
    again = posterior_of(from_bytes(to_bytes(fit.model)))
    rows = again.fold_in_users(fit.items, histories_of(ratings, 40))
    np.testing.assert_allclose(rows, fit.users, atol=1e-6)
    alone = fit.posterior.fold_in_users(fit.items, of_user(ratings, 7))[0]
    np.testing.assert_allclose(alone, fit.users[7], atol=2e-5)
    rows = fit.posterior.fold_in_items(fit.users, histories_of(ratings, 30, by="item"), current=fit.items)
    assert all_finite_items(fit.model, rows)
    scores = Scorer(fit.posterior, fit.items).score(fit.users, np.array([0, -1, 5]), np.array([0, 999, 4]))
    assert scores.basis.tolist() == [3, 0, 3]
    assert scores.std[1] > scores.std[0] > 0
    why = explain(fit.posterior, fit.items, of_user(ratings, 5), 4)
    assert why.base + why.contributions.sum() == pytest.approx(scores.rating[2], abs=1e-3)


def test_the_same_seed_gives_the_same_fit(fit: Fitted) -> None:
    again = fitted(ratings_of(3))
    np.testing.assert_array_equal(again.users, fit.users)
    np.testing.assert_array_equal(again.items, fit.items)
    assert np.abs(fitted(ratings_of(3), seed=2).users - fit.users).max() > 1e-3


def test_unseen_ratings_are_foretold_better_than_by_biases_and_with_honest_intervals() -> None:
    ratings = ratings_of(4, n_users=150, n_items=80, n=6000, timed=False)
    unseen = np.arange(len(ratings.value)) % 8 == 0
    known, asked = ratings.take(~unseen), ratings.take(unseen)
    metrics = held_out_metrics(fitted(known, 150, 80), asked)
    assert metrics["rmse"] ** 2 < np.mean(bias_errors(known, asked) ** 2)
    assert 0.8 < metrics["coverage"] < 0.98


def test_goes_on_from_an_earlier_fit_with_more_users_and_items(fit: Fitted) -> None:
    more = ratings_of(3, n_users=45, n_items=35, n=800)
    grown = fitted(more, 45, 35, start=fit)
    assert (len(grown.users), len(grown.items)) == (45, 35)
    assert np.isfinite(grown.users).all()
    assert all_finite_items(grown.model, grown.items)
    broken = replace(fit, items=np.full_like(fit.items, np.nan))
    broken.items[:, COUNT] = 5
    with pytest.raises(FitDiverged):
        fitted(more, 45, 35, start=broken)


def test_few_ratings_are_finite() -> None:
    for n in (0, 1, 60):
        fit = fitted(ratings_of(3).take(np.arange(n)))
        assert np.isfinite(fit.users).all()
        assert all_finite_items(fit.model, fit.items)


@pytest.mark.parametrize(
    ("scale", "value"), [(Scale(1.0, 5.0, 1.0), 4.0), (Scale(3.0, 3.0), 3.0), (Scale(-1e6, 1e6), 123456.0)]
)
def test_ratings_that_are_all_equal_are_foretold(scale: Scale, value: float) -> None:
    ratings = ratings_of(3)
    fit = fitted(replace(ratings, value=np.full(len(ratings.value), value)), scale=scale)
    score = Scorer(fit.posterior, fit.items).score(fit.users, np.array([0]), np.array([0]))
    assert score.rating[0] == pytest.approx(value, abs=0.02 * ((scale.high - scale.low) or 1.0))
