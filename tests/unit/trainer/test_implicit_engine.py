"""Implicit feedback: fold-in is the library's own exact solve."""

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from factors import FitSettings, Fitted, Histories, Ratings, Scale
from factors.engine_api import confidence_of, implicit_factors, weighting_of
from factors.model.layout import item_layout, user_layout
from tests.unit.factors.factors_world import histories_of, ratings
from trainer.engines import make_engine
from trainer.engines.base import FitTask

SCALE = Scale(1.0, 5.0)


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def choices() -> Ratings:
    rng = np.random.default_rng(0)
    rows = [
        (user, item, rng.integers(1, 6))
        for user in range(60)
        for item in range(40)
        if rng.random() < (0.5 if item % 4 == user % 4 else 0.02)
    ]
    return ratings(*zip(*rows, strict=True))


def fitted(ratings: Ratings) -> Fitted:
    engine = make_engine("implicit", FitSettings(SCALE, rank=6))
    return engine.fit(FitTask(ratings, 60, 40, np.random.default_rng(1), None))


def test_fold_in_is_the_exact_solve_of_the_library() -> None:
    ratings, fit = choices(), fitted(choices())
    weighting, histories = weighting_of(fit.model), histories_of(ratings, 60)
    assert weighting.power > 0
    alpha = weighting.alpha
    als = AlternatingLeastSquares(factors=6, num_threads=1)
    als.user_factors, als.item_factors = implicit_factors(fit)
    confidence = confidence_of(ratings.value, SCALE, alpha).astype(np.float32)
    matrix = sp.csr_matrix((confidence, (ratings.user_row, ratings.item_row)), shape=(60, 40))
    for user in (0, 7, 59):
        als.regularization = weighting.ridges("user", np.diff(matrix.indptr)[user])
        expected = als.recalculate_user(user, matrix[user])
        row = fit.posterior.fold_in_users(fit.items, histories.part(user, user + 1))[0]
        np.testing.assert_allclose(row[user_layout(fit.model).latent] / 4.0, expected, atol=1e-4)
        np.testing.assert_allclose(row, fit.users[user], atol=1e-5)
    by_item = matrix.T.tocsr()
    for item in (0, 39):
        raters = by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]
        values = (by_item[item].data.astype(np.float64) - 1) / alpha * 4 + 1
        given = Histories(np.array([0, len(raters)]), raters, values, np.full(len(raters), np.nan))
        row = fit.posterior.fold_in_items(fit.users, given)[0]
        als.regularization = weighting.ridges("item", np.diff(by_item.indptr)[item])
        expected = als.recalculate_item(item, by_item[item])
        np.testing.assert_allclose(row[item_layout(fit.model).latent], expected, atol=2e-3)
