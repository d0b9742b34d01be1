"""The local players: better than the simpler one before, on the scale, at ease with the unknown."""

import numpy as np
import pytest

from environment.client import KnownRatings, Pair
from environment.world import WorldOptions, make_world
from evaluation.players import LOCAL_PLAYERS, Player, make_player

NO_ROWS = np.zeros(0, dtype=np.int64)
EMPTY = KnownRatings(4, 6, NO_ROWS, NO_ROWS, np.zeros(0))


def local(name: str) -> Player:
    return make_player(name, seed=0, api=None, tag="t")


async def error_of(name: str, seed: int, steps: int = 300) -> float:
    world = make_world(seed, WorldOptions())
    known = slice(0, 10_000)
    columns = world.user[known].astype(np.int64), world.item[known].astype(np.int64)
    player = local(name)
    await player.prepare(KnownRatings(100, 300, *columns, world.rating[known].astype(float)))
    squared = []
    for event in range(10_000, 10_000 + steps):
        pair, rating = Pair(int(world.user[event]), int(world.item[event])), float(world.rating[event])
        squared.append((await player.predict(pair) - rating) ** 2)
        await player.learn(pair, rating)
    await player.close()
    return float(np.mean(squared))


async def test_each_player_beats_the_simpler_one() -> None:
    errors = [await error_of(name, 21) for name in LOCAL_PLAYERS]
    assert errors == sorted(errors, reverse=True)
    assert errors[LOCAL_PLAYERS.index("constant")] < 2.1
    assert errors[LOCAL_PLAYERS.index("als")] < 0.2


@pytest.mark.parametrize("name", LOCAL_PLAYERS)
async def test_a_player_without_any_history_answers_on_the_scale_and_learns(name: str) -> None:
    player = local(name)
    await player.prepare(EMPTY)
    for user, item in ((0, 0), (3, 5), (9, 2), (2, 40), (50, 50)):
        assert 1 <= await player.predict(Pair(user, item)) <= 5
        await player.learn(Pair(user, item), 5.0)
        assert 1 <= await player.predict(Pair(user, item)) <= 5
    if name in {"random", "constant"}:
        return
    random = np.random.default_rng(1)
    users, items = np.divmod(random.permutation(400)[:200], 20)
    player = local(name)
    await player.prepare(KnownRatings(20, 20, users, items, random.integers(1, 6, 200).astype(float)))
    before = await player.predict(Pair(0, 0))
    for item in set(range(1, 20)) - set(items[users == 0].tolist()):
        await player.learn(Pair(0, item), 5.0)
    assert await player.predict(Pair(0, 0)) != before
