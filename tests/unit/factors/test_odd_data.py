"""Each kind of odd data fits, by numpy and by compiled loops: finite, on the scale, and of use."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from factors import FitSettings, Fitted, Ratings, Scorer, all_finite_items, fit, fit_biases
from factors.inference.compiled.backend import LoopBackend, choose_backend
from factors.model.types import Float64s, Link
from factors.training import model_selection
from tests.support.odd_data import ODD_DATA, OddData
from tests.unit.factors.factors_world import histories_of

# Where ratings follow little of a pattern, factors may be a little worse than biases: by this much of few.
WORSE = 1.1
# Of fewer held out chance decides who predicts better.
LEAST_HELD_OUT = 50


def fitted_of(data: OddData, given: Ratings, start: Fitted | None = None, **how: object) -> Fitted:
    settings, rng = FitSettings(data.scale, **how), np.random.default_rng(0)  # type: ignore[arg-type]
    found = fit(given, data.n_users, data.n_items, settings=settings, rng=rng, start=start)
    assert np.isfinite(found.users).all()
    assert all_finite_items(found.model, found.items)
    return found


def answers(data: OddData, found: Fitted, of: Ratings) -> Float64s:
    """Ratings of pairs, on the scale, with deviations above 0; those of strangers and of no time are, too."""
    scale, scorer = data.scale, Scorer(found.posterior, found.items)
    unknown = replace(of, time=np.full(len(of.time), np.nan))
    strangers = replace(of, user_row=np.full_like(of.user_row, -1), time=np.full(len(of.time), 1e18))
    for each in (strangers, replace(of, item_row=np.full_like(of.item_row, data.n_items)), unknown, of):
        scores = scorer.score(found.users, each.user_row, each.item_row, each.time)
        assert np.isfinite(scores.std).all()
        assert (scores.std > 0).all()
        assert ((scores.rating >= scale.low) & (scores.rating <= scale.high)).all()
    if data.constant is not None:
        np.testing.assert_allclose(scores.rating, data.constant, atol=0.01 * (scale.high - scale.low))
    return scores.rating


def apart(data: OddData, share: int = 5) -> tuple[Ratings, Ratings]:
    """Ratings to learn, and one in `share` to be asked for: of what is superseded none could be."""
    n = len(data.ratings.value)
    free = n - data.superseded
    asked = np.sort(data.superseded + np.random.default_rng(5).permutation(free)[: free // share])
    known = np.ones(n, dtype=bool)
    known[asked] = False
    if data.superseded:
        known[asked - data.superseded] = False
    return data.ratings.take(known), data.ratings.take(asked)


def error(predicted: Float64s, of: Ratings) -> float:
    return float(np.sqrt(np.mean((predicted - of.value) ** 2)))


def error_of_biases(data: OddData, learned: Ratings, held_out: Ratings) -> float:
    _, last = np.unique(
        (learned.user_row.astype(np.int64) * 100_000 + learned.item_row)[::-1], return_index=True
    )
    once = learned.take(np.sort(len(learned.value) - 1 - last))
    biases = fit_biases(once, data.n_users, data.n_items, user_ridge=15, item_ridge=10)
    return error(biases.predict(held_out.user_row, held_out.item_row), held_out)


@pytest.fixture(params=["numpy", "compiled"])
def half_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    n = 1 if request.param == "compiled" else 10_000_000
    monkeypatch.setattr("factors.inference.compiled.backend.MANY_RATINGS", n)
    assert isinstance(choose_backend(2, threads=1, block_rows=64), LoopBackend) == (n == 1)
    if request.param == "compiled":
        # Terms are chosen by a part of the ratings, as those of large data are.
        monkeypatch.setattr(model_selection, "_MOST_RATINGS", 400)
        monkeypatch.setattr(model_selection, "_MOST_OF_USER", 15)
    return str(request.param)


@pytest.mark.usefixtures("half_step")
@pytest.mark.parametrize("make", ODD_DATA.values(), ids=ODD_DATA)
def test_a_fit_is_finite_and_predicts_no_worse_than_biases(make: Callable[[], OddData]) -> None:
    data = make()
    learned, held_out = apart(data)
    found = fitted_of(data, learned)
    answers(data, found, learned)
    folded = found.posterior.fold_in_users(
        found.items, histories_of(learned, data.n_users), current=found.users
    )
    np.testing.assert_allclose(folded, found.users, rtol=1e-3, atol=1e-3)
    # The next fit goes on from it.
    answers(data, fitted_of(data, learned, found, sweeps=2), held_out)
    if len(held_out.value) >= LEAST_HELD_OUT and data.constant is None:
        biases = error_of_biases(data, learned, held_out)
        assert error(answers(data, found, held_out), held_out) <= WORSE * biases
    links: list[Link] = ["gaussian"] if data.scale.step is None else ["gaussian", "ordinal"]
    for link in links:
        if link != found.model.link:
            other = fitted_of(data, learned, link=link, rank=2, sweeps=4)
            assert other.model.link == link
            answers(data, other, held_out)
