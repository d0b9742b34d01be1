"""The loops that numba compiles give what numpy gives: run as plain Python for every term, compiled once for
all.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import cast

import numpy as np
import pytest

from factors import Columns, FitSettings, Float64s, Int64s, Ratings, fit
from factors.inference.backend import MANY_RATINGS, HalfStepBackend, NumpyBackend
from factors.inference.compiled import backend
from factors.inference.compiled.backend import LOOPS, LoopBackend, choose_backend, load_loops
from factors.inference.compiled.score_kernels import move_sites, score_entries
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import Iteration, half_step
from factors.inference.histories import NO_SESSIONS, Compressed, compress_pairs
from factors.inference.ordinal import EntryScores, Sites, level_bounds, ordinal_sites
from factors.model.context import learn_context_encoding
from factors.model.parameters import SideName
from factors.model.types import ContextKind
from factors.training.fit import finish, prepare
from factors.training.initialization import initial_state
from factors.training.sweep import State
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet
from tests.unit.factors.factors_world import STARS, ratings_of

TERMS = [
    Terms(),
    Terms("gaussian", 2.0, 2.0),
    Terms("gaussian", 2.0, 2.0, 3600.0, 7200.0),
    Terms("gaussian", 2.0, 2.0, 3600.0, 7200.0, user_sitting=14400.0),
    Terms("ordinal", 2.0, 0.0),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0),
    Terms("gaussian", 2.0, 2.0, user_attributes=True, item_attributes=True),
    Terms("ordinal", 2.0, 2.0, item_attributes=True),
    Terms("gaussian", 2.0, 2.0, user_drift=0.3),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, user_sitting=14400.0),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, user_sitting=14400.0, user_drift=0.3),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, user_drift=0.3),
    Terms("gaussian", 2.0, 2.0, context=True),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, context=True),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, user_drift=0.3, item_attributes=True, context=True),
]
KINDS: tuple[ContextKind, ...] = ("number", "category")


def with_context(ratings: Ratings) -> Ratings:
    """Each with a number and a category, both of which move its rating; some are unknown."""
    rng, n = np.random.default_rng(9), len(ratings.value)
    context = np.stack([rng.normal(size=n), rng.integers(0, 3, n)], axis=1).astype(np.float32)
    value = np.clip(np.rint(ratings.value + context[:, 0] + (context[:, 1] == 1)), 1, 5)
    context[::7, 0] = context[3::9, 1] = np.nan
    return replace(ratings, value=value, context=context)


def plain() -> LoopBackend:
    """The loops run by Python: the slow reference of the compiled ones."""
    return LoopBackend({loop: loop for loop in LOOPS})


def columns_of(rows: int) -> Columns:
    """Three columns of numbers, of all rows but the last."""
    table = np.random.default_rng(rows).normal(size=(rows - 1, 3))
    row, column = np.indices(table.shape)
    return Columns.of(np.stack([row.ravel(), column.ravel(), table.ravel()]), table.mean(axis=0), rows)


def swept(ratings: Ratings, terms: Terms, backend: HalfStepBackend, *, n_items: int = 12) -> State:
    """A state after some sweeps. 17 users: one more than fill the lanes twice."""
    settings = FitSettings(STARS, rank=2)
    attributes: dict[SideName, Columns] = {"user": columns_of(17), "item": columns_of(n_items)}
    by_user = prepare(with_context(ratings), 17, n_items, settings)
    by_user.time[5] = np.nan
    encoding = learn_context_encoding(by_user.context, KINDS)
    training = TrainingSet.of(by_user, n_items, backend, attributes, encoding)
    state = initial_state(training, settings, np.random.default_rng(1))
    state.sweep()
    state = state.branch(terms)
    for _ in range(3):
        state.sweep()
    return state


def assert_same(one: State, other: State) -> None:
    np.testing.assert_allclose(one.user_rows, other.user_rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.item_rows, other.item_rows, rtol=1e-5, atol=1e-6)
    assert one.parameters.noise == pytest.approx(other.parameters.noise, rel=2e-5)
    assert one.change == pytest.approx(other.change, rel=1e-4)


@pytest.mark.parametrize("terms", TERMS)
def test_plain_loops_give_what_numpy_gives(terms: Terms) -> None:
    ratings = ratings_of(5, n_users=16, n_items=11, n=90)
    assert_same(swept(ratings, terms, NumpyBackend()), swept(ratings, terms, plain()))


def test_the_end_of_a_fit_has_the_memory_of_the_sites() -> None:
    state = swept(ratings_of(5, n_users=16, n_items=11, n=90), Terms("ordinal", 2.0, 2.0), NumpyBackend())
    assert len(state.slopes()[0]) == 90
    finish(state, {})
    assert len(state.slopes()[0]) == 0


@pytest.mark.parametrize("terms", TERMS)
def test_scores_of_a_few_rows_at_a_time_are_those_of_all(
    monkeypatch: pytest.MonkeyPatch, terms: Terms
) -> None:
    ratings = ratings_of(5, n_users=16, n_items=11, n=90)
    whole = swept(ratings, terms, plain())
    monkeypatch.setattr(backend, "_SCORED_AT_ONCE", 7)
    parts = swept(ratings, terms, plain())
    assert np.array_equal(whole.user_rows, parts.user_rows)
    assert np.array_equal(whole.item_rows, parts.item_rows)
    sites = parts.steps["user"].sites
    assert np.array_equal(whole.steps["user"].sites.mean, sites.mean)
    # Those of the items are not asked.
    assert len(parts.steps["item"].sites.mean) == 0


def test_loops_come_to_rest_in_few_steps() -> None:
    state = swept(ratings_of(5, n_users=16, n_items=11, n=90), Terms("ordinal", 2.0, 2.0), plain())
    inputs = HalfStepInput.of(state.parameters, "user", state.item_rows, state.training.by_user)
    scored = []

    def counted(*arguments: object) -> None:
        scored.append(1)
        cast("Callable[..., None]", score_entries)(*arguments)

    loops = {loop: counted if loop is score_entries else loop for loop in LOOPS}
    # One row is one part: as many calls as steps, of which there are 30 where it never rests.
    data = state.training.by_user
    n = data.indptr[1]
    alone = Compressed(data.indptr[:2], data.other[:n], data.value[:n], data.time[:n], data.source[:n])
    inputs = replace(inputs, data=alone, sessions=NO_SESSIONS)
    found, expected = LoopBackend(loops).half_step(inputs, Iteration(at_rest=0.0)), half_step(inputs)
    np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-4, atol=2e-6)
    assert len(scored) < 15


def test_rounded_covariances_make_no_variance_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they come from stored rows of an earlier fit."""
    states = [
        swept(ratings_of(5, n_users=16, n_items=11, n=90), Terms("ordinal", 2.0, 0.0), backend)
        for backend in (NumpyBackend(), plain())
    ]
    lowest: list[float] = []

    def seen(
        bounds: tuple[Float64s, Float64s],
        noise: float,
        scores: EntryScores,
        before: Sites | None,
        *,
        damping: float,
    ) -> Sites:
        lowest.append(float(scores.other_variance.min()))
        return ordinal_sites(bounds, noise, scores, before, damping=damping)

    monkeypatch.setattr("factors.inference.half_step.ordinal_sites", seen)
    for state in states:
        state.item_rows[:, state.parameters.items.layout.covariance] *= -0.05
        state.sweep()
    assert lowest
    assert min(lowest) == 0.0
    assert_same(*states)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `fast`)")
