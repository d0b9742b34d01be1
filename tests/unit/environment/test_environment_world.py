"""The simulated world: each pair once, seeded, distributed as derived, no user rated before it exists."""

from dataclasses import replace

import numpy as np
import pytest

from environment.world import COURSE_STEPS, DIMENSION, WorldOptions, cut_points, make_world

LECTURE = WorldOptions()
SEEDS = range(8)


def shares(options: WorldOptions) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    counts = sum(np.bincount(make_world(seed, options).rating, minlength=6)[1:] for seed in SEEDS)
    return np.asarray(counts / (len(SEEDS) * 30_000), np.float64)


def test_scores_and_ratings_are_distributed_as_derived() -> None:
    random = np.random.default_rng(5)
    scores = (random.normal(1, 1, (400_000, DIMENSION)) * random.normal(1, 1, (400_000, DIMENSION))).sum(1)
    assert scores.mean() == pytest.approx(3.0, abs=0.03)
    assert scores.var() == pytest.approx(9.0, abs=0.15)
    z_60, z_80 = 0.2533471031357997, 0.8416212335729143
    assert cut_points() == pytest.approx([3 - 3 * z_80, 3 - 3 * z_60, 3 + 3 * z_60, 3 + 3 * z_80])
    # Not exactly uniform: products of normals are skewed, and the cut points are those of a normal.
    expected = [0.188, 0.257, 0.208, 0.169, 0.178]
    assert shares(LECTURE) == pytest.approx(expected, abs=0.03)
    assert shares(replace(LECTURE, n_variables=5)) == pytest.approx(expected, abs=0.04)
    assert shares(replace(LECTURE, drift=2.0)) == pytest.approx(expected, abs=0.04)
    errors = [np.mean((make_world(seed, LECTURE).rating.astype(float) - 3) ** 2) for seed in SEEDS]
    assert 1.8 < np.mean(errors) < 2.0


def test_no_one_is_rated_before_they_exist_and_half_of_the_late_ones_come_in_play() -> None:
    options = WorldOptions(late_users=0.4, late_items=0.3)
    world = make_world(8, options)
    time = np.arange(world.user.size)
    assert np.all(time >= world.user_arrival[world.user])
    assert np.all(time >= world.item_arrival[world.item])
    assert np.count_nonzero(world.user_arrival) == 40
    assert np.count_nonzero(world.item_arrival) == 90
    for arrival, column in ((world.user_arrival, world.user), (world.item_arrival, world.item)):
        late = arrival[arrival > 0]
        assert 0.3 < np.mean(late >= options.n_known - 200) < 0.7
        assert late.max() < options.n_known + COURSE_STEPS + 400
        known = set(column[: options.n_known].tolist())
        assert set(column[options.n_known : options.n_known + COURSE_STEPS].tolist()) - known


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
    assert np.all(np.arange(world.user.size) >= world.user_arrival[world.user])
