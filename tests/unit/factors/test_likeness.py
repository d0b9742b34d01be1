"""Items and users are alike by the relevance that a ranking head gives, beside slow sums over the users."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from factors import (
    Float64s,
    HeadLikeness,
    HeadTastes,
    Histories,
    Int64s,
    RankingFit,
    RankingHead,
    TypeWeight,
    fit_ranking,
    positive_sums,
)
from tests.unit.factors.factors_world import histories_of, ratings_of

USERS, ITEMS = 40, 30
# The world has no rating of the last two.
UNKNOWN = 2


@pytest.fixture(scope="module")
def fit() -> RankingFit:
    ratings = ratings_of(3, n_users=USERS, n_items=ITEMS)
    return fit_ranking(ratings, USERS, ITEMS + UNKNOWN, rng=np.random.default_rng(1))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    counts = np.bincount(ratings_of(3, n_users=USERS, n_items=ITEMS).item_row, minlength=ITEMS + UNKNOWN)
    return counts.astype(np.float32)


def weigh(weights: np.ndarray) -> Callable[[Int64s], Float64s]:
    return lambda rows: weights[rows].astype(np.float64)


def slow(head: RankingHead, weights: np.ndarray) -> Float64s:
    """The likeness of each item to each, by the formula of docs/model.md."""
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


def test_items_are_alike_by_the_formula(fit: RankingFit, weights: np.ndarray) -> None:
    likeness, expected = HeadLikeness(fit.head, weigh(weights)), slow(fit.head, weights)
    for item in (0, 7, ITEMS - 1):
        found = likeness.similar(item, ITEMS + UNKNOWN)
        others = np.delete(np.arange(ITEMS), item)
        assert sorted(found.item_rows.tolist()) == others.tolist()
        np.testing.assert_allclose(found.scores, expected[item, found.item_rows], atol=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        best = likeness.similar(item, 3, np.isin(np.arange(ITEMS), found.item_rows[4:]))
        assert best.item_rows.tolist() == found.item_rows[4:7].tolist()
    directions = likeness.directions(np.arange(ITEMS + UNKNOWN)).astype(np.float64)
    products = directions @ directions.T
    off = ~np.eye(ITEMS, dtype=bool)
    np.testing.assert_allclose(products[:ITEMS, :ITEMS][off], expected[:ITEMS, :ITEMS][off], atol=1e-5)
    assert not directions[ITEMS:].any()
    # One that is ranked before it is followed here is like none.
    beyond = likeness.directions(np.array([2, ITEMS + UNKNOWN, 5]))
    np.testing.assert_array_equal(beyond, directions[[2, ITEMS, 5]].astype(np.float32))
    for unknown in (ITEMS, ITEMS + UNKNOWN, -1):
        assert len(likeness.similar(unknown, 5).item_rows) == 0
    assert len(likeness.similar(0, 0).item_rows) == 0


def test_any_other_basis_gives_the_same(fit: RankingFit, weights: np.ndarray) -> None:
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(fit.head.parameters.rank,) * 2))[0]
    p = fit.head.parameters
    turned = replace(
        p,
        user_mean=p.user_mean @ turn,
        user_gram=turn.T @ p.user_gram @ turn,
        item_gram=turn.T @ p.item_gram @ turn,
    )
    items = (fit.head.items.astype(np.float64) @ turn).astype(np.float32)
    other = replace(fit.head, parameters=turned, items=items)
    one, two = (HeadLikeness(head, weigh(weights)).similar(4, 9) for head in (fit.head, other))
    assert one.item_rows.tolist() == two.item_rows.tolist()
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
    histories = histories_of(ratings_of(3, n_users=USERS, n_items=ITEMS), USERS)
    alike = [HeadTastes(head).directions(head, histories) for head in (fit.head, other)]
    np.testing.assert_allclose(alike[0] @ alike[0].T, alike[1] @ alike[1].T, atol=1e-4)


@pytest.mark.parametrize("asked", [True, False])
def test_it_follows_the_head(fit: RankingFit, weights: np.ndarray, asked: bool) -> None:
    likeness = HeadLikeness(fit.head, weigh(weights))
    if asked:
        likeness.similar(0, 1)
        assert likeness.prepared
    # One item is as another, one is new, and of a third there are more events.
    items = np.concatenate([fit.head.items, fit.head.items[5:6]])
    items[3] = items[9]
    later = replace(fit.head, items=items)
    known = np.append(weights, weights[5])
    known[3], known[11] = known[9], 1.0
    likeness.update(np.array([3, 11]), later, weigh(known))
    expected = slow(later, known)
    for item in (3, 5, 11, len(items) - 1):
        found = likeness.similar(item, len(items))
        np.testing.assert_allclose(found.scores, expected[item, found.item_rows], atol=1e-5)
    assert likeness.similar(3, 1).item_rows.tolist() == [9]
    # What attributes alone say of an item are no events.
    known[9] = 0.0
    likeness.update(np.array([9]), later, weigh(known))
    assert 9 not in likeness.similar(3, len(items)).item_rows
    assert len(likeness.similar(9, 5).item_rows) == 0
    assert likeness.directions(np.array([9])).any()
    assert likeness.similar(len(items) - 1, 1).item_rows.tolist() == [5]


def test_factors_that_are_newer_than_what_is_known_of_them_make_no_item_more_than_the_same(
    fit: RankingFit, weights: np.ndarray
) -> None:
    head = replace(fit.head, items=fit.head.items.copy())
    likeness = HeadLikeness(head, weigh(weights))
    likeness.similar(7, 1)
    # As deltas are written, a moment before `update`.
    head.items[3] = 20.0 * head.items[9]
    found = likeness.similar(7, ITEMS)
    assert (np.abs(found.scores) <= 1.0).all()
    assert (np.diff(found.scores) <= 0.0).all()


def test_users_are_alike_by_what_sets_them_apart_from_a_stranger(fit: RankingFit) -> None:
    head, p = fit.head, fit.head.parameters
    histories = histories_of(ratings_of(3, n_users=USERS, n_items=ITEMS), USERS)
    nothing = Histories(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    departures = head.fold_in_users(histories, recency=False) - head.fold_in_users(nothing)
    spread = np.cov(head.items[:ITEMS].astype(np.float64).T, bias=True)
    square = np.einsum("ui,ij,uj->u", departures, spread, departures)
    plain = replace(head, parameters=replace(p, recency_boost=0.0))
    square += [np.trace(spread @ plain.covariance(histories.part(j, j + 1))) for j in range(USERS)]
    expected = departures @ spread @ departures.T / np.sqrt(np.outer(square, square))
    found = HeadTastes(head).directions(head, histories).astype(np.float64)
    np.testing.assert_allclose(
        (found @ found.T)[~np.eye(USERS, dtype=bool)], expected[~np.eye(USERS, dtype=bool)], atol=1e-5
    )
    assert (np.linalg.norm(found, axis=1) < 1).all()
    # Of one without events nothing is known, nor of any where there are no items.
    np.testing.assert_allclose(HeadTastes(head).directions(head, nothing), 0.0, atol=1e-6)
    empty = replace(head, items=np.zeros_like(head.items))
    assert not HeadTastes(empty).directions(empty, histories).any()


def test_of_positive_events_each_type_counts_once_a_user() -> None:
    types = [TypeWeight(1, "positive", 0.25), TypeWeight(4, "positive", 2.0), TypeWeight(6, "negative", 1.0)]
    events = [
        # Item, user, type, value; NaN takes an event back.
        *((0, 0, 1, 1.0), (0, 0, 1, 1.0), (0, 0, 4, 1.0), (0, 1, 1, 1.0), (0, 1, 1, np.nan)),
        *((0, 2, 6, 1.0), (0, 2, 0, 5.0), (0, 3, 9, 1.0), (2, 0, 4, -3.0)),
    ]
    item, user, code, value = (np.array(column) for column in zip(*events, strict=True))
    offsets = np.searchsorted(item, np.arange(4)).astype(np.int64)
    histories = Histories(
        *(offsets, user.astype(np.int32), value.astype(np.float64), np.full(len(item), np.nan)),
        type_code=code.astype(np.uint8),
    )
    assert positive_sums(histories, types).tolist() == [[2.25, 2.0], [0.0, 0.0], [2.0, 1.0]]
    assert positive_sums(replace(histories, type_code=None), types).tolist() == [[0.0, 0.0]] * 3
