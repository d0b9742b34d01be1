"""The local players: better than the simpler one before, on the scale, at ease with the unknown."""

import numpy as np
import pytest

from environment.client import KnownRatings, Pair
from environment.world import WorldOptions, make_world
from evaluation.players import LOCAL_PLAYERS, Player, PlayerFailedError, make_player, player_name
from evaluation.players.als import RANK, AlsPlayer, initial, solve
from evaluation.players.baselines import BiasPlayer
from evaluation.players.neighbours import similarities
from evaluation.players.table import RatingTable

NO_ROWS = np.zeros(0, dtype=np.int64)
EMPTY = KnownRatings(4, 6, NO_ROWS, NO_ROWS, np.zeros(0))


def local(name: str) -> Player:
    return make_player(name, seed=0, api=None, tag="t")


async def error_of(name: str, seed: int, steps: int = 600) -> float:
    world = make_world(seed, WorldOptions())
    known = slice(0, 10_000)
    history = KnownRatings(
        100,
        300,
        world.user[known].astype(np.int64),
        world.item[known].astype(np.int64),
        world.rating[known].astype(float),
    )
    player = local(name)
    await player.prepare(history)
    squared = []
    for event in range(10_000, 10_000 + steps):
        user, item, rating = int(world.user[event]), int(world.item[event]), float(world.rating[event])
        squared.append((await player.predict(Pair(user, item)) - rating) ** 2)
        await player.learn(Pair(user, item), rating)
    await player.close()
    return float(np.mean(squared))


async def test_each_player_beats_the_simpler_one() -> None:
    errors = [await error_of(name, 21) for name in LOCAL_PLAYERS]
    assert errors == sorted(errors, reverse=True)
    assert errors[LOCAL_PLAYERS.index("constant")] < 2.1
    assert errors[LOCAL_PLAYERS.index("als")] < 0.2


@pytest.mark.parametrize("name", LOCAL_PLAYERS)
async def test_a_player_without_any_history_answers_on_the_scale_and_grows(name: str) -> None:
    player = local(name)
    await player.prepare(EMPTY)
    for user, item in ((0, 0), (3, 5), (9, 2), (2, 40), (50, 50)):
        assert 1 <= await player.predict(Pair(user, item)) <= 5
        await player.learn(Pair(user, item), 5.0)
        assert 1 <= await player.predict(Pair(user, item)) <= 5
    assert player.note == ""


@pytest.mark.parametrize("name", ["bias", "neighbours", "als"])
async def test_a_rating_counts_in_the_next_answer(name: str) -> None:
    random = np.random.default_rng(1)
    users, items = np.divmod(random.permutation(400)[:200], 20)
    history = KnownRatings(20, 20, users, items, random.integers(1, 6, 200).astype(float))
    player = local(name)
    await player.prepare(history)
    seen = set(zip(users.tolist(), items.tolist(), strict=True))
    before = await player.predict(Pair(0, 0))
    for item in range(1, 20):
        if (0, item) not in seen:
            await player.learn(Pair(0, item), 5.0)
    after = await player.predict(Pair(0, 0))
    assert after != before


async def test_the_online_biases_are_those_of_a_fit_when_they_have_settled() -> None:
    world = make_world(2, WorldOptions(n_users=12, n_items=15, n_known=100))
    history = KnownRatings(
        12, 15, world.user.astype(np.int64), world.item.astype(np.int64), world.rating.astype(float)
    )
    batch, online = BiasPlayer(), BiasPlayer()
    await batch.prepare(history)
    await online.prepare(history.latest(120))
    online.mean = batch.mean
    for _ in range(30):
        for user, item, rating in zip(history.user, history.item, history.rating, strict=True):
            await online.learn(Pair(int(user), int(item)), float(rating))
    for user, item in ((0, 0), (5, 7), (11, 14)):
        assert await online.predict(Pair(user, item)) == pytest.approx(
            await batch.predict(Pair(user, item)), abs=0.01
        )


def test_the_ridge_step_is_the_normal_equations_of_each_row() -> None:
    random = np.random.default_rng(3)
    seen = (random.random((6, 9)) < 0.6).astype(float)
    values = random.integers(1, 6, (6, 9)) * seen
    factors = initial(values, seen, 0)
    factors.item[:] = random.normal(size=factors.item.shape)
    solve(factors.user, factors.item, values, seen, mean=2.5, ridge=0.7)
    for user in range(6):
        rated = np.flatnonzero(seen[user])
        design = np.column_stack([factors.item[rated, :RANK], np.ones(rated.size)])
        left = values[user, rated] - 2.5 - factors.item[rated, RANK]
        expected = np.linalg.solve(design.T @ design + 0.7 * np.eye(RANK + 1), design.T @ left)
        assert factors.user[user] == pytest.approx(expected)


def test_similarity_is_the_shrunk_correlation_over_common_raters() -> None:
    random = np.random.default_rng(4)
    seen = (random.random((30, 5)) < 0.7).astype(float)
    values = random.integers(1, 6, (30, 5)) * seen
    found = similarities(values, seen)
    means = (values.sum(0) + values.sum() / seen.sum()) / (seen.sum(0) + 1)
    for one in range(5):
        for other in range(5):
            if one == other:
                assert found[one, other] == 0
                continue
            both = np.flatnonzero(seen[:, one] * seen[:, other])
            x, y = values[both, one] - means[one], values[both, other] - means[other]
            correlation = (x @ y) / np.sqrt((x @ x) * (y @ y))
            assert found[one, other] == pytest.approx(correlation * both.size / (both.size + 10))


async def test_als_chooses_a_strong_ridge_for_few_ratings_and_a_weak_one_for_many() -> None:
    ridges = []
    for n_known in (150, 10_000):
        world = make_world(5, WorldOptions())
        columns = world.user[:n_known].astype(np.int64), world.item[:n_known].astype(np.int64)
        player = AlsPlayer(0)
        await player.prepare(KnownRatings(100, 300, *columns, world.rating[:n_known].astype(float)))
        ridges.append(player.ridge)
    assert ridges[0] > ridges[1]


async def test_a_world_that_is_too_large_is_refused() -> None:
    with pytest.raises(PlayerFailedError):
        RatingTable(KnownRatings(10_000, 10_000, EMPTY.user, EMPTY.item, EMPTY.rating))
    table = RatingTable(EMPTY)
    with pytest.raises(PlayerFailedError):
        table.add(10**9, 10**9, 3.0)


def test_an_unknown_player_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="neighbours"):
        player_name("unknown")
    with pytest.raises(PlayerFailedError):
        local("unknown")
    with pytest.raises(PlayerFailedError, match="API"):
        local("deployed")


def test_the_latest_part_of_a_history() -> None:
    history = KnownRatings(9, 9, np.arange(5), np.arange(5), np.arange(5.0))
    assert history.latest(2).rating.tolist() == [3.0, 4.0]
    assert history.latest(0).rating.size == 0
    assert history.latest(99).digest() == history.digest()
    assert history.latest(2).digest() != history.digest()
