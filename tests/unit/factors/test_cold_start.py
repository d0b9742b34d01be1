"""The prior of rows that came after a fit."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from factors.model.layout import item_layout, pack
from factors.model.parameters import from_model, to_model
from tests.unit.factors.factors_world import fitted_of, history, ratings_of


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_a_new_item_without_ratings_is_its_prior(link: str) -> None:
    fitted = fitted_of(ratings_of(1), link=link)
    cold_start = from_model(fitted.model).items.cold_start
    assert cold_start is not None
    row = fitted.posterior.item_codec.decode(fitted.posterior.fold_in_items(fitted.users, history([], [])))[0]
    layout = item_layout(fitted.model)
    assert_allclose(row[layout.mean], cold_start.mean, rtol=1e-5, atol=1e-6)
    assert_allclose(row[layout.covariance], pack(cold_start.covariance[None])[0], rtol=1e-2, atol=1e-4)


def test_the_precision_is_the_inverse_of_the_covariance_and_both_survive() -> None:
    parameters = from_model(fitted_of(ratings_of(1)).model)
    again = from_model(to_model(parameters))
    for side, kept in ((parameters.users, again.users), (parameters.items, again.items)):
        if side.cold_start is None:
            continue
        assert kept.cold_start is not None
        assert_allclose(
            side.cold_start.covariance @ side.cold_start.precision, np.eye(side.layout.dim), atol=1e-8
        )
        assert_allclose(kept.cold_start.covariance, side.cold_start.covariance)
        assert_allclose(kept.cold_start.precision, side.cold_start.precision)


def test_a_new_item_learns_faster_than_one_that_the_fit_knows() -> None:
    fitted = fitted_of(ratings_of(2, n=900))
    cold_start = from_model(fitted.model).items.cold_start
    side = from_model(fitted.model).items
    assert cold_start is not None
    # What implicit effects explain of the rows of the fit is not known of a new one.
    assert np.trace(cold_start.covariance) >= np.trace(side.covariance)