def test_compiled_loops_give_what_numpy_gives_on_two_threads() -> None:
    ratings = ratings_of(5, n_users=16, n_items=11, n=90)
    loops = load_loops()
    backends = (NumpyBackend(), LoopBackend(loops, 1), LoopBackend(loops, 2))
    states = [swept(ratings, TERMS[-1], given) for given in backends]
    assert_same(states[0], states[1])
    np.testing.assert_array_equal(states[1].user_rows, states[2].user_rows)
    np.testing.assert_array_equal(states[1].item_rows, states[2].item_rows)


def test_small_fits_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "factors.inference.compiled.backend.load_loops", lambda: pytest.fail("numba was wanted")
    )
    ratings = ratings_of(5, n_users=16, n_items=11, n=90)
    settings = FitSettings(STARS, rank=2, sweeps=2, threads=2)
    assert np.isfinite(fit(ratings, 17, 12, settings=settings, rng=np.random.default_rng(1)).users).all()
    assert isinstance(choose_backend(MANY_RATINGS - 1, threads=2, block_rows=8192), NumpyBackend)


def test_a_fit_without_numba_is_done_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factors.inference.compiled.backend.load_loops", dict[str, object])
    assert isinstance(choose_backend(MANY_RATINGS, threads=2, block_rows=8192), NumpyBackend)


