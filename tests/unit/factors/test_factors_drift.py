"""Users who move: found where they do and nowhere else, folded in as the fit has them, whatever the times."""

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from environment.world import WorldOptions, make_world
from factors import (
    FitSettings,
    Fitted,
    Histories,
    Ratings,
    Scorer,
    all_finite_items,
    explain,
    fit,
    posterior_of,
)
from factors.inference.backend import HalfStepBackend, NumpyBackend
from factors.inference.compiled.backend import LOOPS, LoopBackend
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import half_step
from factors.inference.histories import compress
from factors.inference.motion import MOST_AGE, ages, anchor_times
from factors.inference.side_moments import gather_side_moments
from factors.model.layout import pack, unpack, user_layout
from factors.model.parameters import Drift, Parameters, from_model, to_model
from factors.model.types import Float64s, Int64s, Link
from factors.training.drift import (
    best_drift,
    latest,
    learn_velocities,
    left_out_gain,
    narrowed,
    start_drift,
    widened,
    with_widening,
)
from factors.training.fit import finish, prepare
from factors.training.initialization import initial_state
from factors.training.sweep import State
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet
from tests.unit.factors.factors_world import STARS, histories_of, history, ratings_of

NAN = math.nan
SHAPE = (40, 60)
PERIOD = 300.0


def drifting(drift: float, n: int = 2000, seed: int = 3) -> Ratings:
    """Ratings in the order of time, of users whose tastes turn by `drift` radians in all."""
    world = make_world(seed, WorldOptions(*SHAPE, n_known=n, drift=drift * 10_000 / n))
    time = np.arange(n, dtype=np.float64)
    return Ratings(world.user[:n], world.item[:n], world.rating[:n].astype(np.float64), time)


def state_of(
    ratings: Ratings, terms: Terms, sweeps: int = 4, backend: HalfStepBackend | None = None
) -> State:
    """A state with these terms after some sweeps."""
    settings = FitSettings(STARS, rank=2)
    training = TrainingSet.of(prepare(ratings, *SHAPE, settings), SHAPE[1], backend)
    state = initial_state(training, settings, np.random.default_rng(1))
    for _ in range(3):
        state.sweep()
    state = state.branch(terms)
    for _ in range(sweeps):
        state.sweep()
    return state


def drift_of(state: State, residual: Float64s) -> float:
    return best_drift(state.parameters, state.item_rows, state.training.by_user, residual)


@pytest.fixture(
    scope="module",
    params=[("gaussian", 0.0), ("ordinal", 0.0), ("gaussian", PERIOD), ("ordinal", PERIOD)],
    ids=lambda given: f"{given[0]}, {'periods' if given[1] else 'no periods'}",
)
def moving(request: pytest.FixtureRequest) -> Fitted:
    """A fit of users who move, with implicit effects."""
    link: Link
    link, session_length = request.param
    return finish(state_of(drifting(1.0), Terms(link, 2.0, 2.0, session_length, 0.0, 0.3)), {})


def joint_by_hand(
    parameters: Parameters, items: Float64s, ratings: Ratings, user: int
) -> tuple[Float64s, Float64s]:
    """Position and velocity of one user with the Gaussian link, without sessions: a regression in loops."""
    side, layout, drift = parameters.users, parameters.items.layout, parameters.users.drift
    assert drift is not None
    dim, mine = layout.dim, np.flatnonzero(ratings.user_row == user)
    newest = ratings.time[mine].max()
    prior_mean = side.mean.copy()
    for entry in mine:
        prior_mean = prior_mean + items[ratings.item_row[entry], layout.implicit_effect] / math.sqrt(
            len(mine)
        )
    precision = np.zeros((2 * dim, 2 * dim))
    precision[:dim, :dim], precision[dim:, dim:] = side.precision, drift.precision
    linear = precision @ np.append(prior_mean, np.zeros(dim))
    for entry in mine:
        row = items[ratings.item_row[entry]]
        age = (newest - ratings.time[entry]) / drift.unit
        covariance = unpack(row[None, layout.covariance], dim)[0]
        features, bias = np.append(row[layout.latent], 1.0), row[layout.bias]
        second = np.outer(features, features)
        second[:-1, :-1] += covariance[:-1, :-1]
        cross = features * bias
        cross[:-1] += covariance[:-1, -1]
        basis = np.array([1.0, -age])
        precision += np.kron(np.outer(basis, basis), second) / parameters.noise
        seen = features * (ratings.value[entry] - parameters.mean) - cross
        linear += np.kron(basis, seen) / parameters.noise
    joint: Float64s = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    return joint @ linear, joint


