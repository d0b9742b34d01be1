"""Sittings: sessions that lie near each other have effects that are alike."""

from dataclasses import replace

import numpy as np
import pytest

from factors import FitSettings, Ratings, Scale
from factors.inference.histories import Compressed, group_sessions
from factors.model.layout import NO_SESSION, sitting_keys
from factors.model.types import Float64s
from factors.training.fit import prepare
from factors.training.initialization import flat_state
from factors.training.model_selection import select_terms
from factors.training.terms import Terms, terms_of
from factors.training.training_set import TrainingSet

HOUR = 3600.0
SETTINGS = FitSettings(Scale(-9.0, 9.0))


def test_sessions_and_sittings_of_each_row_stand_together() -> None:
    rows = np.array([0, 0, 0, 1, 1])
    time = np.array([5.0, 15.0, 95.0, 25.0, np.nan])
    data = Compressed(np.array([0, 3, 5]), np.arange(5), np.ones(5), time, np.arange(5))
    found = group_sessions(data, 10.0, 40.0)
    assert found.row.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert found.key.tolist() == [-4.0, -2.0, 0.0, 1.0, 9.0, -2.0, 2.0]
    assert found.sitting.tolist() == [-1, -1, 1, 1, 0, -1, 5]
    assert found.entry.tolist() == [0, 1, 2, 3]
    assert found.group.tolist() == [2, 3, 4, 6]
    assert (found.row[found.group] == rows[found.entry]).all()
    assert (sitting_keys(np.array([0.0, 2.0**22 - 1]), 4.0) < NO_SESSION).all()


def made(session_variance: float, sitting_variance: float) -> TrainingSet:
    """Ratings of sessions of two and sittings of five of them."""
    rng = np.random.default_rng(3)
    users, items, each = 300, 60, 40
    user = np.repeat(np.arange(users, dtype=np.int32), each)
    item = np.concatenate([rng.permutation(items)[:each] for _ in range(users)]).astype(np.int32)
    session = np.arange(users * each) // 2
    effect = rng.normal(0.0, np.sqrt(session_variance), session.max() + 1)
    effect += rng.normal(0.0, np.sqrt(sitting_variance), session.max() // 5 + 1)[np.arange(len(effect)) // 5]
    value = rng.normal(0.0, 0.5, items)[item] + effect[session] + rng.normal(0.0, 0.5, len(user))
    time: Float64s = HOUR * (session % 5 + 8.0 * (session // 5))
    ratings = Ratings(user, item, np.clip(value, -9.0, 9.0), time)
    return TrainingSet.of(prepare(ratings, users, items, SETTINGS), items)


@pytest.mark.parametrize(("session_variance", "sitting_variance"), [(0.5, 0.1), (0.1, 0.5)])
def test_both_variances_are_found(session_variance: float, sitting_variance: float) -> None:
    training = made(session_variance, sitting_variance)
    state = flat_state(training, SETTINGS).run(3)
    state = state.branch(Terms(user_session=HOUR, user_sitting=8 * HOUR)).run(8)
    users = state.parameters.users
    assert users.session_variance == pytest.approx(session_variance, rel=0.25)
    assert users.sitting_variance == pytest.approx(sitting_variance, rel=0.25)


def test_sittings_are_chosen_where_they_help_alone() -> None:
    for sitting_variance, expected in ((0.5, True), (0.0, False)):
        training = made(0.2, sitting_variance)
        state = select_terms(training, SETTINGS, np.random.default_rng(0)).state
        assert (terms_of(state.parameters).user_sitting > 0) == expected


def test_a_state_without_sessions_has_no_sittings() -> None:
    training = made(0.2, 0.2)
    state = flat_state(training, SETTINGS).run(1)
    state = state.branch(Terms(user_session=HOUR, user_sitting=8 * HOUR)).run(1)
    state = state.branch(replace(terms_of(state.parameters), user_session=0.0, user_sitting=0.0)).run(1)
    assert terms_of(state.parameters) == Terms()
