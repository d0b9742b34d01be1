"""Accounts that push one item: what they rate, and that what they move is measured on the others alone."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline import shills as module
from evaluation.offline.shills import ATTACKS, Attack, folded, measure_shifts, predictions, shills
from factors import FitSettings, Ratings, fit
from tests.unit.evaluation.evaluation_data import made

DATA = replace(made(), n_users=200)


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_account_pushes_the_target_once_and_hides_among_others(attack: Attack) -> None:
    added = shills(DATA, 7, attack, np.random.default_rng(1))
    accounts = np.unique(added.user_row)
    assert accounts.tolist() == [200, 201]
    pairs = added.user_row.astype(int) * 100 + added.item_row
    assert len(np.unique(pairs)) == len(pairs)
    pushed = added.item_row == 7
    assert (added.value[pushed] == 5.0).all()
    assert pushed.sum() == 2
    fillers = {"nothing else": 0, "bandwagon": 9}.get(attack, 19)
    assert np.bincount(added.user_row)[200:].tolist() == [fillers + 1] * 2
    assert set(np.unique(added.value)) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert (added.time == DATA.ratings.time.max()).all() == (attack != "slow")


def test_between_two_fits_the_accounts_move_their_target_alone() -> None:
    known, settings = DATA.ratings, FitSettings(DATA.scale, rank=1, link="gaussian")
    before = fit(known, 200, 20, settings=settings, rng=np.random.default_rng(0))
    added = shills(DATA, 7, "nothing else", np.random.default_rng(1))
    columns = ("user_row", "item_row", "value", "time")
    every = Ratings(*(np.concatenate([getattr(known, name), getattr(added, name)]) for name in columns))
    after = folded(before, every, added, 7)
    assert (predictions(after, 7, 200) > predictions(before, 7, 200)).all()
    np.testing.assert_array_equal(predictions(after, 8, 200), predictions(before, 8, 200))


@pytest.mark.slow
def test_every_attack_on_every_kind_of_target_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POPULARITY", (0.2, 0.8))
    found = list(measure_shifts(DATA, seed=1))
    assert [one.attack for one in found] == [*ATTACKS, *ATTACKS]
    assert found[0].n_ratings > found[-1].n_ratings
    alone = [one for one in found if one.attack == "nothing else"]
    assert all(0.0 < one.plain_mean < 1.0 and one.online > 0.0 and one.fitted > 0.0 for one in alone)
    assert all(np.isfinite([one.rmse_before, one.rmse]).all() for one in found)
