"""Whatever people send: fits, fold-ins and answers are finite and sensible, or refused with a reason."""

import math

import numpy as np
import pytest

from factors import (
    FitRefused,
    FitSettings,
    Fitted,
    Ratings,
    Scale,
    Scorer,
    all_finite_items,
    fit,
)
from factors.model.types import Float64s, Int64s
from tests.unit.factors.factors_world import STARS, histories_of, history, ratings

NAN = math.nan
DAY = 86_400.0


def pairs(seed: int, n_users: int, n_items: int, n: int) -> tuple[Int64s, Int64s, Float64s]:
    """Pairs, none twice, with ratings 1 to 5 that have some sense."""
    rng = np.random.default_rng(seed)
    pair = rng.permutation(n_users * n_items)[:n]
    user, item = np.divmod(pair, n_items)
    score = 3.0 + rng.normal(0, 0.6, n_users)[user] + rng.normal(0, 0.8, n_items)[item]
    return user, item, np.clip(np.rint(score + rng.normal(0, 0.6, n)), 1, 5)


def fitted_of(given: Ratings, n_users: int, n_items: int, scale: Scale = STARS) -> Fitted:
    """A fit with all defaults."""
    return fit(given, n_users, n_items, settings=FitSettings(scale), rng=np.random.default_rng(0))


def check(fitted: Fitted, given: Ratings, time: Float64s | None = None) -> Float64s:
    """Finite tables, and finite answers on the scale for known and unknown pairs at any time: the ratings."""
    assert np.isfinite(fitted.users).all()
    assert all_finite_items(fitted.model, fitted.items)
    scale, scorer = fitted.model.scale, Scorer(fitted.posterior, fitted.items)
    user = np.append(given.user_row[:500], [-1, -1, 0]).astype(np.int64)
    item = np.append(given.item_row[:500], [0, -1, -1]).astype(np.int64)
    times: list[Float64s | None] = [None, np.full(len(user), 1e18), np.full(len(user), -1e18)]
    for when in times + ([] if time is None else [np.resize(time, len(user))]):
        scores = scorer.score(fitted.users, user, item, when)
        assert ((scores.rating >= scale.low) & (scores.rating <= scale.high)).all()
        assert np.isfinite(scores.std).all()
        assert (scores.std > 0).all()
        assert scores.std.max() <= 4.0 * max(scale.high - scale.low, 1.0)
    again = fitted.posterior.fold_in_users(fitted.items, histories_of(given, len(fitted.users)))
    back = histories_of(given, len(fitted.items), by="item")
    items = fitted.posterior.fold_in_items(fitted.users, back, current=fitted.items)
    assert np.isfinite(again).all()
    assert all_finite_items(fitted.model, items)
    return scorer.score(fitted.users, given.user_row.astype(np.int64), given.item_row.astype(np.int64)).rating


@pytest.mark.timeout(60)
def test_a_user_with_a_hundred_thousand_ratings() -> None:
    rng = np.random.default_rng(0)
    n_items = 100_000
    value = np.clip(np.rint(3.0 + rng.normal(0, 0.8, n_items)), 1, 5)
    base = fitted_of(ratings(*pairs(1, 60, 200, 2000)), 60, 200)
    table = np.repeat(base.posterior.prior_item[None], n_items, axis=0)
    table[:200] = base.items
    past = history(list(range(n_items)), value.tolist(), (1e9 + DAY * rng.integers(0, 900, n_items)).tolist())
    row = base.posterior.fold_in_users(table, past, current=base.posterior.prior_user[None])
    assert np.isfinite(row).all()
    scores = Scorer(base.posterior, table).score(row, np.zeros(300, dtype=np.int64), np.arange(300))
    assert ((scores.rating >= 1) & (scores.rating <= 5)).all()
    assert (scores.std > 0).all()


@pytest.mark.slow
def test_a_user_who_rated_everything_and_an_item_that_everybody_rated() -> None:
    user, item, value = pairs(2, 80, 3000, 3000)
    everything = np.arange(3000)
    everybody = np.arange(80)
    given = ratings(
        np.concatenate([user, np.zeros(3000, dtype=np.int64), everybody]),
        np.concatenate([item, everything, np.full(80, 7)]),
        np.concatenate([value, 1.0 + everything % 5, np.full(80, 4.0)]),
    )
    predicted = check(fitted_of(given, 80, 3000), given)
    assert abs(predicted[-40:].mean() - 4.0) < 0.5