def test_a_fold_in_is_the_regression_on_positions_and_velocities() -> None:
    ratings = drifting(1.0)
    fitted = finish(state_of(ratings, Terms("gaussian", 2.0, 2.0, 0.0, 0.0, 0.3)), {})
    parameters, layout = from_model(fitted.model), user_layout(fitted.model)
    rows = fitted.posterior.fold_in_users(fitted.items, histories_of(ratings, SHAPE[0]))
    for user in (0, 7, 21):
        mean, covariance = joint_by_hand(
            parameters, fitted.posterior.item_codec.decode(fitted.items).astype(np.float64), ratings, user
        )
        found = np.concatenate([rows[user, layout.mean], rows[user, layout.velocity]])
        np.testing.assert_allclose(found, mean, rtol=1e-3, atol=1e-4)
        spread = unpack(rows[user][None, layout.covariance], layout.dim)[0]
        np.testing.assert_allclose(spread, covariance[: layout.dim, : layout.dim], rtol=1e-3, atol=1e-5)


def test_folding_in_gives_the_rows_of_the_fit_alone_or_together(moving: Fitted) -> None:
    ratings = drifting(1.0)
    together = moving.posterior.fold_in_users(
        moving.items, histories_of(ratings, SHAPE[0]), current=moving.users
    )
    np.testing.assert_allclose(together, moving.users, rtol=1e-4, atol=1e-5)
    for user in (0, 11):
        mine = np.flatnonzero(ratings.user_row == user)[::-1]
        past = history(
            ratings.item_row[mine].tolist(), ratings.value[mine].tolist(), ratings.time[mine].tolist()
        )
        alone = moving.posterior.fold_in_users(moving.items, past, current=moving.users[user : user + 1])
        np.testing.assert_allclose(alone[0], together[user], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_items_fold_in_as_the_half_step_of_the_fit_has_them(link: Link) -> None:
    state = state_of(drifting(1.0), Terms(link, 2.0, 2.0, 0.0, 0.0, 0.3), sweeps=15)
    parameters, users = state.parameters, state.user_rows
    step = half_step(HalfStepInput.of(parameters, "item", users, state.training.by_item))
    again = posterior_of(to_model(parameters)).fold_in_items(
        users.astype(np.float32), histories_of(drifting(1.0), SHAPE[1], by="item")
    )
    mean = parameters.items.layout.mean
    np.testing.assert_allclose(again[:, mean], step.rows[:, mean], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "terms", [Terms("gaussian", 2.0, 2.0, 0.0, 0.0, 0.3), Terms("ordinal", 2.0, 2.0, PERIOD, 0.0, 0.3)]
)
def test_the_loops_for_many_ratings_give_the_same(terms: Terms) -> None:
    ratings = drifting(1.0, n=300)
    one, other = (
        state_of(ratings, terms),
        state_of(ratings, terms, backend=LoopBackend({loop: loop for loop in LOOPS})),
    )
    np.testing.assert_allclose(one.user_rows, other.user_rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.item_rows, other.item_rows, rtol=1e-4, atol=1e-5)
    assert one.parameters.noise == pytest.approx(other.parameters.noise, rel=1e-4)


def test_parameters_survive_their_way_through_a_model(moving: Fitted) -> None:
    known = from_model(moving.model)
    again = from_model(to_model(known))
    assert known.users.drift is not None
    assert again.users.drift is not None
    assert again.users.layout == known.users.layout == user_layout(moving.model)
    np.testing.assert_array_equal(again.users.drift.covariance, known.users.drift.covariance)
    np.testing.assert_array_equal(again.users.drift.precision, known.users.drift.precision)
    assert again.items.drift is None


def test_contributions_add_up(moving: Fitted) -> None:
    ratings = drifting(1.0)
    mine = np.flatnonzero(ratings.user_row == 5)
    past = history(ratings.item_row[mine].tolist(), ratings.value[mine].tolist(), ratings.time[mine].tolist())
    current = moving.users[5:6]
    found = explain(moving.posterior, moving.items, past, 9, current=current)
    row = moving.posterior.fold_in_users(moving.items, past, current=current)
    rating = (
        Scorer(moving.posterior, moving.items).score(row, np.zeros(1, dtype=np.int64), np.array([9])).rating
    )
    assert found.base + found.contributions.sum() == pytest.approx(float(rating[0]), abs=1e-4)
    # Without a rating, what is left moves as it would without its contribution: the posterior is linear.
    empty = moving.posterior.fold_in_users(moving.items, history([], []), current=current)
    scorer = Scorer(moving.posterior, moving.items)
    base = scorer.score(empty, np.zeros(1, dtype=np.int64), np.array([9])).rating[0]
    assert found.base == pytest.approx(float(base), abs=0.25)


def test_what_a_user_was_is_asked_for_by_time() -> None:
    ratings = drifting(1.5)
    moving = finish(state_of(ratings, Terms("gaussian", 0.0, 0.0, 0.0, 0.0, 0.3), sweeps=10), {})
    old = np.flatnonzero(ratings.time < 300)
    scorer = Scorer(moving.posterior, moving.items)
    user, item = ratings.user_row[old].astype(np.int64), ratings.item_row[old].astype(np.int64)
    then = scorer.score(moving.users, user, item, ratings.time[old]).rating
    now = scorer.score(moving.users, user, item).rating
    future = scorer.score(moving.users, user, item, np.full(len(old), 1e12)).rating
    np.testing.assert_array_equal(now, future)
    assert np.mean((then - ratings.value[old]) ** 2) < 0.8 * np.mean((now - ratings.value[old]) ** 2)


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
@pytest.mark.parametrize(
    "times",
    [
        [NAN] * 4,
        [500.0] * 4,
        [NAN, 500.0, NAN, 1500.0],
        [1e15, 1e16, 1e17, 1e18],
        [500.0, 600.0, 1e300, math.inf],
        [-1e300, -1e12, 0.0, -math.inf],
    ],
    ids=["unknown", "constant", "some unknown", "ns", "future", "past"],
)
def test_any_times_give_finite_rows(link: Link, times: list[float]) -> None:
    moving = finish(state_of(drifting(1.0), Terms(link, 2.0, 2.0, 0.0, 0.0, 0.3)), {})
    layout = user_layout(moving.model)
    row = moving.posterior.fold_in_users(moving.items, history([0, 1, 2, 3], [1.0, 5.0, 3.0, 4.0], times))
    assert np.isfinite(row).all()
    back = moving.posterior.fold_in_items(row, history([0, 0], [4.0, 2.0], times[:2]))
    assert all_finite_items(moving.model, back)
    if len({str(time) for time in times}) == 1:
        # Nothing is known of a velocity, and the position is that of a model without.
        np.testing.assert_array_equal(row[0, layout.velocity], 0.0)
    one = moving.posterior.fold_in_users(moving.items, history([3], [4.0], times[:1]))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one[0, layout.velocity], 0.0)
    nothing = moving.posterior.fold_in_users(moving.items, history([], []))
    assert np.isfinite(nothing).all()


