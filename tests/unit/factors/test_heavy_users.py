"""A user with very many ratings: which of them count for the user's row, and what choosing terms costs."""

import numpy as np
import pytest

from factors import FitSettings, Histories, Ratings, Scale, fit
from factors.inference.backend import NumpyBackend
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import TO_THE_END, HalfStep, Iteration
from factors.inference.histories import RECENT, SAMPLED, Compressed, compress, sample_order
from factors.training import model_selection
from factors.training.fit import prepare
from factors.training.model_selection import select_terms
from factors.training.training_set import TrainingSet
from tests.unit.factors.factors_world import fitted_of, histories_of, ratings_of

SCALE = Scale(1, 5, 1)
HEAVY = 300_000
USERS, ITEMS, EACH = 400, 600, 30


def crowd(heavy: int, seed: int = 1) -> tuple[Ratings, int, int]:
    """`USERS` users with `EACH` ratings, and after them `heavy` users with `HEAVY` ratings, of the same
    items, most of which have no other rating.
    """
    rng = np.random.default_rng(seed)
    n_items = HEAVY if heavy else ITEMS
    user = np.concatenate([np.repeat(np.arange(USERS), EACH), np.repeat(USERS + np.arange(heavy), HEAVY)])
    item = np.concatenate(
        [rng.permutation(ITEMS)[:EACH] for _ in range(USERS)] + [rng.permutation(HEAVY) for _ in range(heavy)]
    )
    liked = rng.normal(0, 0.7, n_items)[item] + rng.normal(0, 0.5, USERS + heavy)[user]
    value = np.clip(np.rint(3 + liked + rng.normal(0, 0.7, len(user))), 1, 5)
    time = np.full(len(user), np.nan)
    return Ratings(user.astype(np.int32), item.astype(np.int32), value, time), USERS + heavy, n_items


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


def test_a_history_at_the_limit_counts_whole() -> None:
    for n, kept in ((RECENT + SAMPLED, RECENT + SAMPLED), (RECENT + SAMPLED + 1, RECENT + SAMPLED)):
        assert len(compress(long_history(n), n, whole=False).other) == kept


