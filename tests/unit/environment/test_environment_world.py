"""The simulated world: each pair once, seeded, distributed as derived, no user rated before it exists."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from environment.games import WINDOW_STEPS, Games, NoPairLeftError
from environment.world import COURSE_STEPS, DIMENSION, World, WorldOptions, cut_points, make_world

LECTURE = WorldOptions()
SEEDS = range(8)


def shares(options: WorldOptions) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    counts = sum(np.bincount(make_world(seed, options).rating, minlength=6)[1:] for seed in SEEDS)
    return np.asarray(counts / (len(SEEDS) * 30_000), np.float64)


def pairs_of(world: World, options: WorldOptions) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return world.user.astype(np.int64) * options.n_items + world.item


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


def test_variables_shift_and_turn_the_taste() -> None:
    """Ratings lean on the variables, by other weights for one item than for another."""
    options = replace(LECTURE, n_variables=3)
    leaning = []
    for seed in range(4):
        world = make_world(seed, options)
        design = np.column_stack([np.ones(world.rating.size), world.variables])
        weights = np.array(
            [
                np.linalg.lstsq(design[own], world.rating[own].astype(float))[0][1:]
                for own in (world.item == item for item in range(options.n_items))
            ]
        )
        # A hundred ratings of standard deviation 1.4 leave a weight an error of 0.14, of variance 0.02.
        leaning.append((np.linalg.norm(weights.mean(axis=0)), weights.var(axis=0).sum() - 3 * 0.02))
    shift, turn = np.mean(leaning, axis=0)
    assert shift > 0.2
    assert turn > 0.05


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
    assert np.array_equal(np.sort(pairs_of(world, options)), np.arange(options.n_users * options.n_items))
    assert np.all(np.arange(world.user.size) >= world.user_arrival[world.user])


SMALL = WorldOptions(n_users=5, n_items=8, n_known=10)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def make_games(
    executor: Executor, options: WorldOptions = SMALL, *, seed: int | None = 1, max_tokens: int = 10
) -> Games:
    return Games(options=options, seed=seed, max_tokens=max_tokens, executor=executor)


async def test_a_game_is_the_world_event_by_event_across_windows(executor: Executor) -> None:
    options = WorldOptions(n_users=30, n_items=60, n_known=100, late_users=0.3, drift=0.5, noise=0.3)
    games, world = make_games(executor, options), make_world(77, options)
    answer = msgspec.json.decode(await games.reset("a", 77))
    assert answer["user_history"] == world.user[:100].tolist()
    assert answer["item_history"] == world.item[:100].tolist()
    assert answer["rating_history"] == world.rating[:100].tolist()
    pending = (answer["next_user"], answer["next_item"])
    assert 3 * WINDOW_STEPS < 1_700
    for event in range(100, 1_800):
        assert pending == (world.user[event], world.item[event])
        rated = await games.rate("a")
        assert rated.rating == world.rating[event]
        pending = (rated.next_user, rated.next_item)
    assert pending == (None, None)
    with pytest.raises(NoPairLeftError):
        await games.rate("a")
