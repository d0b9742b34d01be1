"""How many latent dimensions a fit takes."""

import numpy as np
import pytest

from factors import FitSettings, Ratings, Scale, Scorer, fit
from factors.inference.histories import compress_pairs
from factors.inference.pair_moments import PairMoments
from factors.model.quantized_rows import item_codec
from factors.model.types import Float64s
from factors.training.initialization import initial_state
from factors.training.rank import Directions, grown, missing_directions
from factors.training.sweep import State
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet

STARS = Scale(1.0, 5.0, 0.5)
LARGE, SMALL = (1_200, 500), (60, 80)


def world(rank: int, shape: tuple[int, int], n: int, n_asked: int) -> tuple[Ratings, Ratings]:
    """Ratings of a world of this rank, as noisy as its tastes are broad, and others to be asked for."""
    rng = np.random.default_rng(5)
    users, items = rng.normal(size=(shape[0], rank)), rng.normal(size=(shape[1], rank)) / np.sqrt(rank or 1)
    user, item = np.divmod(rng.permutation(shape[0] * shape[1])[: n + n_asked], shape[1])
    score = 3.0 + np.einsum("nk,nk->n", users[user], items[item]) + rng.normal(0.0, 0.6, len(user))
    score += 0.5 * rng.normal(size=shape[0])[user]
    value = np.clip(np.rint(2.0 * score) / 2.0, 1.0, 5.0)
    found = Ratings(user.astype(np.int32), item.astype(np.int32), value, rng.uniform(1.6e9, 1.7e9, len(user)))
    return found.take(np.arange(n)), found.take(np.arange(n, n + n_asked))


def fitted(given: Ratings, asked: Ratings, shape: tuple[int, int], **settings: object) -> tuple[int, float]:
    """The rank of a fit, and its root mean square error."""
    chosen = FitSettings(STARS, session_effects=False, **settings)  # type: ignore[arg-type]
    found = fit(given, *shape, settings=chosen, rng=np.random.default_rng(1))
    scorer = Scorer(found.posterior, found.items)
    rating = scorer.score(found.users, asked.user_row, asked.item_row, asked.time).rating
    return found.model.rank, float(np.sqrt(np.mean((rating - asked.value) ** 2)))


@pytest.mark.parametrize(("of", "least", "most"), [(0, 1, 1), (2, 2, 4)])
def test_few_ratings_show_the_dimensions_that_there_are(of: int, least: int, most: int) -> None:
    given, asked = world(of, SMALL, 1_400, 1_000)
    rank, found = fitted(given, asked, SMALL, link="gaussian")
    assert least <= rank <= most
    for other in (1, 3):
        # A rank that is asked for is kept.
        told, error = fitted(given, asked, SMALL, link="gaussian", rank=other, sweeps=15)
        assert told == other
        assert found < (0.95 if other < of else 1.05) * error


def swept(terms: Terms, shape: tuple[int, int], n: int) -> State:
    """A state of rank 4 of a world of rank 6."""
    given, _ = world(6, shape, n, 0)
    by_user = compress_pairs(given.user_row, given.item_row, given.value, given.time, shape[0])
    training = TrainingSet.of(by_user, shape[1])
    state = initial_state(training, FitSettings(STARS, rank=4), np.random.default_rng(1))
    return state.run(8).branch(terms).run(4)


def scores(state: State) -> Float64s:
    by_user = state.training.by_user
    pairs = PairMoments(state.parameters, item_codec(state.parameters).encode(state.item_rows))
    return pairs.moments(state.user_rows, by_user.row, by_user.other, by_user.time, None)[0]


TERMS = {
    "plain": Terms(),
    "sets and sessions": Terms("ordinal", 6.0, 6.0, 1e6, 1e7),
    "moving": Terms("gaussian", 6.0, 6.0, 0.0, 1e7, 0.1),
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_a_state_that_grows_predicts_what_it_did_until_it_has_learned(terms: Terms) -> None:
    shape = (240, 100)
    state = swept(terms, shape, 9_000)
    nothing = Directions(np.zeros((shape[1], 2)), np.full(2, 1e-3), np.zeros(shape[1]))
    larger = grown(state, nothing)
    assert larger.parameters.users.layout.rank == larger.parameters.items.layout.rank == 6
    np.testing.assert_allclose(scores(larger), scores(state), atol=1e-4)
    found = missing_directions(state, 16, np.random.default_rng(2))
    assert found is not None
    # The world has six: no more stand out, and at least one does.
    assert found.loadings.shape == (shape[1], len(found.variance))
    assert 1 <= len(found.variance) <= 3
    before, after = (each.run(6).leave_one_out(2_000) for each in (state, grown(state, found)))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.isfinite(after[1]).all()
    if terms.link == "gaussian":
        value = state.training.by_user.value[before[0]]
        assert np.mean((after[1] - value) ** 2) < 0.97 * np.mean((before[1] - value) ** 2)
