"""Items and users are alike by the relevance that a ranking head gives, beside slow sums over the users."""

from dataclasses import replace

import numpy as np
import pytest

from factors import Float64s, HeadLikeness, RankingFit, RankingHead, fit_ranking
from tests.unit.factors.factors_world import ratings_of

USERS, ITEMS = 40, 30
# The world has no rating of the last two.
UNKNOWN = 2
WEIGHTS = np.bincount(ratings_of(3).item_row, minlength=ITEMS + UNKNOWN).astype(np.float64)


@pytest.fixture(scope="module")
def fit() -> RankingFit:
    return fit_ranking(ratings_of(3), USERS, ITEMS + UNKNOWN, rng=np.random.default_rng(1))


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


def test_items_are_alike_by_the_formula_and_follow_the_head(fit: RankingFit) -> None:
    likeness, expected = HeadLikeness(fit.head, WEIGHTS.__getitem__), slow(fit.head, WEIGHTS)
    for item in (0, 7, ITEMS - 1):
        found = likeness.similar(item, ITEMS + UNKNOWN)
        assert sorted(found.item_rows.tolist()) == np.delete(np.arange(ITEMS), item).tolist()
        np.testing.assert_allclose(found.scores, expected[item, found.item_rows], atol=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        best = likeness.similar(item, 3, np.isin(np.arange(ITEMS), found.item_rows[4:]))
        np.testing.assert_allclose(best.scores, found.scores[4:7], atol=1e-6)
    directions = likeness.directions(np.arange(ITEMS + UNKNOWN)).astype(np.float64)
    off = ~np.eye(ITEMS, dtype=bool)
    products = (directions @ directions.T)[:ITEMS, :ITEMS]
    np.testing.assert_allclose(products[off], expected[:ITEMS, :ITEMS][off], atol=1e-5)
    assert not directions[ITEMS:].any()
    for unknown in (ITEMS, ITEMS + UNKNOWN, -1):
        assert len(likeness.similar(unknown, 5).item_rows) == 0
    # One item is as another, one is new, and of a third there are more events.
    items = np.concatenate([fit.head.items, fit.head.items[5:6]])
    items[3] = items[9]
    later, known = replace(fit.head, items=items), np.append(WEIGHTS, WEIGHTS[5])
    known[3], known[11] = known[9], 1.0
    likeness.update(np.array([3, 11]), later, known.__getitem__)
    expected = slow(later, known)
    for item in (3, 5, 11, len(items) - 1):
        found = likeness.similar(item, len(items))
        np.testing.assert_allclose(found.scores, expected[item, found.item_rows], atol=1e-5)
    assert likeness.similar(3, 1).item_rows.tolist() == [9]
