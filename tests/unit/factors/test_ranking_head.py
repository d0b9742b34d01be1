"""The ranking head: fold-ins, scores, explanations and bytes against slow references."""

from dataclasses import replace

import numpy as np
import pytest

from factors import (
    FitRefused,
    Float64s,
    Histories,
    ModelUnreadable,
    RankingFit,
    RankingHead,
    Ratings,
    fit_ranking,
    head_from_bytes,
    head_to_bytes,
)
from tests.unit.factors.factors_world import histories_of, history, ratings, ratings_of

N_USERS, N_ITEMS = 40, 30


@pytest.fixture(scope="module", name="world")
def _world() -> Ratings:
    return ratings_of(3)


@pytest.fixture(scope="module", name="fit")
def _fit(world: Ratings) -> RankingFit:
    return fit_ranking(world, N_USERS, N_ITEMS, rng=np.random.default_rng(1))


@pytest.fixture(scope="module", name="recent")
def _recent(fit: RankingFit) -> RankingHead:
    parameters = replace(fit.head.parameters, recency_span=2.0, recency_boost=3.0, user_power=0.3)
    return replace(fit.head, parameters=parameters)


def slow_user(head: RankingHead, items: list[int], weights: list[float]) -> tuple[Float64s, Float64s]:
    """The vector and the precision of a user by the formula, one event after the other."""
    p, n = head.parameters, len(items)
    activity = (n + 1) ** p.user_power / p.user_unit
    ridge = p.ridge * (n + p.background * p.n_items * activity)
    precision = activity * p.user_gram + ridge * np.eye(p.rank)
    linear = ridge * p.user_mean
    for item, weight in zip(items, weights, strict=True):
        y = head.items[item].astype(np.float64)
        precision = precision + weight * np.outer(y, y)
        linear = linear + weight * y
    return np.linalg.solve(precision, linear), precision


def slow_scores(head: RankingHead, items: list[int], weights: list[float]) -> Float64s:
    """The relevance of all items, one after the other."""
    scores = head.items.astype(np.float64) @ slow_user(head, items, weights)[0]
    near = head.neighbours
    for item, weight in zip(items, weights, strict=True):
        for entry in range(near.indptr[item], near.indptr[item + 1]):
            scores[near.item_row[entry]] += weight * near.weight[entry]
    return scores


def test_a_fold_in_is_the_formula(recent: RankingHead) -> None:
    # Times decide which event is the later one, not the order of writing.
    items, times = [4, 9, 2, 17], [50.0, 10.0, 40.0, 20.0]
    weights = [1 + 3.0 * np.exp(-later / 2.0) for later in (0, 3, 1, 2)]
    own = history(items, [5.0, 1.0, 3.0, 2.0], times)
    slow, precision = slow_user(recent, items, weights)
    np.testing.assert_allclose(recent.fold_in_users(own)[0], slow, rtol=1e-9)
    np.testing.assert_allclose(recent.scores(own), slow_scores(recent, items, weights), atol=1e-5)
    np.testing.assert_allclose(
        recent.covariance(own), recent.parameters.noise * np.linalg.inv(precision), rtol=1e-7
    )
    plain, _ = slow_user(recent, items, [1.0] * 4)
    np.testing.assert_allclose(recent.fold_in_users(own, recency=False)[0], plain, rtol=1e-9)


def test_where_a_time_is_unknown_the_order_of_writing_decides(recent: RankingHead) -> None:
    items, times = [4, 9, 2], [50.0, 10.0, np.nan]
    weights = [1 + 3.0 * np.exp(-later / 2.0) for later in (2, 1, 0)]
    np.testing.assert_allclose(
        recent.fold_in_users(history(items, [1.0] * 3, times))[0],
        slow_user(recent, items, weights)[0],
        rtol=1e-9,
    )


def test_users_of_the_fit_are_those_that_folding_in_gives(world: Ratings, fit: RankingFit) -> None:
    folded = fit.head.fold_in_users(histories_of(world, N_USERS), recency=False)
    np.testing.assert_array_equal(folded.astype(np.float32), fit.users)
    one = histories_of(world.take(world.user_row == 7), N_USERS)
    np.testing.assert_allclose(fit.head.fold_in_users(one)[7], folded[7], rtol=1e-9)


