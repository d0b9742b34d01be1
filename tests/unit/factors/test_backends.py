"""The loops that numba compiles give what numpy gives, as plain Python and compiled."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from factors import Columns, FitSettings, Histories, Ratings, Scale
from factors.inference import ordering
from factors.inference.backend import HalfStepBackend, NumpyBackend
from factors.inference.compiled import backend, history, history_kernels, object_code
from factors.inference.compiled.backend import LOOPS, LoopBackend, load_loops
from factors.inference.histories import Compressed
from factors.model.context import learn_context_encoding
from factors.model.parameters import SideName
from factors.model.types import ContextKind, Float64s
from factors.posterior import rating_posterior
from factors.training import training_set
from factors.training.fit import prepare
from factors.training.initialization import initial_state
from factors.training.sweep import State
from factors.training.tables import finish, served
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet
from featurestore.users import compiled
from tests.support.waiting import some
from tests.unit.factors.factors_world import STARS, ratings_of

TERMS = [
    Terms(),
    Terms("gaussian", 2.0, 2.0, 3600.0, 7200.0, user_sitting=14400.0),
    Terms("ordinal", 2.0, 0.0),
    Terms("gaussian", 2.0, 2.0, user_attributes=True, item_attributes=True),
    Terms("gaussian", 2.0, 2.0, user_drift=0.3),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, user_sitting=14400.0, user_drift=0.3),
    Terms("gaussian", 2.0, 2.0, context=True),
    Terms("ordinal", 2.0, 2.0, 3600.0, 7200.0, user_drift=0.3, item_attributes=True, context=True),
]
KINDS: tuple[ContextKind, ...] = ("number", "category")


def with_context(ratings: Ratings) -> Ratings:
    rng, n = np.random.default_rng(9), len(ratings.value)
    context = np.stack([rng.normal(size=n), rng.integers(0, 3, n)], axis=1).astype(np.float32)
    value = np.clip(np.rint(ratings.value + context[:, 0] + (context[:, 1] == 1)), 1, 5)
    context[::7, 0] = context[3::9, 1] = np.nan
    return replace(ratings, value=value, context=context)


def columns_of(rows: int) -> Columns:
    table = np.random.default_rng(rows).normal(size=(rows - 1, 3))
    row, column = np.indices(table.shape)
    return Columns.of(np.stack([row.ravel(), column.ravel(), table.ravel()]), table.mean(axis=0), rows)


def swept(ratings: Ratings, terms: Terms, backend: HalfStepBackend, *, n_items: int = 12) -> State:
    """A state after some sweeps. 17 users: one more than fill the lanes twice."""
    settings = FitSettings(Scale(1, 5) if terms.user_sitting else STARS, rank=2)
    attributes: dict[SideName, Columns] = {"user": columns_of(17), "item": columns_of(n_items)}
    by_user = prepare(with_context(ratings), 17, n_items, settings)
    by_user.time[5] = np.nan
    encoding = learn_context_encoding(by_user.context, KINDS)
    training = TrainingSet.of(by_user, n_items, backend, attributes, encoding)
    state = initial_state(training, settings, np.random.default_rng(1))
    state.sweep()
    state = state.branch(terms)
    for _ in range(2):
        state.sweep()
    return state


def assert_same(one: State, other: State) -> None:
    np.testing.assert_allclose(one.user_rows, other.user_rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.item_rows, other.item_rows, rtol=1e-5, atol=1e-6)
    assert one.parameters.noise == pytest.approx(other.parameters.noise, rel=2e-5)
    assert one.change == pytest.approx(other.change, rel=1e-4)


@pytest.mark.parametrize("terms", TERMS)
def test_plain_loops_give_what_numpy_gives(monkeypatch: pytest.MonkeyPatch, terms: Terms) -> None:
    # Scores of a few rows at a time are those of all.
    monkeypatch.setattr(backend, "_SCORED_AT_ONCE", 7)
    ratings = ratings_of(5, n_users=16, n_items=11, n=90)
    plain = LoopBackend({loop: loop for loop in LOOPS})
    assert_same(swept(ratings, terms, NumpyBackend()), swept(ratings, terms, plain))


def test_compiled_loops_give_what_numpy_gives_on_two_threads() -> None:
    ratings = ratings_of(5, n_users=16, n_items=11, n=90)
    loops = load_loops()
    backends = (NumpyBackend(), LoopBackend(loops, 1), LoopBackend(loops, 2))
    states = [swept(ratings, TERMS[-1], given) for given in backends]
    assert_same(states[0], states[1])
    assert [backends[1].values(low + ratings.value).dtype for low in (0.0, 2e7)] == ["float32", "float64"]
    np.testing.assert_array_equal(states[1].user_rows, states[2].user_rows)
    np.testing.assert_array_equal(states[1].item_rows, states[2].item_rows)


def test_users_of_a_fit_go_on_alone_and_end_where_a_fold_in_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_FEW_MOVE", 1.0)
    for name in ("RECENT", "SAMPLED"):
        monkeypatch.setattr(training_set, name, 3)
    for method in (Compressed.counting, Compressed.thinned):
        monkeypatch.setattr(method, "__defaults__", (3, 3))
    apart: list[int] = []
    go_on = LoopBackend._go_on

    def counted(*of: Any) -> None:
        apart.append(int(of[-1].sum()))
        go_on(*of)

    plain = LoopBackend({each: each for each in LOOPS})
    state = swept(ratings_of(5, n_users=16, n_items=11, n=110), Terms("ordinal", 2.0), plain)
    given, rows = state.training.by_user, np.array([2, 5, 9, 16])
    assert given.counts.min() < 6 < given.counts.max()
    as_made = np.lexsort((given.source, given.row))
    columns = (given.other[as_made].astype(np.int32), given.value[as_made], given.time[as_made])
    monkeypatch.setattr(history.LOADED, "loop", None)
    monkeypatch.setattr(LoopBackend, "_go_on", counted)
    weight = state.steps["user"].sites.weight.copy()
    part = served(state, {}, rows)
    np.testing.assert_array_equal(state.steps["user"].sites.weight, weight)
    for found, chosen in ((part, rows), (finish(state, {}), np.arange(17))):
        folded = found.posterior.fold_in_users(
            found.items, Histories(given.indptr, *columns), current=found.users
        )
        np.testing.assert_allclose(found.users[chosen], folded[chosen], rtol=1e-5, atol=2e-6)
    # Those who move grow fewer, of the four and of all.
    assert set(apart) > {4, 17}


@pytest.mark.parametrize("given", [NumpyBackend(), LoopBackend({loop: loop for loop in LOOPS})])
@pytest.mark.parametrize("terms", [Terms(), Terms("ordinal", 2.0), Terms("ordinal", 2.0, 2.0, 3600.0)])
def test_a_state_takes_ratings_in_where_they_belong(given: HalfStepBackend, terms: Terms) -> None:
    every = replace(
        ratings_of(5, n_users=17, n_items=12, n=180), context=np.arange(180, dtype=np.float32)[:, None]
    )
    # All of a user and of an item, and neighbours in their rows.
    out = np.flatnonzero((every.user_row == 3) | (every.item_row == 7) | (np.arange(180) % 11 == 0))
    orders = [prepare(every, 17, 12, FitSettings(STARS), held_out) for held_out in (None, out)]
    whole, part = (TrainingSet.of(order, 12, given, more=3_000) for order in orders)
    known, state = (
        initial_state(each, FitSettings(STARS, rank=2), np.random.default_rng(1)).branch(terms).run(3)
        for each in (whole, part)
    )
    entries = np.flatnonzero(np.isin(whole.by_user.source, out))
    state = state.with_ratings(replace(whole.by_user.only(entries), source=whole.by_user.source[entries]))
    for taken, wanted in ((state.training.by_user, whole.by_user), (state.training.by_item, whole.by_item)):
        for name in ("indptr", "other", "value", "time", "source", "context"):
            np.testing.assert_array_equal(getattr(taken, name), getattr(wanted, name), name)
    found, wanted_scores = (
        each.user_rows[:, 2:4] @ each.item_rows[:, 2:4].T + each.user_rows[:, 4:5] + each.item_rows[:, 4]
        for each in (state.run(60), known.run(60))
    )
    assert np.corrcoef(found.ravel(), wanted_scores.ravel())[0, 1] > 0.99


def histories(n_items: int, lengths: list[int]) -> Histories:
    """Random ratings with repeats, some taken back, of unknown items, of unknown times, off the scale."""
    rng, n = np.random.default_rng(len(lengths)), sum(lengths)
    value = rng.integers(1, 6, n) + rng.choice([0.0, 0.4, 7.0], n, p=[0.8, 0.1, 0.1])
    time: Float64s = np.asarray(8.8e8 + 3600.0 * rng.integers(0, 9, n), dtype=np.float64)
    value[rng.random(n) < 0.1] = time[rng.random(n) < 0.1] = np.nan
    item = rng.integers(-2, n_items + 4, n).astype(np.int32)
    context = np.stack([rng.normal(size=n), rng.integers(0, 4, n)], axis=1).astype(np.float32)
    context[rng.random(n) < 0.1] = np.nan
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(offsets, item, np.asarray(value, np.float64), time, context=context)


def checked(*arrays: Any) -> int:
    """The plain loop, given what the compiled one reads: other arrays would be garbage to it."""
    assert [array.dtype.name for array in arrays] == list(object_code._KINDS)
    assert all(array.flags.c_contiguous for array in arrays)
    return history_kernels.fold_in(*arrays)


@pytest.fixture(scope="module", params=["plain", "compiled"])
def loop(request: pytest.FixtureRequest) -> history.Loop:
    if request.param == "plain":
        return checked
    compiled.main([])
    return object_code.load_code(some(compiled.kept([compiled.HOME / compiled.file_name()])))


@pytest.mark.timeout(600)  # compiling takes 20 s, and several times that on a machine that does other things
@pytest.mark.parametrize("terms", [*TERMS[:7], replace(TERMS[7], user_attributes=True)])
@pytest.mark.parametrize("side", ["user", "item"])
def test_loops_fold_in_as_numpy(
    monkeypatch: pytest.MonkeyPatch, loop: history.Loop, terms: Terms, side: SideName
) -> None:
    found = finish(swept(ratings_of(5, n_users=16, n_items=11, n=90), terms, NumpyBackend()), {})
    given = histories(12, [0, 1, 2, 3, 5, 0, 17, 60, *([] if loop is checked else [4_000])])
    posterior: Any = found.posterior
    fold, read = posterior.fold_in_users, np.asarray
    own, others, has = found.users, found.items, terms.user_attributes
    if side == "item":
        fold, read = posterior.fold_in_items, posterior.item_codec.decode
        own, others, has = found.items, found.users, terms.item_attributes
    columns, rows = (given.other_row, given.value, given.time), len(given.offsets) - 1
    other, value, time = (np.repeat(column, 2)[::2] for column in columns)
    strided = Histories(given.offsets, other, value, time, context=given.context)  # type: ignore[arg-type]
    described = columns_of(rows) if has else None
    for more in ({}, {"current": own[:rows]}, {} if side == "item" else {"at": 8.8e8 + 9_000}):
        results = []
        for each in (None, loop):
            with monkeypatch.context() as patch:
                patch.setattr(history.LOADED, "loop", each)
                if each is not None:
                    patch.setattr(rating_posterior, "half_step", lambda *_, **__: pytest.fail("numpy"))
                results.append(read(fold(others, strided, attributes=described, **more)))
        np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=2e-6)
    # A table that is no block of memory, or has no posterior, is left to numpy.
    monkeypatch.setattr(history.LOADED, "loop", lambda *_: pytest.fail("read as a block"))
    fold(np.asfortranarray(others), given, attributes=described)
    # So are histories that are none, of which it says what is wrong.
    for offsets in ([0, len(given.value) + 9], [0, 5, 2]):
        with pytest.raises((ValueError, IndexError)):
            fold(others, replace(given, offsets=np.array(offsets)))


@pytest.mark.parametrize("threads", [1, 3])
def test_ratings_are_ordered_the_same_by_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(ordering, "_FEWEST", 5_000)
    rng = np.random.default_rng(8)
    row, other = rng.integers(0, 300, (2, 20_000)).astype(np.int32)

    order = ordering.order_by_pair(row, other - 7, threads=threads)

    # Of equal pairs the one that was written last stands last.
    np.testing.assert_array_equal(order, np.lexsort((np.arange(20_000), other, row)))
    np.testing.assert_array_equal(ordering.taken(row, order, threads=threads), row[order])
