"""The loops that numba compiles give what numpy gives: run as plain Python for every term, compiled once for
all.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest

from factors import Columns, FitSettings, Float64s, Ratings, fit
from factors.inference.backend import MANY_RATINGS, HalfStepBackend, NumpyBackend
from factors.inference.compiled.backend import LOOPS, LoopBackend, choose_backend, load_loops
from factors.inference.compiled.score_kernels import score_entries
from factors.inference.histories import compress_pairs
from factors.inference.ordinal import EntryScores, Sites, level_bounds, ordinal_sites
from factors.model.parameters import SideName
from factors.training.fit import prepare
from factors.training.initialization import initial_state
from factors.training.sweep import State
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet
from tests.unit.factors.factors_world import STARS, ratings_of

TERMS = [
    Terms(),
    Terms("gaussian", 2.0, 2.0),
    Terms("gaussian", 2.0, 2.0, 3600.0, 7200.0),
    Terms("ordinal", 2.0, 0.0),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0),
    Terms("gaussian", 2.0, 2.0, user_attributes=True, item_attributes=True),
    Terms("ordinal", 2.0, 2.0, item_attributes=True),
]


def plain() -> LoopBackend:
    """The loops run by Python: the slow reference of the compiled ones."""
    return LoopBackend({loop: loop for loop in LOOPS})


def columns_of(rows: int) -> Columns:
    """Three columns of numbers, of all rows but the last."""
    table = np.random.default_rng(rows).normal(size=(rows - 1, 3))
    row, column = np.indices(table.shape)
    return Columns.of(np.stack([row.ravel(), column.ravel(), table.ravel()]), table.mean(axis=0), rows)


def swept(ratings: Ratings, terms: Terms, backend: HalfStepBackend) -> State:
    """A state after some sweeps. 17 users: one more than fill the lanes twice."""
    settings = FitSettings(STARS, rank=2)
    attributes: dict[SideName, Columns] = {"user": columns_of(17), "item": columns_of(12)}
    training = TrainingSet.of(prepare(ratings, 17, 12, settings), 12, backend, attributes)
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


@pytest.mark.parametrize("score", [-100.0, -60.0, -25.0, -3.0, 0.1, 2.0, 15.0, 50.0])
@pytest.mark.parametrize("level", [0, 1, 3])
def test_sites_far_from_their_interval_are_those_of_numpy(score: float, level: int) -> None:
    cuts = np.array([-1.0, 0.5, 1.0])
    scores = EntryScores(np.array([score]), np.array([0.3]), np.array([0.0]), np.array([0.0]))
    expected = ordinal_sites(level_bounds(cuts, np.array([level])), 0.5, scores, None, damping=1.0)
    # One user of rank 1 whose score of an item without spread is his bias.
    row = np.array([[0.0, 0.0, 0.0, score, 0.0, 0.0, 0.3]])
    spread = np.zeros((1, 32), dtype=np.float32)
    spread[0, 4] = 1.0
    found = [np.zeros(1) for _ in range(4)]
    nothing = np.zeros(0)
    loop: Callable[..., None] = score_entries
    loop(
        0,
        1,
        np.array([0, 1]),
        np.array([0]),
        row,
        spread,
        2,
        nothing,
        nothing,
        nothing,
        np.zeros((0, 0)),
        0.0,
        nothing,
        nothing,
        np.array([float(level)]),
        np.array([-np.inf, *cuts, np.inf]),
        0.5,
        0.0,
        1.0,
        False,
        1.0,
        *found,
        np.zeros(1),
    )
    assert found[0][0] == pytest.approx(expected.weight[0], rel=2e-5)
    assert found[1][0] == pytest.approx(expected.linear[0], rel=2e-5, abs=1e-6)


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