def test_items_are_folded_in_by_the_formula(world: Ratings, fit: RankingFit) -> None:
    p = fit.head.parameters
    raters = np.flatnonzero(fit.users[:, 0] > 0)[:6]
    own = Histories(
        np.array([0, len(raters), len(raters)]),
        raters.astype(np.int32),
        np.full(len(raters), 4.0),
        np.full(len(raters), np.nan),
    )
    x = fit.users[raters].astype(np.float64)
    activity = (len(raters) + 1) ** p.item_power / p.item_unit
    ridge = p.ridge * (len(raters) + p.background * p.n_users * activity)
    precision = x.T @ x + activity * p.item_gram + ridge * np.eye(p.rank)
    folded = fit.head.fold_in_items(fit.users, own)
    np.testing.assert_allclose(folded[0], np.linalg.solve(precision, x.sum(axis=0)), rtol=1e-4, atol=1e-6)
    # Of an item that no user chose nothing is known but that.
    np.testing.assert_array_equal(folded[1], 0.0)


def test_an_explanation_adds_up(recent: RankingHead) -> None:
    own = history([4, 9, 2, 17], [5.0, 1.0, 3.0, 2.0])
    for item in range(N_ITEMS):
        base, rated, contributions = recent.explain(own, item)
        assert sorted(rated.tolist()) == [2, 4, 9, 17]
        assert base + contributions.sum() == pytest.approx(
            recent.scores(own, np.array([item]))[0], rel=1e-9, abs=1e-12
        )


def test_scores_of_some_rows_are_those_of_all(recent: RankingHead) -> None:
    own, rows = history([4, 9, 2, 17], [5.0, 1.0, 3.0, 2.0]), np.array([3, 29, 0, 3])
    np.testing.assert_allclose(recent.scores(own, rows), recent.scores(own)[rows], atol=1e-5)
    assert len(recent.scores(own, np.zeros(0, np.int64))) == 0


