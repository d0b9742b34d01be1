"""The simulated world: each pair once, seeded, distributed as derived, no user rated before it exists."""

from dataclasses import replace

import numpy as np
import pytest

from environment.world import COURSE_STEPS, DIMENSION, World, WorldOptions, cut_points, make_world

LECTURE = WorldOptions()


def same(one: World, other: World) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("user", "item", "rating", "user_arrival", "item_arrival", "variables")
    )


def matrix(world: World, options: WorldOptions) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    ratings = np.zeros((options.n_users, options.n_items), dtype=np.uint8)
    ratings[world.user, world.item] = world.rating
    return ratings


def test_every_pair_comes_exactly_once() -> None:
    world = make_world(3, LECTURE)
    pairs = world.user.astype(np.int64) * LECTURE.n_items + world.item
    assert np.array_equal(np.sort(pairs), np.arange(30_000))
    assert set(world.rating.tolist()) == {1, 2, 3, 4, 5}


def test_a_seed_gives_the_same_world_and_another_seed_another() -> None:
    options = WorldOptions(late_users=0.3, late_items=0.2, drift=0.5, noise=0.5, n_variables=2)
    assert same(make_world(2**127, options), make_world(2**127, options))
    assert not same(make_world(1, options), make_world(2, options))


def test_the_moments_of_a_score_are_those_derived() -> None:
    random = np.random.default_rng(5)
    scores = (random.normal(1, 1, (400_000, DIMENSION)) * random.normal(1, 1, (400_000, DIMENSION))).sum(1)
    assert scores.mean() == pytest.approx(3.0, abs=0.03)
    assert scores.var() == pytest.approx(9.0, abs=0.15)
    z_80 = 0.8416212335729143
    assert cut_points() == pytest.approx(
        [3 - 3 * z_80, 3 - 3 * 0.2533471031357997, 3 + 3 * 0.2533471031357997, 3 + 3 * z_80]
    )


def test_ratings_are_nearly_uniform_over_the_five_bins() -> None:
    """Not exactly: products of normals are skewed, and the cut points are those of a normal."""
    counts = sum(np.bincount(make_world(seed, LECTURE).rating, minlength=6)[1:] for seed in range(20))
    shares = counts / (20 * 30_000)
    assert shares == pytest.approx([0.188, 0.257, 0.208, 0.169, 0.178], abs=0.03)


def test_the_constant_three_has_the_error_known_of_it() -> None:
    errors = [np.mean((make_world(seed, LECTURE).rating.astype(float) - 3) ** 2) for seed in range(20)]
    assert 1.8 < np.mean(errors) < 2.0


def test_the_order_says_nothing_about_users_items_or_ratings() -> None:
    world = make_world(11, LECTURE)
    time = np.arange(30_000)
    for column in (world.user, world.item, world.rating):
        assert abs(np.corrcoef(time, column)[0, 1]) < 0.03


def test_noise_changes_ratings_and_nothing_else() -> None:
    plain, noisy = make_world(4, LECTURE), make_world(4, replace(LECTURE, noise=1.0))
    assert np.array_equal(plain.user, noisy.user)
    assert np.array_equal(plain.item, noisy.item)
    assert 0.3 < np.mean(plain.rating != noisy.rating) < 0.7


def test_variables_change_ratings_and_nothing_else() -> None:
    plain, moved = make_world(4, LECTURE), make_world(4, replace(LECTURE, n_variables=5))
    assert plain.variables.shape == (30_000, 0)
    assert moved.variables.shape == (30_000, 5)
    assert np.array_equal(plain.user, moved.user)
    assert np.array_equal(plain.item, moved.item)
    assert 0.3 < np.mean(plain.rating != moved.rating) < 0.7


def test_variables_shift_and_turn_the_taste() -> None:
    """Ratings lean on the variables, by other weights for one item than for another."""
    options = replace(LECTURE, n_variables=3)
    leaning = []
    for seed in range(8):
        world = make_world(seed, options)
        design = np.column_stack([np.ones(world.rating.size), world.variables])
        by_item = []
        for item in range(options.n_items):
            own = world.item == item
            by_item.append(np.linalg.lstsq(design[own], world.rating[own].astype(float))[0][1:])
        weights = np.array(by_item)
        # A hundred ratings of standard deviation 1.4 leave a weight an error of 0.14, of variance 0.02.
        leaning.append((np.linalg.norm(weights.mean(axis=0)), weights.var(axis=0).sum() - 3 * 0.02))
    shift, turn = np.mean(leaning, axis=0)
    assert shift > 0.2
    assert turn > 0.05


