"""The ranking head: fold-ins, scores, likeness, explanations and bytes against slow references."""

from dataclasses import replace

import numpy as np
import pytest

from factors import (
    Float64s,
    HeadLikeness,
    Histories,
    ModelUnreadable,
    RankingFit,
    RankingHead,
    fit_ranking,
    head_from_bytes,
    head_to_bytes,
)
from tests.unit.factors.factors_world import history, ratings_of

N_USERS, N_ITEMS = 40, 30


@pytest.fixture(scope="module", name="fit")
def _fit() -> RankingFit:
    return fit_ranking(ratings_of(3), N_USERS, N_ITEMS, rng=np.random.default_rng(1))


@pytest.fixture(scope="module", name="recent")
def _recent(fit: RankingFit) -> RankingHead:
    parameters = replace(fit.head.parameters, recency_span=2.0, recency_boost=3.0, user_power=0.3)
    return replace(fit.head, parameters=parameters)


def slow_user(head: RankingHead, items: list[int], weights: list[float]) -> tuple[Float64s, Float64s]:
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
    covariance = recent.parameters.noise * np.linalg.inv(precision)
    np.testing.assert_allclose(recent.covariance(own), covariance, rtol=1e-7)
    plain, _ = slow_user(recent, items, [1.0] * 4)
    np.testing.assert_allclose(recent.fold_in_users(own, recency=False)[0], plain, rtol=1e-9)
    for item in range(N_ITEMS):
        base, rated, contributions = recent.explain(own, item)
        assert sorted(rated.tolist()) == sorted(items)
        score = recent.scores(own, np.array([item]))[0]
        assert base + contributions.sum() == pytest.approx(score, rel=1e-9, abs=1e-12)


