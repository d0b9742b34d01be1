"""Folding in is the regression of the model, scores are its formula, what is unknown is the prior."""

import math

import numpy as np
import pytest

from factors import Fitted, Histories, Scorer
from factors.inference.histories import RECENT, SAMPLED, compress, sample_order
from factors.model.layout import unpack
from factors.model.parameters import SideName
from factors.model.types import Float64s
from tests.unit.factors.factors_world import fitted_of, histories_of, history, ratings_of

LINKS = ("gaussian", "ordinal")


@pytest.fixture(scope="module", params=LINKS)
def fitted(request: pytest.FixtureRequest) -> Fitted:
    return fitted_of(ratings_of(3), link=request.param, session_effects=False)


def regression(found: Fitted, name: SideName, row: int) -> tuple[Float64s, Float64s]:
    """The posterior of one row with the Gaussian link, rating by rating."""
    parameters, given = found.posterior.parameters, ratings_of(3)
    own, other = parameters.side(name)
    decoded = found.posterior.item_codec.decode(found.items).astype(np.float64)
    table = decoded if name == "user" else found.users.astype(np.float64)
    rows, others = given.user_row, given.item_row
    if name == "item":
        rows, others = others, rows
    mine, layout = np.flatnonzero(rows == row), other.layout
    prior, precision = own.mean.copy(), own.precision.copy()
    for entry in mine:
        prior = prior + table[others[entry], layout.implicit_effect] / math.sqrt(len(mine))
    linear = precision @ prior
    for entry in mine:
        each = table[others[entry]]
        covariance = unpack(each[None, layout.covariance], layout.dim)[0]
        features = np.append(each[layout.latent], 1.0)
        second, cross = np.outer(features, features), features * each[layout.bias]
        second[:-1, :-1] += covariance[:-1, :-1]
        cross[:-1] += covariance[:-1, -1]
        precision = precision + second / parameters.noise
        linear = linear + (features * (given.value[entry] - parameters.mean) - cross) / parameters.noise
    covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    return covariance @ linear, covariance


@pytest.mark.parametrize("name", ["user", "item"])
def test_folding_in_is_the_regression_on_expected_features(name: SideName) -> None:
    found = fitted_of(ratings_of(3), link="gaussian", session_effects=False, sweeps=20)
    posterior, past = found.posterior, histories_of(ratings_of(3), 40 if name == "user" else 30, by=name)
    if name == "user":
        rows = posterior.fold_in_users(found.items, past)
    else:
        items = posterior.fold_in_items(found.users, past)
        rows = posterior.item_codec.decode(items)
    layout = posterior.parameters.side(name)[0].layout
    for row in (0, 7, 21):
        mean, covariance = regression(found, name, row)
        np.testing.assert_allclose(rows[row, layout.mean], mean, atol=1e-4)
        spread = unpack(rows[row][None, layout.covariance], layout.dim)[0]
        np.testing.assert_allclose(spread, covariance, atol=1e-3)


def test_scores_are_the_moments_of_the_product(fitted: Fitted) -> None:
    posterior, layout = fitted.posterior, fitted.posterior.parameters.users.layout
    items = posterior.item_codec.decode(fitted.items)
    user, item = np.arange(30), np.arange(30)[::-1].copy()
    mean, variance, _ = Scorer(posterior, fitted.items).latent(fitted.users, user, item)
    for j in range(30):
        both = [row.astype(float) for row in (fitted.users[user[j]], items[item[j]])]
        x, y = (row[layout.mean] for row in both)
        S, T = (unpack(row[None, layout.covariance], layout.dim)[0] for row in both)
        f, g = np.append(x[:-1], 1.0), np.append(y[:-1], 1.0)
        expected = posterior.parameters.mean + x[-1] + y[-1] + x[:-1] @ y[:-1]
        assert mean[j] == pytest.approx(expected, abs=1e-5)
        spread = g @ S @ g + f @ T @ f + np.trace(S[:-1, :-1] @ T[:-1, :-1])
        assert variance[j] == pytest.approx(spread, rel=1e-3)


def test_what_is_not_known_is_the_prior(fitted: Fitted) -> None:
    posterior = fitted.posterior
    unrated = posterior.fold_in_users(fitted.items, history([], []))
    np.testing.assert_allclose(unrated[0], posterior.prior_user, atol=1e-6)
    nothing = posterior.fold_in_items(fitted.users, history([], []))
    np.testing.assert_allclose(nothing[0], posterior.prior_item, atol=1e-6)
    np.testing.assert_array_equal(posterior.fold_in_users(fitted.items, history([2], [np.nan])), unrated)
    empty = Histories(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    assert posterior.fold_in_users(fitted.items, empty).shape == (0, fitted.model.user_width)
    # Items beyond the table count as unknown ones.
    grown = np.concatenate([fitted.items, posterior.prior_item[None]])
    known = posterior.fold_in_users(grown, history([2, 30], [4.0, 1.0]))
    for row in (500, -1):
        beyond = posterior.fold_in_users(fitted.items, history([2, row], [4.0, 1.0]))
        np.testing.assert_allclose(beyond, known, atol=1e-6)


def test_of_a_long_history_the_latest_count_and_a_sample_of_the_others() -> None:
    rows = np.random.default_rng(2).permutation(5_000)
    given = history(rows.tolist(), [3.0] * 5_000)
    found = compress(given, 5_000, whole=False)
    assert len(found.other) == RECENT + SAMPLED
    others = given.other_row[:-RECENT]
    lowest = others[np.argsort(sample_order(others))[:SAMPLED]]
    assert set(found.other.tolist()) == {*given.other_row[-RECENT:].tolist(), *lowest.tolist()}
    two = Histories(np.array([0, 4_990, 5_000]), given.other_row, given.value, given.time)
    few = compress(two, 5_000).thinned(0, 50)
    assert (few.counts.tolist(), set(few.other[50:])) == ([50, 10], set(given.other_row[4_990:]))
    assert len(compress(given, 5_000).other) == 5_000
