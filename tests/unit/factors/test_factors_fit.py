"""Fits of what real data can look like: always finite and sensible, or refused with a reason."""

from collections.abc import Callable

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
    held_out_metrics,
    item_statistics,
    posterior_of,
    prior_model,
)
from tests.unit.factors.factors_world import STARS, fitted_of, histories_of, history, ratings, ratings_of


def fitted(given: Ratings, n_users: int, n_items: int, scale: Scale = STARS, **settings: object) -> Fitted:
    """A short fit."""
    chosen = FitSettings(scale=scale, **{"sweeps": 5, **settings})  # type: ignore[arg-type]
    return fit(given, n_users, n_items, settings=chosen, rng=np.random.default_rng(0))


def sensible(result: Fitted, n_users: int, n_items: int) -> None:
    """Every number is finite and every score on the scale, of strangers too."""
    assert result.users.shape == (n_users, result.model.user_width)
    assert result.items.shape == (n_items, result.model.item_width)
    assert result.users.dtype == result.items.dtype == np.float32
    assert np.isfinite(result.users).all()
    assert all_finite_items(result.model, result.items)
    user, item = np.meshgrid(np.arange(-1, n_users), np.arange(-1, n_items))
    time = np.full(user.size, 1.7e9)
    scores = Scorer(result.posterior, result.items).score(result.users, user.ravel(), item.ravel(), time=time)
    scale = result.model.scale
    assert np.isfinite(scores.std).all()
    assert (scores.std > 0).all()
    assert (scores.rating >= scale.low - 1e-9).all()
    assert (scores.rating <= scale.high + 1e-9).all()


def test_no_ratings_give_the_prior_everywhere() -> None:
    result = fitted(ratings([], [], []), 3, 2)
    sensible(result, 3, 2)
    scores = Scorer(result.posterior, result.items).score(result.users, np.array([0]), np.array([1]))
    assert scores.rating[0] == 3.0
    assert scores.basis[0] == 0
    model = prior_model(FitSettings(scale=STARS))
    np.testing.assert_array_equal(posterior_of(model).prior_user, result.users[0])
    np.testing.assert_array_equal(posterior_of(model).prior_item, result.items[0])


def test_a_model_of_no_data_learns_from_the_first_ratings() -> None:
    model = prior_model(FitSettings(scale=STARS))
    items = np.repeat(posterior_of(model).prior_item[None], 3, axis=0)
    users = posterior_of(model).fold_in_users(items, history([0, 1], [5.0, 5.0]))
    scores = Scorer(posterior_of(model), items).score(users, np.array([0]), np.array([2]))
    assert 3.5 < scores.rating[0] <= 5.0
    assert scores.basis[0] == 2


@pytest.mark.parametrize("link", ["auto", "gaussian", "ordinal"])
def test_one_rating(link: str) -> None:
    result = fitted(ratings([0], [0], [5.0]), 2, 2, link=link)
    sensible(result, 2, 2)
    pairs = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert Scorer(result.posterior, result.items).score(result.users, *pairs).basis.tolist() == [3, 2, 1, 0]