def test_items_are_folded_in_by_the_formula(fit: RankingFit) -> None:
    p, n = fit.head.parameters, 6
    raters = np.flatnonzero(fit.users[:, 0] > 0)[:n].astype(np.int32)
    own = Histories(np.array([0, n, n]), raters, np.full(n, 4.0), np.full(n, np.nan))
    x = fit.users[raters].astype(np.float64)
    activity = (n + 1) ** p.item_power / p.item_unit
    ridge = p.ridge * (n + p.background * p.n_users * activity)
    precision = x.T @ x + activity * p.item_gram + ridge * np.eye(p.rank)
    folded, chosen = fit.head.fold_in_items(fit.users, own)
    np.testing.assert_allclose(folded[0], np.linalg.solve(precision, x.sum(axis=0)), rtol=1e-4, atol=1e-6)
    # Of an item that no user chose nothing is known but that, and what attributes say.
    np.testing.assert_array_equal(folded[1], 0.0)
    assert chosen.tolist() == [True, False]
    expected, usual = fit.head.items[:2], p.events / p.n_items
    blended, _ = fit.head.fold_in_items(fit.users, own, expected)
    start = usual / (usual + n) * expected[0].astype(np.float64)
    moved = np.linalg.solve(precision, x.T @ (1 - x @ start))
    np.testing.assert_allclose(blended[0], start + moved, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(blended[1], expected[1])


def test_bytes_give_the_same_head_without_a_copy_and_others_are_refused(fit: RankingFit) -> None:
    head, encoded = fit.head, head_to_bytes(fit.head)
    read = head_from_bytes(memoryview(encoded), N_ITEMS)
    assert head_to_bytes(read) == encoded
    assert np.shares_memory(read.items, np.frombuffer(encoded, np.uint8))
    assert read.items.flags.aligned
    items, skew = head.items.copy(), head.parameters.user_gram.copy()
    beyond, behind = head.neighbours.item_row.copy(), head.neighbours.indptr.copy()
    items[3, 0], beyond[0], behind[1] = np.nan, N_ITEMS, len(beyond) + 1
    skew[0, 1] += 1.0
    bad = {"user_gram": skew, "ridge": 0.0, "gamma": -1.0, "noise": np.inf}
    of_head = [replace(head.parameters, **{name: value}) for name, value in bad.items()]  # type: ignore[arg-type]
    wrong = [
        *(encoded[:cut] for cut in (0, 3, 40, -1)),
        encoded + b"\0",
        encoded.replace(b"foldin-ranking-1", b"foldin-ranking-2"),
        encoded.replace(b"gamma", b"gamme"),
        head_to_bytes(replace(head, items=items)),
        head_to_bytes(replace(head, neighbours=replace(head.neighbours, item_row=beyond))),
        head_to_bytes(replace(head, neighbours=replace(head.neighbours, indptr=behind))),
        *(head_to_bytes(replace(head, parameters=each)) for each in of_head),
    ]
    for each in wrong:
        with pytest.raises(ModelUnreadable):
            head_from_bytes(each, N_ITEMS)
    with pytest.raises(ModelUnreadable):
        head_from_bytes(encoded, N_ITEMS + 1)


# The world has no rating of the last two.
UNKNOWN = 2
WEIGHTS = np.bincount(ratings_of(3).item_row, minlength=N_ITEMS + UNKNOWN).astype(np.float64)


@pytest.fixture(scope="module")
def alike() -> RankingFit:
    return fit_ranking(ratings_of(3), N_USERS, N_ITEMS + UNKNOWN, rng=np.random.default_rng(1))


def slow(head: RankingHead, weights: Float64s) -> Float64s:
    p, items = head.parameters, head.items.astype(np.float64)
    second = items @ p.item_gram @ items.T
    square = np.diag(second).copy()
    for item, weight in enumerate(weights.tolist()):
        own = np.array([weight])
        activity, ridge = p.activity("item", own)[0], p.ridges("item", own)[0]
        users = p.item_gram * (activity + weight / (p.background * p.n_users))
        covariance = p.noise * np.linalg.inv(users + ridge * np.eye(p.rank))
        square[item] += np.trace(covariance @ p.item_gram)
    return np.asarray(second / np.sqrt(np.outer(square, square)))


def test_items_are_alike_by_the_formula_and_follow_the_head(alike: RankingFit) -> None:
    likeness, expected = HeadLikeness(alike.head, WEIGHTS.__getitem__), slow(alike.head, WEIGHTS)
    for item in (0, 7, N_ITEMS - 1):
        found = likeness.similar(item, N_ITEMS + UNKNOWN)
        assert sorted(found.item_rows.tolist()) == np.delete(np.arange(N_ITEMS), item).tolist()
        np.testing.assert_allclose(found.scores, expected[item, found.item_rows], atol=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        best = likeness.similar(item, 3, np.isin(np.arange(N_ITEMS), found.item_rows[4:]))
        np.testing.assert_allclose(best.scores, found.scores[4:7], atol=1e-6)
    directions = likeness.directions(np.arange(N_ITEMS + UNKNOWN)).astype(np.float64)
    off = ~np.eye(N_ITEMS, dtype=bool)
    products = (directions @ directions.T)[:N_ITEMS, :N_ITEMS]
    np.testing.assert_allclose(products[off], expected[:N_ITEMS, :N_ITEMS][off], atol=1e-5)
    assert not directions[N_ITEMS:].any()
    for unknown in (N_ITEMS, N_ITEMS + UNKNOWN, -1):
        assert len(likeness.similar(unknown, 5).item_rows) == 0
    # One item is as another, one is new, and of a third there are more events.
    items = np.concatenate([alike.head.items, alike.head.items[5:6]])
    items[3] = items[9]
    later, known = replace(alike.head, items=items), np.append(WEIGHTS, WEIGHTS[5])
    known[3], known[11] = known[9], 1.0
    likeness.update(np.array([3, 11]), later, known.__getitem__)
    expected = slow(later, known)
    for item in (3, 5, 11, len(items) - 1):
        found = likeness.similar(item, len(items))
        np.testing.assert_allclose(found.scores, expected[item, found.item_rows], atol=1e-5)
    assert likeness.similar(3, 1).item_rows.tolist() == [9]
