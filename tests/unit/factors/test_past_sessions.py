"""A prediction of a time long past is that of the whole history, though a row keeps few sessions."""

from dataclasses import replace

import numpy as np

from factors import Scorer, posterior_of
from factors.model.layout import NO_SESSION, Layout
from factors.model.parameters import from_model, to_model
from factors.training.terms import relayout
from tests.unit.factors.factors_world import fitted_of, history, ratings_of

HOUR = 3600.0


def test_any_period_of_the_history_is_there_when_asked_for() -> None:
    fitted = fitted_of(ratings_of(3), link="gaussian", session_effects=False)
    known = from_model(fitted.model)
    side = replace(
        known.users, layout=Layout(known.users.layout.rank, 2), session_length=HOUR, session_variance=0.4
    )
    model = to_model(replace(known, users=side))
    roomy = to_model(replace(known, users=replace(side, layout=Layout(side.layout.rank, 9))))
    times = [HOUR * (100 + row // 3) + row for row in range(24)]
    values = [1.0 + (7 * row // 3) % 5 for row in range(24)]
    past = history(list(range(24)), values, times)
    row = posterior_of(model).fold_in_users(fitted.items, past)
    whole = posterior_of(roomy).fold_in_users(fitted.items, past)
    zero, item = np.zeros(1, dtype=np.int64), np.array([27])
    forgotten = 0
    for session in range(100, 108):
        when = HOUR * session + 5.0
        forgotten += not posterior_of(model).keeps_time(row[0], when)
        then = posterior_of(model).fold_in_users(fitted.items, past, at=when)
        found = Scorer(posterior_of(model), fitted.items).score(then, zero, item, np.array([when]))
        expected = Scorer(posterior_of(roomy), fitted.items).score(whole, zero, item, np.array([when]))
        np.testing.assert_allclose(found.rating, expected.rating, atol=1e-5)
        np.testing.assert_allclose(found.std, expected.std, atol=1e-5)
        assert posterior_of(model).keeps_time(then[0], when)
    assert forgotten == 6


def test_a_row_with_room_to_spare_needs_no_history() -> None:
    fitted = fitted_of(ratings_of(3), link="gaussian", session_effects=False)
    assert fitted.posterior.keeps_time(fitted.users[0], 1e9)
    known = from_model(fitted.model)
    side = replace(
        known.users, layout=Layout(known.users.layout.rank, 2), session_length=HOUR, session_variance=0.4
    )
    rows = relayout(known.users, side, fitted.users.astype(np.float64)).astype(np.float32)
    assert (rows[:, side.layout.keys] == NO_SESSION).all()
    assert posterior_of(to_model(replace(known, users=side))).keeps_time(rows[0], 1e9)
