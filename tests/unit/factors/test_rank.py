"""How many latent dimensions a fit takes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from factors import FitSettings, Ratings, Scale, fit
from factors.inference.histories import compress_pairs
from factors.inference.pair_moments import PairMoments
from factors.model.links import link_of
from factors.model.quantized_rows import item_codec
from factors.model.types import Float64s
from factors.training.initialization import initial_state
from factors.training.rank import Directions, grown, missing_directions, with_rank
from factors.training.sweep import State
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet
from factors.training.units import in_rating_units

STARS = Scale(1.0, 5.0, 0.5)
SHAPE = (1_200, 500)
N_RATINGS, N_ASKED = 90_000, 5_000
RNG = np.random.default_rng(2)


def world(rank: int, seed: int = 5) -> tuple[Ratings, Ratings]:
    """Ratings of a world of this rank, as noisy as its tastes are broad, and others to be asked for."""
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(SHAPE[0], rank)), rng.normal(size=(SHAPE[1], rank)) / np.sqrt(rank)
    user, item = np.divmod(rng.permutation(SHAPE[0] * SHAPE[1])[: N_RATINGS + N_ASKED], SHAPE[1])
    score = 3.0 + np.einsum("nk,nk->n", users[user], items[item]) + rng.normal(0.0, 0.6, len(user))
    value = np.clip(np.rint(2.0 * score) / 2.0, 1.0, 5.0)
    time = rng.uniform(1.6e9, 1.7e9, len(user))
    known, asked = slice(N_RATINGS), slice(N_RATINGS, None)
    return (
        Ratings(user[known].astype(np.int32), item[known].astype(np.int32), value[known], time[known]),
        Ratings(user[asked].astype(np.int32), item[asked].astype(np.int32), value[asked], time[asked]),
    )


def error(ratings: Ratings, asked: Ratings, settings: FitSettings) -> tuple[int, float]:
    """The rank of a fit, and its root mean square error."""
    fitted = fit(ratings, *SHAPE, settings=settings, rng=np.random.default_rng(1))
    pairs = PairMoments(fitted.posterior.parameters, fitted.items)
    places = asked.user_row.astype(np.int64), asked.item_row.astype(np.int64)
    mean, variance, _ = pairs.moments(fitted.users, *places, asked.time, None)
    rating, _ = link_of(fitted.posterior.parameters).rating_moments(mean, variance)
    return fitted.model.rank, float(np.sqrt(np.mean((rating - asked.value) ** 2)))


@pytest.mark.slow
@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_a_fit_takes_as_many_dimensions_as_its_ratings_show(link: str) -> None:
    ratings, asked = world(14)
    settings = FitSettings(STARS, link=link, session_effects=False)  # type: ignore[arg-type]
    rank, found = error(ratings, asked, settings)
    _, told = error(ratings, asked, replace(settings, rank=14))
    _, few = error(ratings, asked, replace(settings, rank=8))
    assert 14 <= rank <= 16
    assert found < 1.01 * told
    assert found < 0.9 * few


def test_a_fit_takes_no_more_dimensions_than_its_ratings_show() -> None:
    ratings, _ = world(3)
    settings = FitSettings(STARS, link="gaussian")
    assert fit(ratings, *SHAPE, settings=settings, rng=np.random.default_rng(1)).model.rank == 8


def test_a_rank_that_was_asked_for_is_kept() -> None:
    ratings, asked = world(14)
    assert error(ratings, asked, FitSettings(STARS, rank=5, link="gaussian"))[0] == 5


def swept(terms: Terms, rank: int, *, of: int = 6) -> State:
    """A state of this rank of a world `of` another one."""
    ratings, _ = world(of)
    by_user = compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, SHAPE[0])
    training = TrainingSet.of(by_user, SHAPE[1])
    state = initial_state(training, FitSettings(STARS, rank=rank), np.random.default_rng(1))
    return state.run(10).branch(terms).run(6)


def scores(state: State) -> Float64s:
    by_user = state.training.by_user
    pairs = PairMoments(state.parameters, item_codec(state.parameters).encode(state.item_rows))
    return pairs.moments(state.user_rows, by_user.row, by_user.other, by_user.time, None)[0]


TERMS = {
    "plain": Terms(),
    "ordinal": Terms("ordinal"),
    "sets and sessions": Terms("ordinal", 6.0, 6.0, 1e6, 1e7),
    "moving": Terms("gaussian", 6.0, 6.0, 0.0, 1e7, 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_a_state_that_grows_predicts_what_it_did_until_it_has_learned(terms: Terms) -> None:
    state = swept(terms, 4)
    nothing = Directions(np.zeros((SHAPE[1], 2)), np.full(2, 1e-3), np.zeros(SHAPE[1]))
    larger = grown(state, nothing)
    assert larger.parameters.users.layout.rank == larger.parameters.items.layout.rank == 6
    assert np.allclose(scores(larger), scores(state), atol=1e-4)
    found = missing_directions(state, 16, np.random.default_rng(2))
    assert found is not None
    # The world has six: no more stand out, and at least one does.
    assert found.loadings.shape == (SHAPE[1], len(found.variance))
    assert 1 <= len(found.variance) <= 3
    before = state.run(6).leave_one_out(5_000)
    after = grown(state, found).run(6).leave_one_out(5_000)
    assert np.array_equal(before[0], after[0])
    value = state.training.by_user.value[before[0]]
    if terms.link == "gaussian":
        assert np.mean((after[1] - value) ** 2) < 0.9 * np.mean((before[1] - value) ** 2)
    assert np.isfinite(after[1]).all()


@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_dimensions_are_found_as_large_as_they_are(link: str) -> None:
    state = swept(Terms(link), 1)  # type: ignore[arg-type]
    found = missing_directions(state, 16, np.random.default_rng(2))
    assert found is not None
    assert len(found.variance) == 5
    # The world's own, in ratings; at the ends of the scale some of it is cut off.
    truth = 1.0 / np.sqrt(6.0)
    per_rating = 1.0 if link == "gaussian" else in_ratings(state)
    assert np.all((0.7 * truth < found.variance * per_rating) & (found.variance * per_rating < 1.1 * truth))
    loadings = found.loadings[state.training.by_item.counts > 0]
    assert np.allclose(loadings.var(axis=0), found.variance, rtol=0.4)


def in_ratings(state: State) -> float:
    """How many units of the ratings a unit of the scores is."""
    parameters, _, _ = in_rating_units(state.parameters, state.user_rows, state.item_rows)
    return math.sqrt(parameters.noise / state.parameters.noise)


def test_dimensions_that_no_rating_shows_are_added_where_they_are_asked_for() -> None:
    state = with_rank(
        swept(Terms("ordinal"), 2, of=2), lambda _: np.zeros(1), FitSettings(STARS, rank=4), RNG
    )
    assert state.parameters.users.layout.rank == state.parameters.items.layout.rank == 4
    assert np.isfinite(scores(state)).all()


def test_a_state_that_grows_goes_on_from_its_sites() -> None:
    state = swept(TERMS["sets and sessions"], 4)
    nothing = Directions(np.zeros((SHAPE[1], 2)), np.full(2, 1e-3), np.zeros(SHAPE[1]))
    larger = grown(state, nothing)
    assert larger.steps["user"].sites is state.steps["user"].sites
    larger.run(1)
    # A state that was not the better one goes on from where the sites are.
    state.run(1)
    assert np.allclose(scores(larger), scores(state), atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_noise_shows_no_dimension(link: str) -> None:
    found = [
        missing_directions(swept(Terms(link), 4, of=2), 16, np.random.default_rng(seed))  # type: ignore[arg-type]
        for seed in range(3)
    ]
    assert found.count(None) >= 2


def test_a_state_without_a_sweep_shows_none() -> None:
    ratings, _ = world(3)
    by_user = compress_pairs(ratings.user_row, ratings.item_row, ratings.value, ratings.time, SHAPE[0])
    state = initial_state(TrainingSet.of(by_user, SHAPE[1]), FitSettings(STARS), np.random.default_rng(1))
    assert missing_directions(state, 16, np.random.default_rng(2)) is None