def test_the_sample_is_even_over_items_and_stays_while_ratings_come() -> None:
    history = long_history(20_000)
    before = rows_of(compress(history, 20_000, whole=False)) - set(history.other_row[-RECENT:].tolist())
    # A quarter of the rows each: within four standard deviations.
    quarters = np.bincount(np.array(sorted(before)) // 5_000, minlength=4)
    assert np.abs(quarters - SAMPLED / 4).max() < 4 * np.sqrt(SAMPLED * 3 / 16)
    rows = np.concatenate([history.other_row, np.arange(20_000, 20_100, dtype=np.int32)])
    more = Histories(np.array([0, 20_100]), rows, np.ones(20_100), np.full(20_100, np.nan))
    after = rows_of(compress(more, 20_100, whole=False)) - set(rows[-RECENT:].tolist())
    # A hundred ratings have grown older, of which about one in twenty takes a place.
    assert len(before - after) < 20


def test_several_rows_are_thinned_each_by_itself() -> None:
    one, few = long_history(3_000), long_history(50, seed=3)
    both = Histories(
        np.array([0, 3_000, 3_050]),
        np.concatenate([one.other_row, few.other_row]),
        np.concatenate([one.value, few.value]),
        np.full(3_050, np.nan),
    )
    found = compress(both, 3_000, whole=False)
    assert found.counts.tolist() == [RECENT + SAMPLED, 50]
    alone = compress(one, 3_000, whole=False)
    assert np.array_equal(found.other[: RECENT + SAMPLED], alone.other)
    assert np.array_equal(found.value[: RECENT + SAMPLED], alone.value)


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_the_row_of_a_heavy_user_in_a_fit_is_what_folding_in_gives(link: str) -> None:
    n_items = 6_000
    some = ratings_of(3, timed=False)
    rng = np.random.default_rng(4)
    heavy = rng.permutation(n_items)[:5_000]
    ratings = Ratings(
        np.concatenate([some.user_row, np.full(5_000, 40)]).astype(np.int32),
        np.concatenate([some.item_row, heavy]).astype(np.int32),
        np.concatenate([some.value, rng.integers(1, 6, 5_000)]),
        np.full(len(some.value) + 5_000, np.nan),
    )
    fitted = fitted_of(ratings, n_users=41, n_items=n_items, link=link)
    folded = fitted.posterior.fold_in_users(fitted.items, histories_of(ratings, 41), current=fitted.users)
    assert np.allclose(folded, fitted.users, atol=1e-4)
    # Its items have learned from all of them.
    assert fitted.items[heavy, 0].min() >= 1


class Counting(NumpyBackend):
    """Counts the rows and entries of all half-steps."""

    work = 0

    def half_step(self, inputs: HalfStepInput, iteration: Iteration = TO_THE_END) -> HalfStep:
        Counting.work += inputs.data.rows + len(inputs.data.value)
        return super().half_step(inputs, iteration)


def choose(heavy: int) -> int:
    """The work of choosing terms with so many heavy users."""
    ratings, n_users, n_items = crowd(heavy)
    settings = FitSettings(SCALE, link="gaussian", rank=2, implicit_effects=False)
    Counting.work = 0
    by_user = prepare(ratings, n_users, n_items, settings)
    training = TrainingSet.of(by_user, n_items, Counting())
    found = select_terms(training, settings, np.random.default_rng(1))
    assert len(found.state.user_rows) == n_users
    assert len(found.state.item_rows) == n_items
    assert np.isfinite(found.state.item_rows).all()
    return Counting.work


def test_a_heavy_user_adds_little_to_the_work_of_choosing_terms() -> None:
    without = choose(0)
    # A sample of 3,000 ratings beside 12,000, on some 3,000 items more: not 300,000 of either.
    assert 0 < choose(1) < 2 * without


@pytest.mark.slow
@pytest.mark.parametrize("heavy", [1, 10])
def test_no_seed_loses_the_ratings_of_the_others(heavy: int) -> None:
    ratings, n_users, n_items = crowd(heavy)
    settings = FitSettings(SCALE)
    training = TrainingSet.of(prepare(ratings, n_users, n_items, settings), n_items)
    # Whole users up to a sum: the one with more than the sum leaves all that come after him out.
    for seed in range(20 if heavy == 1 else 2):
        sample, users, items = model_selection._sample(training, np.random.default_rng(seed))
        assert len(sample) == USERS * EACH + heavy * 3_000
        assert len(users) == USERS + heavy
        assert len(items) == sample.by_item.rows < 5_000
        # The heavy users meet in the same items.
        assert sample.by_item.counts.max() >= heavy


def test_a_fit_with_a_heavy_user_ends() -> None:
    rng = np.random.default_rng(5)
    ratings, n_users, n_items = crowd(0)
    # Six times the rest, so that whole users up to any sum below his would be few.
    more = 6 * len(ratings.value)
    heavy = Ratings(
        np.full(more, n_users, dtype=np.int32),
        np.arange(more, dtype=np.int32),
        rng.integers(1, 6, more).astype(float),
        np.full(more, np.nan),
    )
    both = Ratings(*(np.concatenate(pair) for pair in zip(_columns(ratings), _columns(heavy), strict=True)))
    settings = FitSettings(SCALE, rank=2, sweeps=3)
    fitted = fit(both, n_users + 1, more, settings=settings, rng=np.random.default_rng(1))
    assert np.isfinite(fitted.users).all()
    assert len(fitted.items) == more > n_items


def _columns(ratings: Ratings) -> tuple[np.ndarray, ...]:
    return ratings.user_row, ratings.item_row, ratings.value, ratings.time
