"""What a rating's score is foretold to be without that rating."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from factors.inference.histories import compress_pairs
from factors.model.types import Float64s, Int64s, Scale
from factors.training.initialization import initial_state
from factors.training.settings import FitSettings
from factors.training.sweep import State
from factors.training.terms import Terms
from factors.training.training_set import TrainingSet

SETTINGS = FitSettings(Scale(1.0, 5.0, 1.0), rank=2)


def training() -> TrainingSet:
    rng = np.random.default_rng(3)
    user, item = np.divmod(rng.permutation(30 * 40)[:300], 40)
    taste, kind = rng.normal(size=(30, 2)), rng.normal(size=(40, 2))
    value = np.clip(np.rint(3.0 + np.einsum("nk,nk->n", taste[user], kind[item])), 1.0, 5.0)
    time = np.floor(rng.uniform(0, 5, 300)) * 100.0
    return TrainingSet.of(compress_pairs(user, item, value, time, 30), 40)


def swept(training: TrainingSet, terms: Terms) -> State:
    state = initial_state(training, SETTINGS, np.random.default_rng(1)).branch(terms)
    for _ in range(20):
        state.sweep()
    return state


def scores(state: State, user: Int64s, item: Int64s) -> Float64s:
    layout = state.parameters.users.layout
    own, other = state.user_rows[user], state.item_rows[item]
    latent = np.einsum("nk,nk->n", own[:, layout.latent], other[:, layout.latent])
    return np.asarray(state.parameters.mean + own[:, layout.bias] + other[:, layout.bias] + latent)


@pytest.mark.parametrize(
    "terms", [Terms(), Terms("ordinal"), Terms("ordinal", user_session=100.0, item_session=100.0)]
)
def test_a_left_out_rating_is_foretold_about_as_by_a_fit_without_it(terms: Terms) -> None:
    every = training()
    state = swept(every, terms)
    entries, mean, variance = state.leave_one_out(1_000)
    assert_allclose(entries, np.arange(300))
    assert np.isfinite(mean).all()
    assert (variance > 0).all()
    user, item = every.by_user.row, every.by_user.other
    some = np.random.default_rng(5).permutation(300)[:100]
    without = []
    for part in np.array_split(some, 10):
        rest = State.of_rows(every.without(part), state.parameters, state.user_rows, state.item_rows)
        for _ in range(4):
            rest.sweep(learn_priors=False)
        without.append(scores(rest, user[part], item[part]))
    apart = np.abs(mean[some] - np.concatenate(without)).mean()
    with_itself = np.abs(scores(state, user[some], item[some]) - np.concatenate(without)).mean()
    assert apart < 0.6 * with_itself


def test_a_sample_names_the_same_ratings_on_both_sides() -> None:
    every = training()
    entries, item_entries = every.sample(60)
    assert len(entries) == 60
    assert_allclose(every.by_user.other[entries], every.by_item.row[item_entries])
    assert_allclose(every.by_user.row[entries], every.by_item.other[item_entries])


def test_a_sample_of_a_full_panel_is_not_all_of_one_item() -> None:
    user, item = np.divmod(np.arange(40 * 25), 25)
    by_user = compress_pairs(user, item, np.ones(1_000), np.zeros(1_000), 40)
    entries, _ = TrainingSet.of(by_user, 25).sample(40)
    assert len(np.unique(by_user.other[entries])) > 15
    assert len(np.unique(by_user.row[entries])) > 15


def test_nothing_is_left_out_before_a_sweep() -> None:
    entries, mean, variance = initial_state(training(), SETTINGS, np.random.default_rng(1)).leave_one_out(10)
    assert len(entries) == len(mean) == len(variance) == 0
