"""Standard deviations hold nine in ten unseen ratings, whatever the scale, for rows of few ratings too."""

import numpy as np
import pytest

from factors import (
    FitSettings,
    Ratings,
    Scale,
    Scorer,
    fit,
    from_bytes,
    to_bytes,
)
from factors.model.parameters import STD_TERMS, from_model
from factors.training.calibration import _quantile_regression
from tests.unit.factors.factors_world import fitted_of, history, ratings_of

INSIDE = 1.6449


def world(seed: int, scale: Scale, n: int) -> Ratings:
    """Users, some of them moody, rate few of many items; no pair twice."""
    rng = np.random.default_rng(seed)
    n_users, n_items = 250, 200
    popular = rng.gamma(0.7, size=n_items) + 0.05
    busy = rng.gamma(0.7, size=n_users) + 0.05
    user = rng.choice(n_users, 2 * n, p=busy / busy.sum())
    item = rng.choice(n_items, 2 * n, p=popular / popular.sum())
    pair = np.unique(user * n_items + item)
    pair = rng.permutation(pair)[:n]
    user, item = pair // n_items, pair % n_items
    left, right = rng.normal(0, 0.7, (n_users, 2)), rng.normal(0, 0.7, (n_items, 2))
    score = (left[user] * right[item]).sum(axis=1) + rng.normal(0, 0.4, n_items)[item]
    score += rng.gamma(4.0, 0.2, n_users)[user] * rng.normal(0, 1, len(user))
    unit = (scale.high - scale.low) / 6.0
    value = np.clip(0.5 * (scale.high + scale.low) + unit * score, scale.low, scale.high)
    if scale.step is not None:
        value = scale.low + np.rint((value - scale.low) / scale.step) * scale.step
    return Ratings(user.astype(np.int32), item.astype(np.int32), value, np.full(len(user), np.nan))


def part(ratings: Ratings, rows: np.ndarray) -> Ratings:
    """Some of the ratings."""
    return Ratings(ratings.user_row[rows], ratings.item_row[rows], ratings.value[rows], ratings.time[rows])


@pytest.mark.parametrize(
    "scale", [Scale(1, 5, 1), Scale(-10, 10), Scale(0.5, 5, 0.5), Scale(0, 100, 1)], ids=repr
)
def test_nine_in_ten_unseen_ratings_are_inside(scale: Scale) -> None:
    ratings = world(3, scale, 9000)
    n = len(ratings.value)
    held_out = np.zeros(n, dtype=bool)
    held_out[np.random.default_rng(1).permutation(n)[: n // 3]] = True
    train, test = part(ratings, ~held_out), part(ratings, held_out)
    fitted = fit(train, 250, 200, settings=FitSettings(scale), rng=np.random.default_rng(0))
    scores = Scorer(fitted.posterior, fitted.items).score(fitted.users, test.user_row, test.item_row)
    inside = np.abs(test.value - scores.rating) <= INSIDE * scores.std
    assert 0.87 < inside.mean() < 0.93
    order = np.argsort(np.bincount(train.user_row, minlength=250)[test.user_row], kind="stable")
    for some in np.array_split(inside[order], 3):
        assert 0.84 < some.mean() < 0.95


def test_a_quantile_is_found_where_it_depends_on_what_is_known() -> None:
    rng = np.random.default_rng(0)
    features = np.stack([np.ones(20_000), rng.uniform(0, 6, 20_000), *rng.uniform(0, 1, (3, 20_000))], axis=1)
    target = 0.4 - 0.1 * features[:, 1] + rng.normal(0, 0.5, 20_000)
    found = _quantile_regression(features, target, np.ones(20_000))
    below = target <= features @ found
    assert 0.89 < below.mean() < 0.91
    for some in np.array_split(below[np.argsort(features[:, 1])], 5):
        assert 0.88 < some.mean() < 0.92


def test_the_model_keeps_what_was_learned() -> None:
    fitted = fitted_of(ratings_of(3))
    known = from_model(fitted.model)
    again = from_model(from_bytes(to_bytes(fitted.model)))
    assert known.variance_scale == again.variance_scale
    assert known.std_calibration.shape == (STD_TERMS,)
    np.testing.assert_array_equal(known.std_calibration, again.std_calibration)


def popular_world(seed: int) -> tuple[Ratings, np.ndarray]:
    """Good items are rated by many, bad ones by few; whether each of 120 items is new (left out of a fit)."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 0.8, 120)
    chance = 1.0 / (1.0 + np.exp(-2.0 * quality + 1.0))
    user, item = np.nonzero(rng.random((200, 120)) < 0.35 * chance)
    score = 3.2 + quality[item] + rng.normal(0, 0.4, 200)[user] + rng.normal(0, 0.7, len(user))
    value = np.clip(np.rint(score), 1, 5)
    order = rng.permutation(len(user))
    ratings = Ratings(
        user[order].astype(np.int32), item[order].astype(np.int32), value[order], np.full(len(user), np.nan)
    )
    return ratings, rng.random(120) < 0.2


def test_a_new_item_is_not_taken_for_an_unpopular_one() -> None:
    ratings, new = popular_world(2)
    fitted = fit(
        part(ratings, ~new[ratings.item_row]),
        200,
        120,
        settings=FitSettings(Scale(1, 5, 1), rank=2),
        rng=np.random.default_rng(0),
    )
    known, mean = ~new[ratings.item_row], float(ratings.value.mean())
    bias = np.bincount(ratings.user_row[known], ratings.value[known] - mean, 200) / (
        np.bincount(ratings.user_row[known], minlength=200) + 5.0
    )
    for shown in (0, 1, 3, 8):
        errors: list[np.ndarray] = []
        simple: list[np.ndarray] = []
        for row in np.flatnonzero(new):
            mine = np.flatnonzero(ratings.item_row == row)
            seen, rest = mine[:shown], mine[8:]
            past = history(ratings.user_row[seen].tolist(), ratings.value[seen].tolist())
            item = fitted.posterior.fold_in_items(
                fitted.users, past, current=fitted.posterior.prior_item[None]
            )
            users, only = ratings.user_row[rest], np.zeros(len(rest), dtype=np.int64)
            scores = Scorer(fitted.posterior, item).score(fitted.users, users, only)
            errors.append(scores.rating - ratings.value[rest])
            surprise = ratings.value[seen] - mean - bias[ratings.user_row[seen]]
            simple.append(mean + bias[users] + surprise.sum() / (shown + 3.0) - ratings.value[rest])
        assert np.mean(np.concatenate(errors) ** 2) < 1.01 * np.mean(np.concatenate(simple) ** 2)


def test_who_was_in_the_fit_is_folded_in_as_there() -> None:
    ratings, _ = popular_world(2)
    fitted = fit(
        ratings, 200, 120, settings=FitSettings(Scale(1, 5, 1), rank=2), rng=np.random.default_rng(0)
    )
    user = int(np.argmax(fitted.users[:, 0]))
    mine = ratings.user_row == user
    past = history(ratings.item_row[mine].tolist(), ratings.value[mine].tolist())
    again = fitted.posterior.fold_in_users(fitted.items, past, current=fitted.users[user][None])[0]
    np.testing.assert_allclose(again, fitted.users[user], rtol=1e-4, atol=1e-5)
    stranger = fitted.posterior.fold_in_users(
        fitted.items, history([], []), current=fitted.posterior.prior_user[None]
    )
    np.testing.assert_allclose(stranger[0], fitted.posterior.prior_user, rtol=1e-5, atol=1e-6)