def test_an_odd_history_counts_what_it_still_says(recent: RankingHead) -> None:
    # Repeated, taken back, and newer than the table.
    odd = history([4, 9, 4, 2, 9, 99], [5.0, 1.0, 2.0, 3.0, np.nan, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    # The item that is not in the table is none of the later events.
    plain = history([4, 2], [2.0, 3.0], [3.0, 4.0])
    np.testing.assert_allclose(recent.fold_in_users(odd), recent.fold_in_users(plain), rtol=1e-9)
    unordered = history([99, 17, 4, 98, 9], [1.0] * 5)
    np.testing.assert_allclose(
        recent.fold_in_users(unordered), recent.fold_in_users(history([17, 4, 9], [1.0] * 3)), rtol=1e-9
    )
    empty = history([], [])
    np.testing.assert_allclose(recent.fold_in_users(empty)[0], slow_user(recent, [], [])[0], rtol=1e-9)
    base, rated, contributions = recent.explain(empty, 3)
    assert len(rated) == len(contributions) == 0
    assert base == pytest.approx(recent.scores(empty, np.array([3]))[0])


def test_a_long_history_is_thinned_as_that_of_the_posterior(recent: RankingHead) -> None:
    many = np.tile(np.arange(N_ITEMS, dtype=np.int32), 100)
    long = Histories(np.array([0, len(many)]), many, np.ones(len(many)), np.full(len(many), np.nan))
    np.testing.assert_allclose(
        recent.fold_in_users(long)[0],
        recent.fold_in_users(history(list(range(N_ITEMS)), [1.0] * N_ITEMS))[0],
        rtol=1e-9,
    )


def test_who_chose_what_is_ranked_above_chance(world: Ratings, fit: RankingFit) -> None:
    seen = np.zeros((N_USERS, N_ITEMS), dtype=bool)
    seen[world.user_row, world.item_row] = True
    scores = fit.users @ fit.head.items.T
    assert scores[seen].mean() > 1.5 * scores[~seen].mean()


@pytest.mark.parametrize(
    ("users", "items", "n_users", "n_items"),
    [([0], [0], 1, 1), ([0, 0, 0], [0, 1, 2], 1, 3), ([0, 1], [0, 0], 2, 1)],
)
def test_few_ratings_give_a_head(users: list[int], items: list[int], n_users: int, n_items: int) -> None:
    found = fit_ranking(
        ratings(users, items, [3.0] * len(users)), n_users, n_items, rng=np.random.default_rng(1)
    )
    assert np.isfinite(found.head.scores(history(items, [3.0] * len(items)))).all()


def test_no_rating_is_refused() -> None:
    with pytest.raises(FitRefused):
        fit_ranking(ratings([], [], []), 0, 0, rng=np.random.default_rng(1))


def test_threads_change_nothing(world: Ratings, fit: RankingFit) -> None:
    other = fit_ranking(world, N_USERS, N_ITEMS, rng=np.random.default_rng(1), threads=2)
    np.testing.assert_array_equal(other.head.items, fit.head.items)
    np.testing.assert_array_equal(other.head.neighbours.weight, fit.head.neighbours.weight)


def test_bytes_give_the_same_head_without_a_copy(fit: RankingFit) -> None:
    encoded = head_to_bytes(fit.head)
    read = head_from_bytes(memoryview(encoded), N_ITEMS)
    assert head_to_bytes(read) == encoded
    own = history([1, 2], [3.0, 4.0])
    np.testing.assert_array_equal(read.scores(own), fit.head.scores(own))
    assert np.shares_memory(read.items, np.frombuffer(encoded, np.uint8))
    assert not read.items.flags.owndata
    assert read.items.ctypes.data % 4 == 0


@pytest.mark.parametrize("offset", [1, 4])
def test_tables_are_aligned_wherever_the_bytes_begin(fit: RankingFit, offset: int) -> None:
    encoded = head_to_bytes(fit.head)
    whole = np.zeros(len(encoded) + 16, dtype=np.uint8)
    start = -whole.ctypes.data % 8 + offset
    whole[start : start + len(encoded)] = np.frombuffer(encoded, np.uint8)
    read = head_from_bytes(memoryview(whole.data)[start : start + len(encoded)], N_ITEMS)
    neighbours, parameters = read.neighbours, read.parameters
    arrays = (read.items, neighbours.indptr, neighbours.item_row, neighbours.weight, parameters.user_gram)
    assert all(array.flags.aligned for array in arrays)
    assert head_to_bytes(read) == encoded


@pytest.mark.parametrize("cut", [0, 3, 17, 40, 400, -1])
def test_bytes_that_are_cut_off_are_refused(fit: RankingFit, cut: int) -> None:
    with pytest.raises(ModelUnreadable):
        head_from_bytes(head_to_bytes(fit.head)[:cut], N_ITEMS)


def test_bytes_of_something_else_are_refused(fit: RankingFit) -> None:
    encoded = head_to_bytes(fit.head)
    for wrong in (
        encoded + b"\0",
        encoded.replace(b"foldin-ranking-1", b"foldin-ranking-2"),
        encoded.replace(b"gamma", b"gamme"),
        encoded.replace(b"n_neighbours", b"n_neighbourz"),
    ):
        with pytest.raises(ModelUnreadable):
            head_from_bytes(wrong, N_ITEMS)
    with pytest.raises(ModelUnreadable):
        head_from_bytes(encoded, N_ITEMS + 1)


def test_a_head_that_cannot_be_used_is_refused(fit: RankingFit) -> None:
    head = fit.head
    items = head.items.copy()
    items[3, 0] = np.nan
    beyond, behind = head.neighbours.item_row.copy(), head.neighbours.indptr.copy()
    beyond[0], behind[1] = N_ITEMS, len(beyond) + 1
    parameters = head.parameters
    skew = parameters.user_gram.copy()
    skew[0, 1] += 1.0
    for wrong in (
        replace(head, items=items),
        replace(head, neighbours=replace(head.neighbours, item_row=beyond)),
        replace(head, neighbours=replace(head.neighbours, indptr=behind)),
        replace(head, parameters=replace(parameters, user_gram=skew)),
        replace(head, parameters=replace(parameters, ridge=0.0)),
        replace(head, parameters=replace(parameters, gamma=-1.0)),
        replace(head, parameters=replace(parameters, noise=np.inf)),
    ):
        with pytest.raises(ModelUnreadable):
            head_from_bytes(head_to_bytes(wrong), N_ITEMS)