@pytest.mark.parametrize("value", [1.0, 3.0, 5.0])
def test_all_ratings_equal(value: float) -> None:
    user, item, _ = pairs(3, 30, 20, 400)
    given = ratings(user, item, np.full(400, value))
    np.testing.assert_allclose(check(fitted_of(given, 30, 20), given), value, atol=0.1)


def test_one_rating_in_all() -> None:
    given = ratings(np.array([0]), np.array([0]), np.array([5.0]), 1e9)
    predicted = check(fitted_of(given, 1, 1), given)
    assert 3.0 < predicted[0] <= 5.0


def test_two_users() -> None:
    user = np.repeat([0, 1], 120)
    item = np.tile(np.arange(120), 2)
    given = ratings(user, item, np.where(user == 0, 1.0 + item % 5, 5.0 - item % 5))
    check(fitted_of(given, 2, 120), given)


@pytest.mark.parametrize(
    "time",
    [0.0, 1e9, -1e9, 1.7e12, 4e9, 1e300, -1e300, math.inf, -math.inf],
    ids=["zero", "constant", "before 1970", "ms", "future", "far future", "far past", "inf", "-inf"],
)
def test_any_constant_timestamp(time: float) -> None:
    given = ratings(*pairs(4, 40, 30, 600), time)
    check(fitted_of(given, 40, 30), given, given.time)


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e6, 1e9], ids=["s", "ms", "us", "ns"])
def test_timestamps_in_any_unit_and_of_the_future(unit: float) -> None:
    rng = np.random.default_rng(5)
    user, item, value = pairs(5, 40, 30, 600)
    time: Float64s = np.asarray(4.1e9 + 3600.0 * rng.integers(0, 6, 600) + rng.integers(0, 60, 600)) * unit
    mood = rng.normal(0, 0.7, (40, 6))[user, ((time / unit - 4.1e9) // 3600).astype(int)]
    given = ratings(user, item, np.clip(np.rint(value + mood), 1, 5), time)
    predicted = check(fitted_of(given, 40, 30), given, time)
    assert np.mean((predicted - given.value) ** 2) < np.var(given.value)


def test_times_of_which_some_are_nonsense() -> None:
    user, item, value = pairs(6, 40, 30, 600)
    time = 1e9 + DAY * np.arange(600.0)
    time[::7], time[1::7], time[2::7], time[3::7] = NAN, math.inf, 1.7e12, -1e300
    given = ratings(user, item, value, time)
    check(fitted_of(given, 40, 30), given, time)


def test_the_last_of_duplicate_pairs_counts() -> None:
    user, item, value = pairs(7, 40, 30, 600)
    once = ratings(user, item, value)
    doubled = ratings(np.tile(user, 3), np.tile(item, 3), np.concatenate([6.0 - value, value, value]))
    first, second = fitted_of(once, 40, 30), fitted_of(doubled, 40, 30)
    np.testing.assert_allclose(check(first, once), check(second, once), atol=1e-3)


@pytest.mark.parametrize("scale", [Scale(3, 3), Scale(3, 3, 1), Scale(0, 0), Scale(-7, -7, 0.5)], ids=repr)
def test_a_scale_with_a_single_value(scale: Scale) -> None:
    user, item, _ = pairs(8, 30, 20, 300)
    given = ratings(user, item, np.full(300, scale.low))
    np.testing.assert_array_equal(check(fitted_of(given, 30, 20, scale), given), scale.low)


@pytest.mark.parametrize(
    "scale", [Scale(0.5, 5, 0.5), Scale(1, 10, 1), Scale(-10, 10), Scale(0, 1e9), Scale(0, 1, 1)], ids=repr
)
def test_any_scale(scale: Scale) -> None:
    user, item, value = pairs(9, 40, 30, 700)
    value = scale.low + (scale.high - scale.low) * (value - 1.0) / 4.0
    if scale.step is not None:
        value = scale.low + np.rint((value - scale.low) / scale.step) * scale.step
    given = ratings(user, item, value)
    predicted = check(fitted_of(given, 40, 30, scale), given)
    assert np.mean((predicted - value) ** 2) < np.var(value)


def test_ratings_off_the_scale_are_refused() -> None:
    for value in (0.0, 6.0, math.inf, -math.inf):
        with pytest.raises(FitRefused, match="outside the scale"):
            fitted_of(ratings(np.array([0, 0]), np.array([0, 1]), np.array([3.0, value])), 1, 2)


def test_no_rating_that_holds() -> None:
    given = ratings(np.array([0, 1]), np.array([0, 1]), np.array([NAN, NAN]))
    fitted = fitted_of(given, 2, 2)
    np.testing.assert_allclose(check(fitted, given), 3.0, atol=1e-6)