def test_the_scores_of_worlds_with_variables_fill_the_bins() -> None:
    options = replace(LECTURE, n_variables=5)
    counts = sum(np.bincount(make_world(seed, options).rating, minlength=6)[1:] for seed in range(20))
    assert counts / (20 * 30_000) == pytest.approx([0.19, 0.25, 0.21, 0.17, 0.18], abs=0.03)


def test_a_world_with_too_many_numbers_is_refused() -> None:
    (problem,) = replace(LECTURE, n_users=2_000, n_items=2_000, n_variables=32).problems()
    assert "variables" in problem


def test_coming_late_changes_the_order_and_nothing_else() -> None:
    late = replace(LECTURE, late_users=0.5, late_items=0.5)
    assert np.array_equal(matrix(make_world(4, LECTURE), LECTURE), matrix(make_world(4, late), late))


def test_no_user_is_rated_before_it_exists() -> None:
    options = WorldOptions(late_users=0.4, late_items=0.3)
    world = make_world(8, options)
    time = np.arange(world.user.size)
    assert np.all(time >= world.user_arrival[world.user])
    assert np.all(time >= world.item_arrival[world.item])
    assert np.count_nonzero(world.user_arrival) == 40
    assert np.count_nonzero(world.item_arrival) == 90


def test_half_of_the_late_ones_come_while_playing_and_are_played_then() -> None:
    options = WorldOptions(late_users=0.4, late_items=0.4)
    world = make_world(9, options)
    for arrival, column in ((world.user_arrival, world.user), (world.item_arrival, world.item)):
        late = arrival[arrival > 0]
        in_play = np.mean(late >= options.n_known - 200)
        assert 0.3 < in_play < 0.7
        assert late.max() < options.n_known + COURSE_STEPS + 400
        known = set(column[: options.n_known].tolist())
        assert set(column[options.n_known : options.n_known + COURSE_STEPS].tolist()) - known


def test_a_newcomer_is_rated_as_often_as_everyone_else_from_then_on() -> None:
    """No burst of pairs that had waited for him: the next event is a uniform draw from what is unrated."""
    options = WorldOptions(n_users=50, n_items=400, n_known=8_000, late_users=0.5)
    after, expected = 0, 0.0
    for seed in range(10):
        world = make_world(seed, options)
        for user in np.flatnonzero((world.user_arrival > 500) & (world.user_arrival < 7_000)):
            start = int(world.user_arrival[user])
            following = world.user[start : start + 400]
            existing = int(np.count_nonzero(world.user_arrival <= start))
            unrated = existing * 400 - start
            after += int(np.count_nonzero(following == user))
            expected += 400 * 400 / unrated
    assert after == pytest.approx(expected, rel=0.15)


def test_drift_turns_tastes_slowly_and_keeps_the_distribution() -> None:
    still, drifting = make_world(6, LECTURE), make_world(6, replace(LECTURE, drift=1.0))
    assert np.array_equal(still.user, drifting.user)
    changed = still.rating != drifting.rating
    assert changed[:500].mean() < 0.1
    assert changed[10_000:11_000].mean() > 3 * changed[:500].mean()
    counts = sum(
        np.bincount(make_world(s, replace(LECTURE, drift=2.0)).rating, minlength=6)[1:] for s in range(10)
    )
    assert counts / 300_000 == pytest.approx([0.188, 0.257, 0.208, 0.169, 0.178], abs=0.04)


@pytest.mark.parametrize(
    "options",
    [
        WorldOptions(n_users=1, n_items=2, n_known=1),
        WorldOptions(n_users=1, n_items=1, n_known=0, late_users=0.9, late_items=0.9),
        WorldOptions(n_users=3, n_items=3, n_known=8, late_users=0.9, late_items=0.9, drift=3, noise=2),
        WorldOptions(n_users=20, n_items=20, n_known=399, late_users=0.9),
    ],
)
def test_small_worlds_are_whole(options: WorldOptions) -> None:
    world = make_world(0, options)
    pairs = world.user.astype(np.int64) * options.n_items + world.item
    assert np.array_equal(np.sort(pairs), np.arange(options.n_users * options.n_items))
    assert np.all(np.arange(pairs.size) >= world.user_arrival[world.user])


@pytest.mark.parametrize(
    "options", [WorldOptions(n_known=30_000), WorldOptions(n_users=100_000, n_items=100_000, n_known=1)]
)
def test_contradictory_options_are_named(options: WorldOptions) -> None:
    assert options.problems()