def test_times_count_from_the_latest_rating_of_a_row() -> None:
    drift = Drift(100.0, 10.0, np.eye(2), np.eye(2))
    given = Histories(
        np.array([0, 3, 3, 5]),
        np.array([0, 1, 2, 0, 1], dtype=np.int32),
        np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        np.array([120.0, 110.0, NAN, NAN, math.inf]),
    )
    data = compress(given, 3)
    anchored = anchor_times(drift, data)
    np.testing.assert_allclose(anchored, [2.0, 0.0, 0.0])
    np.testing.assert_allclose(ages(drift, anchored[data.row], data.time), [0.0, 1.0, 0.0, 0.0, 0.0])
    far = ages(drift, np.array([2.0, 2.0, 2.0]), np.array([-1e300, 1e300, 0.0]))
    np.testing.assert_array_equal(far, [MOST_AGE, 0.0, MOST_AGE])


def test_a_drift_needs_times_that_differ() -> None:
    side = state_of(drifting(0.0), Terms()).parameters.users
    for time in (np.array([]), np.full(9, NAN), np.full(9, 5.0), np.array([-1e308, 1e308] * 9)):
        assert start_drift(side, time) is None
    nonsense = np.append(np.arange(1000.0), [1e15, -1e15, NAN])
    found = start_drift(side, nonsense)
    assert found is not None
    assert 900.0 < found.unit < 1100.0


