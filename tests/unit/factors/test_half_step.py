"""The fast kernels give what the slow loops of `reference` give, and folding in what the batch
gave.
"""

import itertools
from typing import Literal

import numpy as np
import pytest

from factors import (
    Fitted,
    Histories,
    Scorer,
    posterior_of,
)
from factors.inference.segments import segment_sums
from factors.model.layout import unpack, user_layout
from tests.unit.factors import reference
from tests.unit.factors.factors_world import fitted_of, histories_of, history, ratings_of

Side = Literal["user", "item"]
LINKS = ("gaussian", "ordinal")


@pytest.fixture(scope="module", params=itertools.product(LINKS, [0.0, 4 * 3600.0]))
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """A fit with sessions, perhaps in sittings, and implicit effects."""
    ratings, (link, sitting_length) = ratings_of(3), request.param
    result = fitted_of(ratings, link=link)
    assert result.model.link == link
    return with_terms(result, sitting_length)


def with_terms(fitted: Fitted, sitting_length: float = 0.0) -> Fitted:
    """The same model with effects of hours and of rated sets, whether or not they were worth it."""
    from dataclasses import replace

    from factors.model.layout import Layout
    from factors.model.parameters import from_model, to_model
    from factors.training.terms import relayout

    rng = np.random.default_rng(7)
    known = from_model(fitted.model)
    layout = Layout(known.users.layout.rank, 4)
    users = replace(known.users, layout=layout, session_length=3600.0, session_variance=0.2)
    if sitting_length:
        users = replace(users, sitting_length=sitting_length, sitting_variance=0.15)
    changed = replace(known, users=users)
    items = relayout(
        known.items, changed.items, fitted.posterior.item_codec.decode(fitted.items).astype(np.float64)
    )
    items[:, changed.items.layout.implicit_effect] = rng.normal(0, 0.1, (len(items), layout.dim))
    model = to_model(changed)
    rows = posterior_of(model).item_codec.encode(items)
    return Fitted(model, posterior_of(model).fold_in_users(rows, histories_of(ratings_of(3), 40)), rows)


@pytest.mark.parametrize("user", [0, 7, 21])
def test_fold_in_of_a_user_is_the_reference(fitted: Fitted, user: int) -> None:
    ratings = ratings_of(3)
    mine = ratings.user_row == user
    mean, covariance = reference.fold_in(
        fitted.model,
        "user",
        fitted.items,
        other_row=ratings.item_row[mine].tolist(),
        value=ratings.value[mine].tolist(),
        time=ratings.time[mine].tolist(),
    )
    layout = user_layout(fitted.model)
    np.testing.assert_allclose(fitted.users[user, layout.mean], mean, atol=2e-6)
    packed = unpack(fitted.users[user, layout.covariance][None], layout.dim)[0]
    np.testing.assert_allclose(packed, covariance, atol=2e-6)


def test_fold_in_of_an_item_is_the_reference(fitted: Fitted) -> None:
    ratings = ratings_of(3)
    mine = ratings.item_row == 4
    rows = fitted.posterior.fold_in_items(
        fitted.users,
        history(ratings.user_row[mine].tolist(), ratings.value[mine].tolist(), ratings.time[mine].tolist()),
    )
    mean, _ = reference.fold_in(
        fitted.model,
        "item",
        fitted.users,
        other_row=ratings.user_row[mine].tolist(),
        value=ratings.value[mine].tolist(),
        time=ratings.time[mine].tolist(),
    )
    np.testing.assert_allclose(rows[0, 2 : 2 + len(mean)], mean, atol=2e-6)


def test_scores_are_the_reference(fitted: Fitted) -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, 50), rng.integers(0, 30, 50)
    time = np.where(rng.random(50) < 0.5, 8.8e8 + 3600.0 * rng.integers(0, 7, 50), np.nan)
    scores = Scorer(fitted.posterior, fitted.items).score(fitted.users, user, item, time=time)
    for j in range(50):
        expected = reference.score(fitted.model, fitted.users[user[j]], fitted.items[item[j]], float(time[j]))
        assert scores.rating[j] == pytest.approx(expected[0], abs=1e-5)
        assert scores.std[j] == pytest.approx(expected[1], abs=1e-5)