def test_a_whole_fit_is_the_same_with_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = ratings_of(6, n_users=16, n_items=11, n=150)
    settings = FitSettings(STARS, rank=2, sweeps=3)
    expected = fit(ratings, 17, 12, settings=settings, rng=np.random.default_rng(1))
    monkeypatch.setattr(import_module("factors.training.fit"), "choose_backend", lambda *_, **__: plain())
    found = fit(ratings, 17, 12, settings=settings, rng=np.random.default_rng(1))
    assert found.model.link == expected.model.link
    np.testing.assert_allclose(found.users, expected.users, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.items, expected.items, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("terms", [Terms("gaussian", 2.0, 2.0), Terms("ordinal", 2.0, 2.0, 3600.0)])
def test_rows_of_more_entries_than_are_worked_on_at_once_are_those_of_numpy(terms: Terms) -> None:
    ratings = ratings_of(7, n_users=3, n_items=150, n=400)
    assert_same(
        swept(ratings, terms, NumpyBackend(), n_items=151), swept(ratings, terms, plain(), n_items=151)
    )


def moved(
    cuts: Float64s, noise: float, scores: EntryScores, level: Int64s, before: Sites | None = None
) -> list[Float64s]:
    """Weight, linear term, mean and variance of sites that the loop moves half-way from those before."""
    n, loop, start = len(scores.mean), move_sites, before or Sites(*np.zeros((4, len(scores.mean))))
    found = [start.weight.copy(), start.linear.copy(), scores.mean.copy(), scores.other_variance.copy()]
    bounds = np.concatenate([[-np.inf], cuts, [np.inf]])
    link = (bounds, noise, 0.0, 1.0, before is not None, 0.5)
    cast("Callable[..., None]", loop)(
        0, n, level.astype(float), scores.offset, 0.0, *link, scores.own_variance, *found
    )
    return found


@pytest.mark.parametrize("noise", [1e-4, 0.5, 30.0])
def test_moved_sites_are_those_of_numpy(noise: float) -> None:
    rng = np.random.default_rng(8)
    cuts, n = np.array([-1.0, -0.99, 0.5, 1.0, 4.0]), 300
    scores = EntryScores(
        rng.normal(0.5, 2.0, n), rng.uniform(0.01, 0.3, n), rng.uniform(0.0, 0.2, n), rng.normal(0.1, 0.1, n)
    )
    level = rng.integers(0, 6, n)
    bounds = level_bounds(cuts, level)
    first = ordinal_sites(bounds, noise, scores, None, damping=1.0)
    for before, expected in (
        (None, first),
        (first, ordinal_sites(bounds, noise, scores, first, damping=0.5)),
    ):
        found = moved(cuts, noise, scores, level, before)
        for array, wanted in zip(
            found, (expected.weight, expected.linear, expected.mean, expected.variance), strict=True
        ):
            # Hundreds of deviations away both lose digits, each its own.
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("score", [-1e4, -100.0, -60.0, -25.0, -3.0, 0.1, 2.0, 15.0, 50.0])
@pytest.mark.parametrize("level", [0, 1, 3])
def test_sites_far_from_their_interval_are_those_of_numpy(score: float, level: int) -> None:
    cuts, levels = np.array([-1.0, 0.5, 1.0]), np.array([level])
    scores = EntryScores(np.array([score]), np.array([0.3]), np.array([0.0]), np.array([0.0]))
    expected = ordinal_sites(level_bounds(cuts, levels), 0.5, scores, None, damping=1.0)
    weight, linear, _, _ = moved(cuts, 0.5, scores, levels)
    assert weight[0] == pytest.approx(expected.weight[0], rel=1e-5)
    assert linear[0] == pytest.approx(expected.linear[0], rel=1e-5, abs=1e-6)


def test_many_pairs_are_ordered_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    row, other = rng.integers(0, 50, 3000), rng.integers(-1, 40, 3000)
    value, time = rng.integers(1, 6, 3000).astype(float), rng.uniform(0, 1e9, 3000)
    few = compress_pairs(row, other, value, time, 60)
    monkeypatch.setattr("factors.inference.histories._MANY", 0)
    many = compress_pairs(row, other, value, time, 60)
    for name in ("indptr", "other", "value", "time", "source"):
        np.testing.assert_array_equal(getattr(many, name), getattr(few, name))


@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `fast`)")
@pytest.mark.parametrize("fails", ["nowhere to keep it", "no space to keep it"])
def test_compiled_code_that_cannot_be_kept_is_used_all_the_same(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caching = import_module("numba.core.caching")

    def no_locator(*_: object, **__: object) -> None:
        raise RuntimeError("no locator available")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if fails == "nowhere to keep it":
        monkeypatch.setattr(caching.FunctionCache, "__init__", no_locator)
    else:
        monkeypatch.setattr(caching.FunctionCache, "load_overload", lambda *_: None)
        monkeypatch.setattr(caching.FunctionCache, "save_overload", no_space)
    loops = load_loops.__wrapped__()
    indptr, table = np.array([0, 2, 3]), np.array([[1.0], [2.0]])
    sums = LoopBackend(loops).sum_rows(indptr, np.array([0, 1, 1]), table, np.ones(2))
    np.testing.assert_array_equal(sums, [[3.0], [2.0]])