def test_a_prior_of_velocities_is_learned_from_them() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([[0.5, 0.2], [0.2, 0.3]])
    velocity = rng.multivariate_normal(np.zeros(2), truth, 20_000)
    drift = Drift(0.0, 1.0, np.eye(2), np.eye(2))
    learned = learn_velocities(drift, velocity, np.zeros((20_000, 2, 2)))
    np.testing.assert_allclose(learned.covariance, truth, atol=0.02)
    np.testing.assert_allclose(learned.covariance @ learned.precision, np.eye(2), atol=1e-6)
    assert learn_velocities(drift, velocity[:0], np.zeros((0, 2, 2))) is drift


def test_drift_is_found_where_there_is_some_and_foretells_better() -> None:
    rng = np.random.default_rng(0)
    for turned in (0.0, 1.5):
        ratings = drifting(turned)
        known = Ratings(
            ratings.user_row[:1700], ratings.item_row[:1700], ratings.value[:1700], ratings.time[:1700]
        )
        state = state_of(known, Terms())
        found = drift_of(state, state.residuals())
        assert (found > 0) == (turned > 0)
        assert drift_of(state, np.zeros(1700)) == 0.0
    errors = []
    for sessions in (True, False):
        settings = FitSettings(STARS, rank=3, session_effects=sessions)
        fitted = fit(known, *SHAPE, settings=settings, rng=rng)
        assert (from_model(fitted.model).users.drift is not None) == sessions
        rest = slice(1700, 2000)
        user, item = ratings.user_row[rest].astype(np.int64), ratings.item_row[rest].astype(np.int64)
        scores = Scorer(fitted.posterior, fitted.items).score(fitted.users, user, item, ratings.time[rest])
        errors.append(float(np.mean((scores.rating - ratings.value[rest]) ** 2)))
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(("turned", "moves"), [(0.0, False), (0.1, False), (0.25, True), (0.5, True)])
def test_a_slow_drift_is_found_where_ratings_say_surely_that_it_is_worth_it(
    turned: float, moves: bool
) -> None:
    n, shape, settings = 7200, (100, 300), FitSettings(STARS)
    world = make_world(3, WorldOptions(*shape, n_known=n, drift=turned * 10_000 / n))
    value, time = world.rating[:n].astype(np.float64), np.arange(n, dtype=np.float64)
    by_user = prepare(Ratings(world.user[:n], world.item[:n], value, time), *shape, settings)
    training = TrainingSet.of(by_user, shape[1])
    state = initial_state(training, settings, np.random.default_rng(0)).run(6)
    assert (drift_of(state, state.residuals()) > 0) == moves


def test_the_gain_of_velocities_is_that_of_ratings_that_were_left_out() -> None:
    rng, state = np.random.default_rng(2), state_of(drifting(1.0, n=300), Terms())
    by_user, layout = state.training.by_user, state.parameters.items.layout
    rows = state.item_rows.copy()
    # With items that are known exactly it is a linear regression.
    rows[:, layout.covariance] = 0.0
    items = gather_side_moments(state.parameters.items, rows, by_user)
    age, residual = rng.uniform(-1, 1, 300), rng.normal(size=300)
    variance, prior = float(np.mean(residual**2)), 0.3 * np.eye(layout.dim)
    features = age[:, None] * items.features[items.rows_of(np.arange(300))]

    def posterior(entries: Int64s) -> tuple[Float64s, Float64s]:
        seen = features[entries]
        covariance: Float64s = np.asarray(
            np.linalg.inv(np.linalg.inv(prior) + seen.T @ seen / variance), np.float64
        )
        return covariance @ (seen.T @ residual[entries]) / variance, covariance

    whole = [posterior(np.flatnonzero(by_user.row == user)) for user in range(by_user.rows)]
    found = left_out_gain(
        *(items, by_user, age, residual),
        velocity=np.stack([mean for mean, _ in whole]),
        covariance=pack(np.stack([covariance for _, covariance in whole])),
    )
    for entry in (0, 50, 299):
        others = np.flatnonzero(by_user.row == by_user.row[entry])
        mean, covariance = posterior(others[others != entry])
        spread = variance + float(features[entry] @ covariance @ features[entry])
        error = residual[entry] - float(features[entry] @ mean)
        gain = residual[entry] ** 2 / variance - error**2 / spread - math.log(spread / variance)
        assert found[entry] == pytest.approx(0.5 * gain)


