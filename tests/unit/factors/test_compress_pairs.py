"""Users that stand in the order of their pairs are scored as users that are pointed at."""

import numpy as np
import pytest

from factors import Scorer
from tests.unit.factors.factors_world import fitted_of, ratings_of


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
@pytest.mark.parametrize("m", [0, 1, 2, 15, 4001])
def test_rows_in_order_give_the_same_bits(link: str, m: int) -> None:
    fitted = fitted_of(ratings_of(3), n_items=31, link=link)
    rng = np.random.default_rng(m)
    user, item = rng.integers(0, 40, m), rng.integers(-1, 35, m)
    scorer = Scorer(fitted.posterior, fitted.items)
    pointed, in_order = scorer.score(fitted.users, user, item), scorer.score(fitted.users[user], None, item)
    np.testing.assert_array_equal(in_order.rating, pointed.rating)
    np.testing.assert_array_equal(in_order.std, pointed.std)
    np.testing.assert_array_equal(in_order.basis, pointed.basis)
    times = np.full(m, 1e9)
    pointed, in_order = (
        scorer.score(users, index, item, times)
        for users, index in ((fitted.users, user), (fitted.users[user], None))
    )
    np.testing.assert_array_equal(in_order.rating, pointed.rating)
