"""Standard deviations hold nine in ten unseen ratings, whatever the scale, for rows of few ratings too."""

import numpy as np
import pytest

from factors import FitSettings, Scale, Scorer, fit, from_bytes, to_bytes
from factors.model.parameters import from_model
from tests.unit.factors.factors_world import ratings

INSIDE = 1.6449


@pytest.mark.parametrize(
    "scale", [Scale(1, 5, 1), Scale(-10, 10), Scale(0.5, 5, 0.5), Scale(0, 100, 1)], ids=repr
)
def test_nine_in_ten_unseen_ratings_are_inside(scale: Scale) -> None:
    """Users, some of them moody, rate few of many items."""
    rng = np.random.default_rng(3)
    n_users, n_items, n = 250, 200, 9_000
    popular, busy = rng.gamma(0.7, size=n_items) + 0.05, rng.gamma(0.7, size=n_users) + 0.05
    user = rng.choice(n_users, 2 * n, p=busy / busy.sum())
    item = rng.choice(n_items, 2 * n, p=popular / popular.sum())
    user, item = np.divmod(rng.permutation(np.unique(user * n_items + item))[:n], n_items)
    left, right = rng.normal(0, 0.7, (n_users, 2)), rng.normal(0, 0.7, (n_items, 2))
    score = (left[user] * right[item]).sum(axis=1) + rng.normal(0, 0.4, n_items)[item]
    score += rng.gamma(4.0, 0.2, n_users)[user] * rng.normal(0, 1, len(user))
    value = 0.5 * (scale.high + scale.low) + (scale.high - scale.low) / 6.0 * score
    if scale.step is not None:
        value = scale.low + np.rint((value - scale.low) / scale.step) * scale.step
    given = ratings(user, item, np.clip(value, scale.low, scale.high))
    asked = rng.random(len(user)) < 0.33
    train, test = given.take(~asked), given.take(asked)
    settings = FitSettings(scale, rank=2, sweeps=15)
    found = fit(train, n_users, n_items, settings=settings, rng=np.random.default_rng(0))
    scores = Scorer(found.posterior, found.items).score(found.users, test.user_row, test.item_row)
    inside = np.abs(test.value - scores.rating) <= INSIDE * scores.std
    # Learned from 600 ratings, the share has a standard error of 0.012.
    assert 0.86 < inside.mean() < 0.94
    order = np.argsort(np.bincount(train.user_row, minlength=n_users)[test.user_row], kind="stable")
    for some in np.array_split(inside[order], 3):
        assert 0.83 < some.mean() < 0.96
    # The model keeps what was learned.
    known, again = from_model(found.model), from_model(from_bytes(to_bytes(found.model)))
    assert known.variance_scale == again.variance_scale
    np.testing.assert_array_equal(known.std_calibration, again.std_calibration)