def many(
    seed: int, n_users: int, n_items: int, n: int, value: Callable[[np.random.Generator, int], np.ndarray]
) -> Ratings:
    """`n` distinct pairs with random times in a year."""
    rng = np.random.default_rng(seed)
    pair = rng.permutation(n_users * n_items)[:n]
    time = 1.6e9 + rng.uniform(0, 3e7, n)
    return ratings(
        (pair // n_items).tolist(), (pair % n_items).tolist(), value(rng, n).tolist(), time.tolist()
    )


@pytest.mark.parametrize("link", ["auto", "ordinal"])
def test_all_ratings_equal(link: str) -> None:
    given = many(0, 20, 20, 200, lambda _, n: np.full(n, 4.0))
    result = fitted(given, 20, 20, link=link)
    sensible(result, 20, 20)
    scores = Scorer(result.posterior, result.items).score(result.users, np.arange(20), np.arange(20))
    np.testing.assert_allclose(scores.rating, 4.0, atol=0.25)


def test_two_users() -> None:
    given = many(1, 2, 30, 50, lambda rng, n: rng.integers(1, 6, n).astype(float))
    sensible(fitted(given, 2, 30), 2, 30)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_scale_with_a_single_value(value: float) -> None:
    given = many(2, 12, 12, 120, lambda _, n: np.full(n, value))
    result = fitted(given, 12, 12, Scale(value, value, 1.0))
    sensible(result, 12, 12)
    assert (
        Scorer(result.posterior, result.items).score(result.users, np.array([0]), np.array([0])).rating[0]
        == value
    )


@pytest.mark.parametrize(
    "scale",
    [
        Scale(0.5, 5.0, 0.5),
        Scale(1, 10, 1),
        Scale(-10, 10, None),
        Scale(0, 1, 1),
        Scale(0, 100, 1),
        Scale(1e6, 2e6, None),
    ],
)
def test_scales(scale: Scale) -> None:
    def value(rng: np.random.Generator, n: int) -> np.ndarray:
        if scale.step is None:
            return rng.uniform(scale.low, scale.high, n)
        return scale.low + scale.step * rng.integers(0, round((scale.high - scale.low) / scale.step) + 1, n)

    sensible(fitted(many(3, 25, 25, 300, value), 25, 25, scale), 25, 25)


@pytest.mark.parametrize("n", [1, 3, 30])
def test_a_few_ratings_that_agree_are_no_certainty(n: int) -> None:
    given = ratings([k % 6 for k in range(n)], [k // 6 for k in range(n)], [4.0] * n)
    result = fitted(given, 6, 6, Scale(1, 5, None))
    std = Scorer(result.posterior, result.items).score(result.users, np.array([0, -1]), np.array([0, -1])).std
    assert (std > 0.2).all()


@pytest.mark.parametrize(
    ("low", "high", "values", "step"),
    [
        (1, 5, [1, 2, 3, 4, 5], 1.0),
        (1, 5, [1, 3, 5], 2.0),
        (0.5, 5, [0.5, 1, 1.5, 3, 5], 0.5),
        (0, 1, [0, 0.1, 0.3, 0.7], 0.1),
        (-10, 10, [-10, -9, 10], 1.0),
        (1, 5, [1, 2, 3.7], None),
        (1, 5, [3], None),
        (0, 5, [0.3, 5], None),
        (0, 1000, [0, 1, 2], None),
    ],
)
def test_the_step_of_a_scale_is_found_in_the_ratings(
    low: float, high: float, values: list[float], step: float | None
) -> None:
    given = many(5, 25, 25, 300, lambda rng, n: np.resize(np.asarray(values, dtype=np.float64), n))
    found = fitted(given, 25, 25, Scale(low, high, None)).model.scale.step
    assert found == (None if step is None else pytest.approx(step))


def test_a_scale_that_names_its_step_keeps_it() -> None:
    given = many(6, 25, 25, 300, lambda rng, n: rng.integers(1, 6, n).astype(float))
    assert fitted(given, 25, 25, Scale(1, 5, 0.5)).model.scale.step == 0.5


@pytest.mark.parametrize(
    "time",
    [np.nan, 0.0, 1.7e9, 1.7e12, -5.0, 4e18, np.inf],
    ids=["none", "0", "constant", "ms", "negative", "ns", "inf"],
)
def test_odd_timestamps(time: float) -> None:
    given = many(4, 25, 25, 300, lambda rng, n: rng.integers(1, 6, n).astype(float))
    given.time[:] = time
    sensible(fitted(given, 25, 25), 25, 25)


def test_timestamps_in_milliseconds_and_of_the_future() -> None:
    given = ratings_of(8, n=900)
    seconds = fitted_of(given)
    given.time[:] *= 1000.0
    milliseconds = fitted_of(given)
    known = held_out_metrics(seconds, ratings_of(8, n=900))["rmse"]
    assert held_out_metrics(milliseconds, given)["rmse"] < 1.25 * known
    given.time[:] += 1e14
    sensible(fitted_of(given), 40, 30)


def test_duplicates_last_wins() -> None:
    given = ratings_of(9)
    once = fitted_of(given)
    twice = Ratings(
        np.concatenate([given.user_row[:100], given.user_row]),
        np.concatenate([given.item_row[:100], given.item_row]),
        np.concatenate([np.full(100, 1.0), given.value]),
        np.concatenate([given.time[:100], given.time]),
    )
    np.testing.assert_array_equal(fitted_of(twice).users, once.users)
    assert item_statistics(once.items).count.sum() == len(given.value)


def test_a_user_of_very_many_ratings_and_an_item_rated_by_all() -> None:
    rng = np.random.default_rng(5)
    n_items, n_users = 20_000, 300
    user = np.concatenate([np.zeros(n_items, int), np.arange(1, n_users)])
    item = np.concatenate([np.arange(n_items), np.zeros(n_users - 1, int)])
    value = rng.integers(1, 6, len(user)).astype(float)
    given = ratings(user.tolist(), item.tolist(), value.tolist(), 1.7e9)
    result = fitted(given, n_users, n_items, sweeps=2)
    assert np.isfinite(result.users).all()
    assert all_finite_items(result.model, result.items)
    assert item_statistics(result.items).count[0] == n_users


def test_a_fit_goes_on_from_an_earlier_one_with_more_users_and_items() -> None:
    given = ratings_of(10, n=700)
    early = given.user_row < 30
    first = fitted_of(
        Ratings(given.user_row[early], given.item_row[early], given.value[early], given.time[early]),
        n_users=30,
    )
    settings = FitSettings(scale=STARS, rank=3, sweeps=30)
    grown = fit(given, 45, 35, settings=settings, rng=np.random.default_rng(0), start=first)
    sensible(grown, 45, 35)
    cold = fit(given, 45, 35, settings=settings, rng=np.random.default_rng(0))
    warm_error, cold_error = (held_out_metrics(each, given)["rmse"] for each in (grown, cold))
    assert warm_error < 1.1 * cold_error
    other_rank = fit(
        given,
        45,
        35,
        settings=FitSettings(scale=STARS, rank=2, sweeps=2),
        rng=np.random.default_rng(0),
        start=first,
    )
    assert other_rank.model.rank == 2


def test_progress_is_told_and_may_end_the_fit() -> None:
    class Stop(Exception):  # noqa: N818 - a signal, no error
        pass

    seen: list[int] = []

    def progress(sweep: int, metrics: dict[str, float]) -> None:
        assert "noise" in metrics
        seen.append(sweep)
        if sweep == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(
            ratings_of(1),
            40,
            30,
            settings=FitSettings(scale=STARS, tolerance=0.0),
            rng=np.random.default_rng(0),
            progress=progress,
        )
    assert seen == [1, 2]


def test_equal_seeds_give_equal_fits() -> None:
    first, second = fitted_of(ratings_of(2)), fitted_of(ratings_of(2))
    np.testing.assert_array_equal(first.items, second.items)


def test_many_ratings_go_on_without_choosing_again() -> None:
    rng = np.random.default_rng(3)
    pairs = rng.permutation(150 * 100)[:6_200]
    user, item = pairs // 100, pairs % 100
    noise = rng.normal(0, 0.5, len(pairs))
    score = 3.0 + rng.normal(0, 0.6, 150)[user] + rng.normal(0, 0.6, 100)[item] + noise
    value = np.clip(np.rint(score), 1.0, 5.0)

    def of_first(count: int, start: Fitted | None) -> Fitted:
        given = ratings(user[:count].tolist(), item[:count].tolist(), value[:count].tolist())
        settings = FitSettings(scale=STARS, rank=2)
        return fit(given, 150, 100, settings=settings, rng=np.random.default_rng(0), start=start)

    first = of_first(6_000, None)
    grown = of_first(6_200, first)
    assert "held_out_log_likelihood" in first.metrics
    assert "held_out_log_likelihood" not in grown.metrics
    assert grown.metrics["sweeps"] <= first.metrics["sweeps"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (ratings([0], [0], [6.0]), "outside the scale"),
        (ratings([0], [0], [np.inf]), "outside the scale"),
        (ratings([2], [0], [3.0]), "user row"),
        (ratings([0], [-1], [3.0]), "item row"),
        (Ratings(np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros(2), np.zeros(2)), "one length"),
    ],
)
def test_what_cannot_be_fitted_is_refused(given: Ratings, reason: str) -> None:
    with pytest.raises(FitRefused, match=reason):
        fitted(given, 2, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"rank": True},
        {"link": "logit"},
        {"sweeps": 0},
        {"tolerance": float("nan")},
        {"threads": 0},
        {"scale": Scale(5, 1)},
        {"scale": Scale(1, 5, 0.3)},
        {"scale": Scale(1, 5, 0)},
        {"scale": Scale(float("nan"), 5)},
        {"scale": Scale(0, 1e12)},
        {"scale": Scale(1, 5), "link": "ordinal"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(FitRefused):
        FitSettings(**{"scale": STARS, **settings})  # type: ignore[arg-type]


def test_auto_beats_the_item_mean_on_unseen_ratings() -> None:
    given = ratings_of(11, n_users=80, n_items=60, n=3000)
    known, held_out = slice(0, 2400), slice(2400, None)
    part = [
        Ratings(given.user_row[s], given.item_row[s], given.value[s], given.time[s])
        for s in (known, held_out)
    ]
    result = fit(part[0], 80, 60, settings=FitSettings(scale=STARS), rng=np.random.default_rng(0))
    metrics = held_out_metrics(result, part[1])
    counts = np.bincount(part[0].item_row, minlength=60)
    means = np.bincount(part[0].item_row, part[0].value, 60) / np.maximum(counts, 1)
    baseline = float(np.sqrt(np.mean((part[1].value - means[part[1].item_row]) ** 2)))
    assert metrics["rmse"] < 0.9 * baseline
    assert 0.85 < metrics["coverage"] < 0.97
    tenths = [metrics[f"coverage_tenth_{n}"] for n in range(1, 11)]
    np.testing.assert_allclose(np.mean(tenths), metrics["coverage"])
    assert "coverage_tenth_1" not in held_out_metrics(result, part[1].take(np.arange(199)))


def test_metrics_of_nothing_are_not_numbers() -> None:
    metrics = held_out_metrics(fitted_of(ratings_of(1)), ratings([], [], []))
    assert np.isnan(metrics["rmse"])
    assert metrics["count"] == 0


def test_user_rows_are_what_folding_in_gives() -> None:
    given = ratings_of(12)
    result = fitted_of(given)
    rows = result.posterior.fold_in_users(result.items, histories_of(given, 40), current=result.users)
    np.testing.assert_allclose(rows, result.users, atol=1e-6)
