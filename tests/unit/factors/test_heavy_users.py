"""A user with very many ratings: which of them count for the user's row, and what choosing terms costs."""

import numpy as np
import pytest

from factors import FitSettings, Histories, Ratings, Scale
from factors.inference.backend import NumpyBackend
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import TO_THE_END, HalfStep, Iteration
from factors.inference.histories import RECENT, SAMPLED, Compressed, compress, sample_order
from factors.training.fit import prepare
from factors.training.model_selection import select_terms
from factors.training.training_set import TrainingSet
from tests.unit.factors.factors_world import fitted_of, histories_of, joined, ratings, ratings_of


def crowd(heavy: int) -> Ratings:
    """400 users with 30 ratings, and after them one with so many ratings of the same items and of others."""
    rng = np.random.default_rng(1)
    user = np.append(np.repeat(np.arange(400), 30), np.full(heavy, 400))
    item = np.concatenate([*(rng.permutation(600)[:30] for _ in range(400)), rng.permutation(heavy)])
    liked = rng.normal(0, 0.7, max(600, heavy))[item] + rng.normal(0, 0.5, 401)[user]
    return ratings(user, item, np.clip(np.rint(3 + liked + rng.normal(0, 0.7, len(user))), 1, 5))


def long_history(n: int, seed: int = 2) -> Histories:
    """One history of `n` items, some of them unknown to a table of 30."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(n).astype(np.int32)
    return Histories(np.array([0, n]), rows, rng.integers(1, 6, n).astype(float), np.full(n, np.nan))


def rows_of(data: Compressed) -> set[int]:
    return set(data.other.tolist())


def test_of_a_long_history_the_latest_count_and_a_sample_of_the_others() -> None:
    history = long_history(5_000)
    found = compress(history, 5_000, whole=False)
    assert len(found.other) == RECENT + SAMPLED
    latest = set(history.other_row[-RECENT:].tolist())
    others = history.other_row[:-RECENT]
    lowest = others[np.argsort(sample_order(others))[:SAMPLED]]
    assert rows_of(found) == latest | set(lowest.tolist())
    # The items of an item's raters are not thinned.
    assert len(compress(history, 5_000).other) == 5_000


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


class Counting(NumpyBackend):
    """Counts the rows and entries of all half-steps."""

    work = 0

    def half_step(self, inputs: HalfStepInput, iteration: Iteration = TO_THE_END) -> HalfStep:
        Counting.work += inputs.data.rows + len(inputs.data.value)
        return super().half_step(inputs, iteration)


def test_a_heavy_user_adds_little_to_the_work_of_choosing_terms() -> None:
    settings, work = FitSettings(Scale(1, 5, 1), link="gaussian", rank=2, implicit_effects=False), []
    for heavy in (0, 60_000):
        n_items = max(600, heavy)
        Counting.work = 0
        training = TrainingSet.of(prepare(crowd(heavy), 401, n_items, settings), n_items, Counting())
        found = select_terms(training, settings, np.random.default_rng(1))
        assert found.state.item_rows.shape[0] == n_items
        assert np.isfinite(found.state.item_rows).all()
        work.append(Counting.work)
    # A sample of 3,000 ratings beside 12,000, on some 3,000 items more: not 60,000 of either.
    assert 0 < work[1] < 2 * work[0]
