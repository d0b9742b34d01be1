"""What the service asks of a fit: scores of any batch, rankings, draws; item rows as they are stored."""

import numpy as np
import pytest

from factors import Fitted, Ranker, Scorer
from factors.model.layout import Layout, stored_width, triangle, unpack
from factors.model.quantized_rows import RowCodec
from factors.model.types import Float64s, Link
from factors.serving.posterior_draw import PosteriorDraw
from tests.unit.factors.factors_world import fitted_of, ratings_of

LINKS = ("gaussian", "ordinal")


@pytest.fixture(scope="module", params=LINKS)
def fitted(request: pytest.FixtureRequest) -> Fitted:
    return fitted_of(ratings_of(3), n_items=31, link=request.param)


def test_blocks_of_any_length_give_every_pair_the_same_bits(fitted: Fitted) -> None:
    rng = np.random.default_rng(0)
    user, item = rng.integers(-1, 45, 4001), rng.integers(-1, 35, 4001)
    scorer = Scorer(fitted.posterior, fitted.items)
    mean, variance, basis = scorer.latent(fitted.users, user, item)
    for j in (0, 1, 1999, 3999, 4000):
        for m in (1, 2, 3):
            part = slice(j, min(j + m, 4001))
            alone = scorer.latent(fitted.users, user[part], item[part])
            np.testing.assert_array_equal(alone[0], mean[part])
            np.testing.assert_array_equal(alone[1], variance[part])
            np.testing.assert_array_equal(alone[2], basis[part])


@pytest.mark.parametrize("link", LINKS)
def test_a_list_is_the_beginning_of_a_longer_one(link: Link) -> None:
    # Items that are known well and items that are hardly known: their ratings are in no order of the means.
    n = 1_000
    fitted = fitted_of(ratings_of(3), n_items=31, link=link)
    rng = np.random.default_rng(0)
    items = fitted.items[rng.integers(0, 31, n)].copy()
    means = fitted.posterior.parameters.items.layout.mean
    items[:, means] += rng.normal(0.0, 0.5, items[:, means].shape).astype(np.float32)
    ranker, scorer, rows = Ranker(fitted.posterior, items), Scorer(fitted.posterior, items), np.arange(n)
    allowed = rng.random(n) < 0.7
    exclude = [rng.choice(n, 20, replace=False) for _ in range(4)]
    for mask in (None, allowed):
        for user, longest in enumerate(ranker.top(fitted.users[:4], n, exclude, allowed=mask)):
            passing = np.setdiff1d(rows if mask is None else np.flatnonzero(mask), exclude[user])
            ratings = scorer.rating(fitted.users, np.full(len(passing), user), passing)
            np.testing.assert_allclose(longest.scores, np.sort(ratings)[::-1], atol=1e-6)
            for wanted in (1, 3, 10, 40, 300):
                one = fitted.users[user : user + 1], wanted, exclude[user : user + 1]
                (found,) = ranker.top(*one, allowed=mask)
                np.testing.assert_allclose(found.scores, longest.scores[:wanted], atol=1e-6)
                assert len(set(found.item_rows.tolist())) == wanted


def test_draws_spread_as_the_scores_are_unsure(fitted: Fitted) -> None:
    user, rows, n, rng = fitted.users[3].copy(), np.arange(31), 4_000, np.random.default_rng(0)
    # A draw leaves out what is the same for all items: here the user's bias is known.
    layout = fitted.posterior.parameters.users.layout
    covariance = unpack(user[None, layout.covariance], layout.dim)[0]
    covariance[-1] = covariance[:, -1] = 0.0
    first, second, _ = triangle(layout.dim)
    user[layout.covariance] = covariance[first, second]
    mean, variance, _ = Scorer(fitted.posterior, fitted.items).latent(user[None], np.zeros(31, int), rows)
    draws = [PosteriorDraw(fitted.posterior, user, rng).scores(fitted.items, rows) for _ in range(n)]
    scores = np.array(draws, np.float64)
    apart = fitted.posterior.parameters.mean + float(user[layout.mean][-1])
    np.testing.assert_allclose(scores.mean(axis=0) + apart, mean, atol=4 * np.sqrt(variance.max() / n))
    np.testing.assert_allclose(scores.var(axis=0) / variance, 1.0, atol=5 * np.sqrt(2 / n))


def rows_of(layout: Layout, scale: float, n: int = 40) -> Float64s:
    rng = np.random.default_rng(layout.rank)
    rows = rng.normal(size=(n, layout.width))
    roots = rng.normal(size=(n, layout.dim, layout.dim)) * 10.0 ** rng.uniform(-2, 0, (n, layout.dim, 1))
    matrices = scale * roots @ roots.transpose(0, 2, 1)
    lower = np.tril_indices(layout.dim)
    rows[:, layout.covariance] = matrices[:, lower[0], lower[1]]
    return rows


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("layout", [Layout(1, 0), Layout(2, 3), Layout(7, 0, moving=True), Layout(50, 0)])
def test_rows_come_out_as_they_went_in(layout: Layout, scale: float) -> None:
    codec = RowCodec(layout, np.append(np.geomspace(0.1, 10.0, layout.rank), 1.0))
    rows = rows_of(layout, scale)
    words = codec.encode(rows)
    assert words.shape == (40, stored_width(layout))
    assert codec.all_finite(words)
    again = codec.decode(words)
    plain = np.ones(layout.width, dtype=np.bool_)
    plain[layout.covariance] = False
    np.testing.assert_array_equal(again[:, plain], rows[:, plain].astype(np.float32))
    r = codec.features
    before, after = (
        unpack(some[:, layout.covariance], layout.dim) * np.outer(r, r)
        for some in (rows, again.astype(np.float64))
    )
    largest = np.einsum("bii->bi", before).max(axis=1)[:, None, None]
    assert (np.abs(after - before) <= largest / 32_000).all()
    variances = np.einsum("bii->bi", after)
    assert (variances > 0).all()
    assert (variances >= np.einsum("bii->bi", before) * (1 - 1e-5) - 0.02 * largest[:, 0] / 32_767).all()
    # Written again, they are the same.
    np.testing.assert_allclose(codec.decode(codec.encode(again)), again, rtol=1e-6)
    weights = np.random.default_rng(0).normal(size=layout.packed)
    expected = np.maximum(again[:, layout.covariance] @ weights, 0.0)
    tolerance = 1e-4 * np.abs(again[:, layout.covariance]) @ np.abs(weights)
    assert (np.abs(codec.quadratic(words, weights) - expected) <= tolerance).all()
