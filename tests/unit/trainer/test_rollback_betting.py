"""The bet against the live generation: how soon a bad one loses it, and how seldom a good one."""

import numpy as np
import pytest

from trainer.rollback.betting import Bet, liars_among


def stopped_after(
    seed: int, spread: tuple[float, float], most: int, users: int = 200, *, bearing: int = 1, each: int = 1
) -> int | None:
    """After how many ratings of a world the first of two predictors is condemned, looked at after `each`;
    their scores err by `spread` besides what none can foretell.
    """
    rng, bet = np.random.default_rng(seed), Bet(1.0, 5.0, bearing)
    score = rng.normal(3.5, 0.7, most)
    rating = np.clip(np.round(score + rng.normal(0.0, 0.9, most)), 1, 5)
    first, second = (score + rng.normal(0.0, error, most) for error in spread)
    for k, user in enumerate(rng.integers(users, size=most).tolist()):
        bet.add(b"%d" % user, first[k], second[k], rating[k])
        if k % each == 0 and bet.first_is_worse:
            return k + 1
    return None


@pytest.mark.slow
def test_a_good_one_is_never_condemned_in_300_worlds() -> None:
    """Looked at after each of 1,000 ratings: at most 1 in 1,000 is promised."""
    found = [stopped_after(seed, (0.3, 0.3), 1_000) for seed in range(300)]
    assert found == [None] * 300


@pytest.mark.parametrize(("worse", "within"), [(0.9, 450), (0.6, 1_050)])
def test_a_worse_one_is_condemned_the_sooner_the_worse_it_is(worse: float, within: int) -> None:
    found = [stopped_after(seed, (worse, 0.3), 2_000) or 2_000 for seed in range(40)]
    assert np.quantile(found, 0.9) < within
    # The other way round it is the better one.
    assert {stopped_after(seed, (0.3, worse), 2_000) for seed in range(40)} == {None}


@pytest.mark.parametrize(("users", "within"), [(2_000, 1_200), (20_000, 4_000)])
def test_among_many_users_a_worse_one_is_condemned_without_those_who_may_lie(users: int, within: int) -> None:
    """RMSE 20 % worse: as in docs/trainer.md."""
    for seed in range(4):
        found = stopped_after(seed, (0.72, 0.3), within, users, bearing=liars_among(users), each=users // 200)
        assert found is not None


def test_a_test_for_one_look_would_condemn_many_good_ones() -> None:
    """The negative control: the same differences, looked at after each rating with a test at 1 in 1,000."""
    rng, false_alarms = np.random.default_rng(0), 0
    for _ in range(300):
        errors = rng.normal(0.0, 0.9, 1_000) + rng.normal(0.0, 0.3, (2, 1_000))
        difference = errors[0] ** 2 - errors[1] ** 2
        count = np.arange(1, 1_001)
        mean = np.cumsum(difference) / count
        error = np.sqrt(np.maximum(np.cumsum(difference**2) / count - mean**2, 1e-12) / count)
        false_alarms += bool((mean / error > 3.09)[30:].any())
    assert false_alarms >= 3


def test_one_account_condemns_nothing() -> None:
    rng = np.random.default_rng(1)
    alone, among = Bet(1.0, 5.0), Bet(1.0, 5.0)
    for k in range(3_000):
        # An account that rates whatever the first one did not expect.
        for bet in (alone, among):
            bet.add(b"shill", 4.0, 2.0, 1.0)
        score = float(rng.normal(3.5, 0.5))
        among.add(b"%d" % (k % 500), score, score + float(rng.normal(0.0, 0.5)), round(score))
    assert 3_000 < among.ratings < 3_020
    assert not alone.first_is_worse
    assert not among.first_is_worse


def attacked(seed: int, liars: int, bearing: int, users: int = 2_000) -> int | None:
    """After how many ratings of others a good generation is condemned by liars who know both predictions of
    what they rate, and rate as often as all others together.
    """
    rng, bet = np.random.default_rng(seed), Bet(1.0, 5.0, bearing)
    for k in range(1_500):
        score = rng.normal(3.5, 0.7)
        rating = float(np.clip(round(score + rng.normal(0.0, 0.9)), 1, 5))
        first, second = score + rng.normal(0.0, 0.3, 2)
        bet.add(b"%d" % rng.integers(users), first, second, rating)
        first, second = score + rng.normal(0.0, 0.3, 2)
        bet.add(b"liar %d" % rng.integers(liars), first, second, 1.0 if first > second else 5.0)
        if k % 32 == 0 and bet.first_is_worse:
            return k
    return None


@pytest.mark.parametrize("liars", [1, 20])
def test_one_user_or_one_percent_of_the_users_cannot_bring_about_a_roll_back(liars: int) -> None:
    assert [attacked(seed, liars, liars_among(2_000)) for seed in range(10)] == [None] * 10


def test_without_setting_any_aside_one_percent_could() -> None:
    """The negative control."""
    assert None not in [attacked(seed, 20, 0) for seed in range(10)]


def test_how_many_liars_a_generation_bears() -> None:
    assert [liars_among(n) for n in (0, 30, 150, 2_000, 10**7)] == [1, 1, 2, 20, 5_000]


def test_predictors_that_agree_say_nothing_and_predictions_are_kept_to_the_scale() -> None:
    bet = Bet(1.0, 5.0)
    for k in range(1_000):
        bet.add(b"%d" % k, 3.0, 3.0, 1.0 + k % 5)
        bet.add(b"%d" % (1_000 + k), 9.0, 7.0, 1.0)
    assert bet.log_capital == 0.0
    assert bet.errors == (2_000.0 + 16_000.0, 2_000.0 + 16_000.0)