@pytest.mark.timeout(600)  # compiling takes 20 s, and several times that on a machine that does other things
@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `fast`)")
def test_of_many_ratings_compiled_loops_learn_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    ratings, settings = drifting(1.5), FitSettings(STARS, rank=3)
    monkeypatch.setattr(NumpyBackend, "most_apart", 400)
    for compiled in (False, True):
        monkeypatch.setattr(
            "factors.inference.compiled.backend.MANY_RATINGS", 400 if compiled else len(ratings.value) + 1
        )
        found = fit(ratings, *SHAPE, settings=settings, rng=np.random.default_rng(0))
        # Of so many numpy looks for none.
        assert (from_model(found.model).users.drift is not None) == compiled


def test_ratings_of_one_sitting_or_no_time_show_no_drift() -> None:
    for given in (ratings_of(3), ratings_of(3, timed=False)):
        settings = FitSettings(STARS, rank=2)
        training = TrainingSet.of(prepare(given, 40, 30, settings), 30)
        state = initial_state(training, settings, np.random.default_rng(1))
        state.sweep()
        assert drift_of(state, state.residuals()) == 0.0


def test_a_refit_goes_on_with_the_drift_that_was_found() -> None:
    state = state_of(drifting(1.0), Terms("ordinal", 0.0, 0.0, 0.0, 0.0, 0.3), sweeps=15)
    first = finish(state, {})
    known = from_model(first.model)
    start = replace(known, decided=2000.0)
    begun = Fitted(to_model(start), first.users, first.items)
    settings = FitSettings(STARS, rank=2, sweeps=3)
    ratings = drifting(1.0)
    # Of fewer than 5,000 ratings terms are chosen again: so the state itself goes on.
    training = TrainingSet.of(prepare(ratings, *SHAPE, settings), SHAPE[1])
    again = State.of_rows(
        training,
        replace(
            start, users=replace(start.users, cold_start=None), items=replace(start.items, cold_start=None)
        ),
        begun.users.astype(np.float64),
        begun.posterior.item_codec.decode(begun.items).astype(np.float64),
    )
    again.sweep()
    second = finish(again, {})
    pairs = ratings.user_row.astype(np.int64), ratings.item_row.astype(np.int64)
    before, after = (
        Scorer(fitted.posterior, fitted.items).score(fitted.users, *pairs, ratings.time).rating
        for fitted in (first, second)
    )
    assert np.sqrt(np.mean((before - after) ** 2)) < 0.1


def test_the_latest_ratings_of_each_row() -> None:
    given = Histories(
        np.array([0, 4, 6, 10]),
        np.array([0, 1, 2, 3, 0, 1, 0, 1, 2, 3], dtype=np.int32),
        np.ones(10),
        np.array([4.0, 1.0, 3.0, 2.0, 7.0, 8.0, NAN, NAN, 5.0, NAN]),
    )
    np.testing.assert_array_equal(latest(compress(given, 4), 0.5), [0, 2, 5, 8])
    np.testing.assert_array_equal(latest(compress(given, 4), 0.1), [])


def test_widening_is_undone_for_a_fit_that_goes_on(moving: Fitted) -> None:
    known = from_model(moving.model)
    wide = widened(with_widening(known, 4.0))
    drift, before = wide.users.drift, known.users.drift
    assert drift is not None
    assert before is not None
    np.testing.assert_allclose(drift.covariance, 4.0 * before.covariance)
    np.testing.assert_allclose(drift.covariance @ drift.precision, np.eye(len(drift.covariance)), atol=1e-6)
    again = narrowed(from_model(to_model(wide))).users.drift
    assert again is not None
    np.testing.assert_allclose(again.covariance, before.covariance)
    assert again.widening == 4.0
    still = state_of(drifting(0.0), Terms()).parameters
    assert widened(still) is narrowed(still) is with_widening(still, 4.0) is still
