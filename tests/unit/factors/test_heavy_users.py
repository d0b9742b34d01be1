"""A user with very many ratings: which of them count for the user's row."""

import numpy as np
import pytest

from factors.inference.histories import RECENT, SAMPLED, compress, sample_order
from tests.unit.factors.factors_world import fitted_of, histories_of, history, joined, ratings, ratings_of


def test_of_a_long_history_the_latest_count_and_a_sample_of_the_others() -> None:
    rows = np.random.default_rng(2).permutation(5_000)
    given = history(rows.tolist(), [3.0] * 5_000)
    found = compress(given, 5_000, whole=False)
    assert len(found.other) == RECENT + SAMPLED
    others = given.other_row[:-RECENT]
    lowest = others[np.argsort(sample_order(others))[:SAMPLED]]
    assert set(found.other.tolist()) == {*given.other_row[-RECENT:].tolist(), *lowest.tolist()}
    # The items of an item's raters are not thinned.
    assert len(compress(given, 5_000).other) == 5_000


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_the_row_of_a_heavy_user_in_a_fit_is_what_folding_in_gives(link: str) -> None:
    n_items = 6_000
    some = ratings_of(3, timed=False)
    rng = np.random.default_rng(4)
    heavy = rng.permutation(n_items)[:5_000]
    given = joined(some, ratings(np.full(5_000, 40), heavy, rng.integers(1, 6, 5_000)))
    fitted = fitted_of(given, n_users=41, n_items=n_items, link=link)
    folded = fitted.posterior.fold_in_users(fitted.items, histories_of(given, 41), current=fitted.users)
    assert np.allclose(folded, fitted.users, atol=1e-4)
    # Its items have learned from all of them.
    assert fitted.items[heavy, 0].min() >= 1
