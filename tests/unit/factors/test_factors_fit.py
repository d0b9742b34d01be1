"""The contract of a fit: repeatable, going on from one before, finite on any data, refusing what is not."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from factors import (
    FitOptions,
    FitRefused,
    FitSettings,
    Fitted,
    Ratings,
    Scale,
    Scorer,
    TrialFit,
    all_finite_items,
    fit,
    fit_biases,
    held_out_metrics,
    posterior_of,
    prior_model,
)
from factors.inference.backend import NumpyBackend
from factors.inference.compiled import backend
from factors.inference.compiled.backend import LoopBackend, choose_backend
from factors.inference.histories import compress_pairs
from factors.model.types import Float64s, Link
from factors.training import model_selection
from factors.training.training_set import TrainingSet
from tests.support.odd_data import ODD_DATA, OddData
from tests.unit.factors.factors_world import STARS, fitted_of, histories_of, history, ratings, ratings_of

NAN = math.nan
LINKS = ("gaussian", "ordinal")


def fitted(given: Ratings, n_users: int, n_items: int, scale: Scale = STARS, **settings: object) -> Fitted:
    chosen = FitSettings(scale=scale, **{"sweeps": 5, **settings})  # type: ignore[arg-type]
    return fit(given, n_users, n_items, settings=chosen, rng=np.random.default_rng(0))


def sensible(found: Fitted, n_users: int, n_items: int, time: Float64s | float = 1.7e9) -> Float64s:
    """Finite tables, and every score on the scale, of strangers too: the ratings of all pairs."""
    assert found.users.shape == (n_users, found.model.user_width)
    assert found.items.shape == (n_items, found.model.item_width)
    assert found.users.dtype == found.items.dtype == np.float32
    assert np.isfinite(found.users).all()
    assert all_finite_items(found.model, found.items)
    user, item = (each.ravel() for each in np.meshgrid(np.arange(-1, n_users), np.arange(-1, n_items)))
    scale, scorer = found.model.scale, Scorer(found.posterior, found.items)
    for when in (np.full(user.size, -1e18), None, np.resize(time, user.size)):
        scores = scorer.score(found.users, user, item, when)
        assert np.isfinite(scores.std).all()
        assert (scores.std > 0).all()
        assert ((scores.rating >= scale.low) & (scores.rating <= scale.high)).all()
    return scores.rating


def test_no_ratings_give_the_prior_which_learns_from_the_first() -> None:
    for given in (ratings([], [], []), ratings([0, 1], [0, 1], [NAN, NAN])):
        found = fitted(given, 3, 2)
        np.testing.assert_allclose(sensible(found, 3, 2), 3.0, atol=1e-6)
    posterior = posterior_of(prior_model(FitSettings(scale=STARS)))
    np.testing.assert_array_equal(posterior.prior_user, found.users[0])
    np.testing.assert_array_equal(posterior.prior_item, found.items[0])
    items = np.repeat(posterior.prior_item[None], 3, axis=0)
    users = posterior.fold_in_users(items, history([0, 1], [5.0, 5.0]))
    scores = Scorer(posterior, items).score(users, np.array([0]), np.array([2]))
    assert 3.5 < scores.rating[0] <= 5.0


@pytest.mark.parametrize(
    ("scale", "values", "step"),
    [
        (Scale(1, 5), [1, 2, 3, 4, 5], 1.0),
        (Scale(1, 5), [1, 3, 5], 2.0),
        (Scale(0, 1), [0, 0.1, 0.3, 0.7], 0.1),
        (Scale(-10, 10), [-10, -9, 10], 1.0),
        (Scale(100, 172), [*np.arange(100, 173, 3)], 3.0),
        (Scale(0, 2), [*np.cumsum(np.full(19, 0.1)), *np.arange(20) / 10], 0.1),
        (Scale(1, 5), [1, 2, 3.7], None),
        (Scale(1, 5), [3], None),
        (Scale(0, 1000), [0, 1, 2], None),
        (Scale(1, 5, 0.5), [1, 2, 3], 0.5),
        (Scale(1e6, 2e6), [1e6, 1.5e6, 1.7e6 + 1], None),
    ],
)
def test_the_step_of_a_scale_is_named_or_found(scale: Scale, values: list[float], step: float | None) -> None:
    user, item = np.divmod(np.arange(150), 15)
    found = fitted(ratings(user, item, np.resize(values, 150)), 10, 15, scale, rank=1, sweeps=2)
    sensible(found, 10, 15)
    assert found.model.scale.step == (None if step is None else pytest.approx(step))


def test_a_scale_far_wider_than_the_ratings_costs_them_nothing() -> None:
    given = ratings_of(3)
    given.value[:] += np.random.default_rng(3).uniform(0.0, 0.5, len(given.value))
    narrow, wide = (fitted_of(given, scale=Scale(1.0, high)) for high in (5.5, 1000.0))
    np.testing.assert_allclose(wide.users, narrow.users, atol=0.02)


def test_a_sample_of_a_full_panel_is_of_all_items() -> None:
    user, item = np.divmod(np.arange(1_000 * 100), 100)
    by_user = compress_pairs(user, item, np.ones(len(user)), np.zeros(len(user)), 1_000)
    entries, _ = TrainingSet.of(by_user, 100, NumpyBackend()).sample(1_000)
    assert len(np.unique(by_user.other[entries])) == 100


def test_times_in_any_unit_and_of_which_some_are_nonsense() -> None:
    given = ratings_of(8, n=900)
    seconds = held_out_metrics(fitted_of(given), given)["rmse"]
    given.time[:] *= 1e3
    assert held_out_metrics(fitted_of(given), given)["rmse"] < 1.1 * seconds
    given.time[:] *= 1e6
    sensible(fitted_of(given), 40, 30, given.time)
    given.time[::7], given.time[1::7], given.time[2::7] = NAN, math.inf, -1e300
    sensible(fitted_of(given), 40, 30, given.time)


def test_a_fit_is_the_same_from_the_same_seed_and_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MANY_RATINGS", 1)
    first, *others = (fitted_of(ratings_of(2), threads=threads) for threads in (1, 1, 2))
    for other in others:
        np.testing.assert_array_equal(first.items, other.items)
        np.testing.assert_array_equal(first.users, other.users)


def test_a_fit_goes_on_from_an_earlier_one_with_more_users_and_items() -> None:
    given = ratings_of(10, n=700)
    first = fitted_of(given.take(given.user_row < 30), n_users=30)
    settings = FitSettings(scale=STARS, rank=3, sweeps=30)
    grown, cold = (
        fit(given, 45, 35, settings=settings, rng=np.random.default_rng(0), start=start)
        for start in (first, None)
    )
    sensible(grown, 45, 35)
    warm_error, cold_error = (held_out_metrics(each, given)["rmse"] for each in (grown, cold))
    assert warm_error < 1.1 * cold_error
    settings = FitSettings(scale=STARS, rank=2, sweeps=2)
    other = fit(given, 45, 35, settings=settings, rng=np.random.default_rng(0), start=first)
    assert other.model.rank == 2


@pytest.mark.parametrize("how", [{}, *({"link": link, "session_effects": False} for link in LINKS)])
def test_a_trial_is_served_without_what_it_holds_out_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, object]
) -> None:
    # Of one item all are held out: five of the highest.
    every, rng, sweeps = ratings_of(4, n=700), np.random.default_rng(0), list[int]()
    given = every.take(
        np.append(np.flatnonzero(every.item_row != 7), np.flatnonzero(every.item_row == 7)[:5])
    )
    n = len(given.value)
    given.value[-5:] = 5.0
    out = np.append(rng.choice(n - 5, 60, replace=False), np.arange(n - 5, n))
    settings = FitSettings(STARS, rank=2, **how)  # type: ignore[arg-type]
    trial = TrialFit(given, 40, 30, out, settings=settings, rng=rng)
    before, users = trial.fitted(), np.unique(given.user_row[out])
    found, rest = trial.complete(), given.take(np.setdiff1d(np.arange(n), out))
    for fitted, learned, rows in ((before, rest, users), (found, given, np.arange(40))):
        folded = fitted.posterior.fold_in_users(fitted.items, histories_of(learned, 40), current=fitted.users)
        np.testing.assert_allclose(fitted.users[rows], folded[rows], rtol=2e-5, atol=2e-5)
        counts = fitted.posterior.item_codec.decode(fitted.items)[:, 0]
        np.testing.assert_array_equal(counts, np.bincount(learned.item_row, minlength=30))
    # With little news a refit goes on for as long as it is told, and then learns what it held out.
    monkeypatch.setattr("factors.training.fit._MANY_TO_SETTLE", 100)
    again = FitOptions(settings=settings, rng=rng, start=before, continuation=2)
    again["progress"] = lambda sweep, _: sweeps.append(sweep)
    found = TrialFit(given, 40, 30, out, **again).complete()
    assert sweeps == [1, 2, 1]
    past = histories_of(given, 30, by="item").part(7, 8)
    decode, mean = found.posterior.item_codec.decode, found.posterior.parameters.items.layout.mean
    new = decode(found.posterior.fold_in_items(found.users, past, current=found.items[7:8]))[0, mean]
    np.testing.assert_allclose(decode(found.items[7:8])[0, mean][-1], new[-1], rtol=0.1)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (ratings([0], [0], [6.0]), "outside the scale"),
        (ratings([0], [0], [-np.inf]), "outside the scale"),
        (ratings([2], [0], [3.0]), "user row"),
        (ratings([0], [-1], [3.0]), "item row"),
        (Ratings(np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros(2), np.zeros(2)), "one length"),
    ],
)
def test_what_cannot_be_fitted_is_refused(given: Ratings, reason: str) -> None:
    with pytest.raises(FitRefused, match=reason):
        fitted(given, 2, 2)


# Where ratings follow little of a pattern, factors may be a little worse than biases: by this much of few.
WORSE = 1.1
# Of fewer held out chance decides who predicts better.
LEAST_HELD_OUT = 50


def fitted_odd(data: OddData, given: Ratings, start: Fitted | None = None, **how: object) -> Fitted:
    settings, rng = FitSettings(data.scale, **how), np.random.default_rng(0)  # type: ignore[arg-type]
    found = fit(given, data.n_users, data.n_items, settings=settings, rng=rng, start=start)
    assert np.isfinite(found.users).all()
    assert all_finite_items(found.model, found.items)
    return found


def answers(data: OddData, found: Fitted, of: Ratings) -> Float64s:
    """Ratings of pairs, on the scale, with deviations above 0; those of strangers and of no time are, too."""
    scale, scorer = data.scale, Scorer(found.posterior, found.items)
    unknown = replace(of, time=np.full(len(of.time), np.nan))
    strangers = replace(of, user_row=np.full_like(of.user_row, -1), time=np.full(len(of.time), 1e18))
    for each in (strangers, replace(of, item_row=np.full_like(of.item_row, data.n_items)), unknown, of):
        scores = scorer.score(found.users, each.user_row, each.item_row, each.time)
        assert np.isfinite(scores.std).all()
        assert (scores.std > 0).all()
        assert ((scores.rating >= scale.low) & (scores.rating <= scale.high)).all()
    if data.constant is not None:
        np.testing.assert_allclose(scores.rating, data.constant, atol=0.01 * (scale.high - scale.low))
    return scores.rating


def apart(data: OddData, share: int = 5) -> tuple[Ratings, Ratings]:
    """Ratings to learn, and one in `share` to be asked for: of what is superseded none could be."""
    n = len(data.ratings.value)
    free = n - data.superseded
    asked = np.sort(data.superseded + np.random.default_rng(5).permutation(free)[: free // share])
    known = np.ones(n, dtype=bool)
    known[asked] = False
    if data.superseded:
        known[asked - data.superseded] = False
    return data.ratings.take(known), data.ratings.take(asked)


def error(predicted: Float64s, of: Ratings) -> float:
    return float(np.sqrt(np.mean((predicted - of.value) ** 2)))


def error_of_biases(data: OddData, learned: Ratings, held_out: Ratings) -> float:
    pair = learned.user_row.astype(np.int64) * 100_000 + learned.item_row
    _, last = np.unique(pair[::-1], return_index=True)
    once = learned.take(np.sort(len(learned.value) - 1 - last))
    biases = fit_biases(once, data.n_users, data.n_items, user_ridge=15, item_ridge=10)
    return error(biases.predict(held_out.user_row, held_out.item_row), held_out)


@pytest.fixture(params=["numpy", "compiled"])
def half_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    n = 1 if request.param == "compiled" else 10_000_000
    monkeypatch.setattr("factors.inference.compiled.backend.MANY_RATINGS", n)
    assert isinstance(choose_backend(2, threads=1), LoopBackend) == (n == 1)
    if request.param == "compiled":
        # Terms are chosen by a part of the ratings, as those of large data are.
        monkeypatch.setattr(model_selection, "_MOST_RATINGS", 400)
        monkeypatch.setattr(model_selection, "_MOST_OF_USER", 15)
    return str(request.param)


@pytest.mark.usefixtures("half_step")
@pytest.mark.parametrize("make", ODD_DATA.values(), ids=ODD_DATA)
def test_a_fit_is_finite_and_predicts_no_worse_than_biases(make: Callable[[], OddData]) -> None:
    data = make()
    learned, held_out = apart(data)
    found = fitted_odd(data, learned)
    answers(data, found, learned)
    past = histories_of(learned, data.n_users)
    folded = found.posterior.fold_in_users(found.items, past, current=found.users)
    np.testing.assert_allclose(folded, found.users, rtol=1e-3, atol=1e-3)
    rated = np.unique(learned.item_row[~np.isnan(learned.value)])
    assert found.posterior.item_codec.decode(found.items)[rated, 0].min() >= 1
    answers(data, fitted_odd(data, learned, found, sweeps=2), held_out)
    if len(held_out.value) >= LEAST_HELD_OUT and data.constant is None:
        biases = error_of_biases(data, learned, held_out)
        assert error(answers(data, found, held_out), held_out) <= WORSE * biases
    links: list[Link] = ["gaussian"] if data.scale.step is None else ["gaussian", "ordinal"]
    for link in links:
        if link != found.model.link:
            other = fitted_odd(data, learned, link=link, rank=2, sweeps=4)
            assert other.model.link == link
            answers(data, other, held_out)