def test_a_known_period_moves_the_score(fitted: Fitted) -> None:
    layout = user_layout(fitted.model)
    user = int(np.argmax(np.abs(fitted.users[:, layout.effects]).max(axis=1)))
    slot = int(np.argmax(np.abs(fitted.users[user, layout.effects])))
    when = np.array([3600.0 * fitted.users[user, layout.keys][slot] + 5.0])
    # Keys wrap: the hour number of 1997 is below the wrap, so the time can be told from the key.
    pair = (np.array([user]), np.array([3]))
    then = Scorer(fitted.posterior, fitted.items).score(fitted.users, *pair, time=when)
    ever = Scorer(fitted.posterior, fitted.items).score(fitted.users, *pair)
    assert then.rating[0] != ever.rating[0]
    assert then.std[0] < ever.std[0]


def test_folding_in_gives_the_rows_of_the_fit_alone_and_together() -> None:
    ratings = ratings_of(5)
    for link in LINKS:
        fitted = fitted_of(ratings, link=link)
        together = fitted.posterior.fold_in_users(
            fitted.items, histories_of(ratings, 40), current=fitted.users
        )
        np.testing.assert_allclose(together, fitted.users, atol=1e-6)
        for user in (0, 13, 39):
            mine = ratings.user_row == user
            alone = fitted.posterior.fold_in_users(
                fitted.items,
                history(
                    ratings.item_row[mine].tolist(),
                    ratings.value[mine].tolist(),
                    ratings.time[mine].tolist(),
                ),
                current=fitted.users[user : user + 1],
            )
            np.testing.assert_allclose(alone[0], fitted.users[user], atol=1e-5)


def test_the_last_rating_counts_and_nan_takes_back(fitted: Fitted) -> None:
    repeated = history([3, 5, 3, 8, 8], [1.0, 4.0, 5.0, 2.0, np.nan])
    plain = history([3, 5], [5.0, 4.0])
    np.testing.assert_array_equal(
        fitted.posterior.fold_in_users(fitted.items, repeated),
        fitted.posterior.fold_in_users(fitted.items, plain),
    )


def test_nothing_known_is_the_prior(fitted: Fitted) -> None:
    unrated = fitted.posterior.fold_in_users(fitted.items, history([], []))
    np.testing.assert_allclose(unrated[0], fitted.posterior.prior_user, atol=1e-6)
    nothing = fitted.posterior.fold_in_items(fitted.users, history([], []))
    np.testing.assert_allclose(nothing[0], fitted.posterior.prior_item, atol=1e-6)
    taken_back = fitted.posterior.fold_in_users(fitted.items, history([2], [np.nan]))
    np.testing.assert_array_equal(taken_back, unrated)
    none = fitted.posterior.fold_in_users(
        fitted.items,
        Histories(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0)),
    )
    assert none.shape == (0, fitted.model.user_width)


def test_items_beyond_the_table_count_as_unknown_items(fitted: Fitted) -> None:
    grown = np.concatenate([fitted.items, fitted.posterior.prior_item[None]])
    beyond = fitted.posterior.fold_in_users(fitted.items, history([2, 500], [4.0, 1.0]))
    known = fitted.posterior.fold_in_users(grown, history([2, 30], [4.0, 1.0]))
    np.testing.assert_allclose(beyond, known, atol=1e-6)
    negative = fitted.posterior.fold_in_users(fitted.items, history([2, -1], [4.0, 1.0]))
    np.testing.assert_allclose(negative, known, atol=1e-6)


def test_both_ways_of_summing_agree() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 40, 200)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    columns, weight, table = (
        rng.integers(0, 50, indptr[-1]),
        rng.normal(size=indptr[-1]),
        rng.normal(size=(50, 6)),
    )
    many = segment_sums(indptr, columns, weight, table)
    few = np.concatenate(
        [
            segment_sums(
                indptr[j : j + 11] - indptr[j],
                columns[indptr[j] : indptr[j + 10]],
                weight[indptr[j] : indptr[j + 10]],
                table,
            )
            for j in range(0, 200, 10)
        ]
    )
    np.testing.assert_allclose(many, few, atol=1e-12)
